"""Rows worked on in several threads, a core each.

Generation is a long chain of small operations: two cores that share each of them wait for one another more than two
that each have a chain of their own.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch

Row = TypeVar("Row")
Result = TypeVar("Result")
_MOST = 4  # the interpreter runs one thread at a time: more chains would wait for it
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_MOST_KEPT = 2**30  # bytes


def side_by_side(
    function: Callable[[Sequence[Row]], list[Result]], rows: Sequence[Row], device: torch.device
) -> list[Result]:
    """What a function that takes any number of rows returns for all of them; on a CPU in parts, at the same time.

    Args:
        function: Of some rows; may be called from several threads at once.
        rows: All of them.
        device: Where the function computes. On anything but a CPU it is called once.
    """
    cores = torch.get_num_threads()
    number = min(cores, len(rows), _MOST) if device.type == "cpu" else 1
    if number < 2:
        return function(rows)
    _keep_freed_memory()
    bounds = [len(rows) * i // number for i in range(number + 1)]
    torch.set_num_threads(cores // number)
    try:
        with ThreadPoolExecutor(number) as pool:
            parts = pool.map(function, [rows[start:end] for start, end in pairwise(bounds)])
            return [result for part in parts for result in part]
    finally:
        torch.set_num_threads(cores)


@cache
def _keep_freed_memory() -> None:
    """Has glibc keep large blocks that were freed, for the next ones.

    Else each is given back to the system and asked for again, page by page.
    """
    if sys.platform == "linux" and (set_option := getattr(ctypes.CDLL(None), "mallopt", None)):
        set_option(_M_MMAP_THRESHOLD, _MOST_KEPT)
        set_option(_M_TRIM_THRESHOLD, _MOST_KEPT)
