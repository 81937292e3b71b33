"""Several processes that train together: what `accelerate launch` or `torchrun` started, one where neither did."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import distributed, nn

T = TypeVar("T")
logger = logging.getLogger(__name__)


def join_processes(device: str) -> PartialState:
    """This process's place among those that were started; all but the first log nothing but warnings.

    Args:
        device: The process's own: cpu, cuda, mps.
    """
    # One waits for another as long as a share of the dataset takes.
    processes = PartialState(cpu=device == "cpu", timeout=timedelta(days=1))
    atexit.register(processes.destroy_process_group)  # no sooner: the next job of a sweep goes on with it
    if not processes.is_main_process:
        for name in ("diff_oracle", "data_gen"):
            logging.getLogger(name).setLevel(logging.WARNING)
    # How accelerate starts one process where it was asked for several that it knows no GPUs for.
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        logger.warning(
            "accelerate has started a single process: on CPUs, several want `--multi_gpu` beside `--num_processes`, or "
            "`--config_file conf/accelerate/ddp_cpu.yaml`"
        )
    return processes


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if _several() else 0


def count() -> int:
    """How many there are."""
    return distributed.get_world_size() if _several() else 1


def summed(values: Sequence[float], device: torch.device) -> list[float]:
    """Each value's sum over all processes."""
    if not _several():
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return total.tolist()


def gathered(values: list[T]) -> list[T]:
    """The values of all processes, in each of them, in the order of the processes."""
    if not _several():
        return values
    parts: list[list[T]] = [[] for _ in range(count())]
    distributed.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def of_first(value: T) -> T:
    """What the first process has, in each of them."""
    if not _several():
        return value
    held = [value]
    distributed.broadcast_object_list(held)
    return held[0]


def wait() -> None:
    """Until all processes are here."""
    if _several():
        distributed.barrier()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gives every process the sum of all processes' gradients; where one has none, it adds nothing."""
    if not _several():
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
