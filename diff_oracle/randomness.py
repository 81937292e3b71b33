"""Keyed randomness: every draw comes from a generator of (seed, what for, id), never from a global one."""

from __future__ import annotations

import hashlib

import numpy as np


def keyed_rng(seed: int, *key: str | int) -> np.random.Generator:
    """A generator that depends on the seed and the key alone, so that order and sharding change nothing."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *key))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
