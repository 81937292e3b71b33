"""Commands that are killed in their midst."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from diff_oracle.explain.store import FILE

ROOT = Path(__file__).parents[2]


def killed_once_begun(module: str, words: tuple[str, ...], cwd: Path, run_dir: Path) -> tuple[bytes, int]:
    """Starts a command and kills it as soon as something is finished; returns what it left, whole lines, and how many
    explanations these are."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(
        [sys.executable, "-m", module, *words, f"run_dir={run_dir}"],
        cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    file = run_dir / FILE
    while not (file.exists() and file.read_bytes().count(b"\n") > 1):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    left = file.read_bytes()
    assert not (run_dir / "explanations.json").exists()
    return left[: left.rfind(b"\n") + 1], left.count(b"\n") - 1
