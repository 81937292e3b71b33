"""Where a result comes from: command, commit, versions, machine. Written beside every result."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from diff_oracle import __version__
from diff_oracle.records import git_commit

_PACKAGES = ("torch", "transformers", "peft", "transformer-lens")


def provenance(device: str) -> dict[str, Any]:
    """A JSON-ready description of this process."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    command = ["python", "-m", module.name, *sys.argv[1:]] if module else ["python", *sys.argv]
    return {
        "command": " ".join(command),
        "commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "diff_oracle": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        "machine": {
            "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
            "cores": os.cpu_count(),
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
        },
    }
