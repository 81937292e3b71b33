"""The bag-of-words reconstructor: a diff from the tokens that an explanation claims, by a linear map for each site.

The floor that any bigger reconstructor must beat. A row's features are, for each kind of claim, the sum of the unit
embeddings of its tokens, and what is said in words (`claims.WORDS`) as 0 or 1. The order of claims is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from diff_oracle.tasks.claims import KINDS, WORDS, Claim


class ClaimFeatures:
    """Claims as vectors.

    Args:
        embedding: What each token stands for: the unembedding's rows.
    """

    def __init__(self, embedding: Float[np.ndarray, "vocab d_model"]) -> None:
        centred = embedding - embedding.mean(axis=0)
        self._embedding = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)

    def __call__(self, explanations: Sequence[Sequence[Claim]]) -> Float[np.ndarray, "row feature"]:
        """One row an explanation: `len(KINDS)` · d_model + `len(WORDS)` features."""
        d_model = self._embedding.shape[1]
        sums = np.zeros((len(explanations), len(KINDS), d_model))
        said = np.zeros((len(explanations), len(WORDS)))
        words = list(WORDS.items())
        for row, claims in enumerate(explanations):
            for claim in claims:
                if isinstance(claim.said, int):
                    sums[row, KINDS.index(claim.kind)] += self._embedding[claim.said]
                else:
                    said[row, words.index((claim.kind, claim.said))] = 1.0
        return np.hstack([sums.reshape(len(explanations), -1), said])
