"""Shards: which parts of a dataset a job builds. Beside the driver.

Documents are measured in parts of a fixed number; part p of shard K/N is one whose p mod N is K − 1. A part is the same
whoever builds it, so any sharding gives the same files, and a build may go on with another sharding.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

WHOLE = "1/1"


@dataclass(frozen=True)
class Shard:
    """A job's share: every `count`-th part from part `index` on."""

    index: int
    """From 0, where its name counts from 1."""
    count: int

    @classmethod
    def parse(cls, name: str) -> Shard:
        """Reads `3/16`, the third of sixteen.

        Raises:
            ValueError: It is not of this form, or there is no such shard.
        """
        match = re.fullmatch(r"([0-9]+)/([0-9]+)", name)
        if match is None:
            raise ValueError(f"shard must be K/N, e.g. shard=3/16 for the third of sixteen, got {name!r}")
        number, count = map(int, match.groups())
        if not 1 <= number <= count:
            raise ValueError(f"shard={name} does not exist: choose K/N with K from 1 to N")
        return cls(number - 1, count)

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"

    def owns(self, part: int) -> bool:
        """Whether this shard's job builds the part."""
        return part % self.count == self.index

    def owners(self, parts: Iterable[int]) -> list[str]:
        """The names of the shards, of as many as this one is of, that own the parts."""
        return [str(Shard(index, self.count)) for index in sorted({part % self.count for part in parts})]


def shard_of_process(shard: str) -> str:
    """The shard of this process where `accelerate launch` or `torchrun` started several, else `shard` as it is.

    Makes the process's own GPU, where there is one, the device that "cuda" means.

    Raises:
        ValueError: A shard is named although each process has its own.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return shard
    if shard != WHOLE:
        raise ValueError(
            f"shard={shard} together with {world_size} processes (WORLD_SIZE): each process takes a shard of its own; "
            "leave shard= out, or start one process a job"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    rank = os.environ.get("RANK")
    if rank is None:
        raise ValueError(f"WORLD_SIZE={world_size} without RANK: start processes with torchrun or accelerate launch")
    return f"{int(rank) + 1}/{world_size}"
