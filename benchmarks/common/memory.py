"""Peak memory, for the scripts of the folder above; in a folder of its own since `make bench` runs what lies there."""

from collections.abc import Callable
from pathlib import Path

import torch


def peak_memory(work: Callable[[], object], device: str) -> float:
    """GB that work needs above what stands in memory before it: of a GPU, or of the process (Linux)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e9
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = _kilobytes("VmRSS")
    work()
    return (_kilobytes("VmHWM") - before) * 1024 / 1e9


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
