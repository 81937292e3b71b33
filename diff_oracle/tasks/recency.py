"""Where the tokens of a context stand, and what that alone answers about attention: heads read what is near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from diff_oracle.tasks.usual import overlap


def distances(context: Sequence[int]) -> dict[int, int]:
    """A context's tokens, nearest first, each with how far back it stands where it is nearest."""
    nearest: dict[int, int] = {}
    for distance, token in enumerate(reversed(context)):
        nearest.setdefault(token, distance)
    return nearest


@dataclass(frozen=True)
class Recency:
    """What answers best at the training rows of a site, if only distances are known."""

    within: int
    """Up to which distance a token is called attended to."""
    number: int
    """How many of the nearest tokens are called attended to, where all of them are asked for."""

    @classmethod
    def fit(
        cls,
        attended: Int[np.ndarray, "attended"],
        ignored: Int[np.ndarray, "ignored"],
        nearest: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
    ) -> Recency:
        """Learns from distances of tokens, and from rows' nearest tokens beside the tokens to be named.

        `within` parts attended from ignored tokens best where either are asked about as often; the lists of nearest
        tokens are as long as `number` may be.
        """
        length = 1 + int(np.concatenate((attended, ignored)).max(initial=0))
        reached = [np.bincount(part, minlength=length).cumsum() / max(1, len(part)) for part in (attended, ignored)]
        scores = [
            sum(overlap(tokens[:number], answer) for tokens, answer in zip(nearest, answers, strict=True))
            for number in range(1, 1 + max([1, *map(len, nearest)]))
        ]
        return cls(int((reached[0] - reached[1]).argmax()), 1 + int(np.argmax(scores)))
