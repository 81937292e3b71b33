"""Reading an attention label: which tokens of the context a site attends to, which it ignores, and where they stand."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from diff_oracle.tasks.recency import distances

DISTANCES = (("itself", 0), ("previous", 1), ("near", 7), ("far", None))
"""Names of distances, each with the last one that it covers."""
LITTLE = 0.5  # of `min_share`: what a token that is ignored carries at most, so that no near miss is asked


def token_shares(labels: Mapping[str, Any]) -> dict[int, float]:
    """The tokens that the kept positions hold, strongest first, each with its share of what is not the sink's."""
    total: dict[int, float] = defaultdict(float)
    for token, weight in zip(labels["attended_ids"], labels["attended_weights"], strict=True):
        total[int(token)] += float(weight)
    rest = 1 - float(labels["sink_weight"])
    return {token: weight / rest for token, weight in sorted(total.items(), key=lambda item: -item[1])}


def distance_name(distance: int) -> str:
    """The name of a distance in tokens."""
    return next(name for name, last in DISTANCES if last is None or distance <= last)


@dataclass(frozen=True)
class Reading:
    """What a label says; nothing but `only_sink` where the sink has nearly all."""

    only_sink: bool
    attended: list[int]
    """The nameable tokens that have their share, strongest first."""
    ignored: list[int]
    """The nameable tokens of the context that carry little, in ascending order; the word "no" is left out."""
    distance: str | None
    """How far back the position lies that has most weight."""
    distances: Int[np.ndarray, "token"]
    """How far back the attended and, behind them, the ignored tokens stand; of a repeated one, its nearest place."""
    times: Int[np.ndarray, "token"]
    """How often each of these stands in the context."""

    @property
    def tokens(self) -> Int[np.ndarray, "token"]:
        """The attended and, behind them, the ignored tokens."""
        return np.array([*self.attended, *self.ignored], dtype=np.int64)


@dataclass(frozen=True)
class Reader:
    """Reads labels; see `AttentionConfig`."""

    min_share: float
    sink_only: float
    allowed: Bool[np.ndarray, "vocab"]
    no_id: int

    def __call__(self, labels: Mapping[str, Any], context: Sequence[int]) -> Reading | None:
        """Reads a row's label and context; None for an MLP, which has no label."""
        sink = float(labels["sink_weight"])
        if np.isnan(sink):
            return None
        nowhere = np.empty(0, dtype=np.int64)
        if sink >= self.sink_only:
            return Reading(True, [], [], None, nowhere, nowhere)
        shares, times = token_shares(labels), Counter(context[1:])
        attended = [token for token, share in shares.items() if share >= self.min_share and self.allowed[token]]
        ignored = self._ignored(labels, shares, times)
        back, tokens = distances(context), [*attended, *ignored]
        farthest = len(context) - 1 - int(labels["attended_positions"][0])
        return Reading(
            False,
            attended,
            ignored,
            distance_name(farthest),
            np.array([back[token] for token in tokens], dtype=np.int64),
            np.array([times[token] for token in tokens], dtype=np.int64),
        )

    def _ignored(self, labels: Mapping[str, Any], shares: Mapping[int, float], times: Counter[int]) -> list[int]:
        """The tokens that carry little, whatever the positions that were not kept may hold.

        Any of these has at most the weight of the weakest that was kept, and all together have what is left.
        """
        weakest = float(labels["attended_weights"][-1]) / (1 - float(labels["sink_weight"]))
        left = max(0.0, 1 - sum(shares.values()))
        unkept = times.copy()
        unkept.subtract(int(token) for token in labels["attended_ids"])
        return [
            token
            for token, number in sorted(unkept.items())
            if shares.get(token, 0.0) + min(number * weakest, left) < LITTLE * self.min_share
            and self.allowed[token]
            and token != self.no_id
        ]
