"""Confidence intervals by resampling documents: rows of one document are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    value: float
    ci_low: float
    ci_high: float
    n: int
    n_docs: int


class DocumentBootstrap:
    """Draws documents with replacement, once: every mean over these rows uses the same draws."""

    def __init__(self, doc_ids: Sequence[str] | np.ndarray, resamples: int, rng: np.random.Generator) -> None:
        names, self._cluster = np.unique(np.asarray(doc_ids), return_inverse=True)
        self._num_docs = len(names)
        uniform = np.full(self._num_docs, 1 / self._num_docs)
        self._times: Int[np.ndarray, "resample doc"] = rng.multinomial(self._num_docs, uniform, size=resamples)

    def estimate(self, values: Float[np.ndarray, "row"]) -> Estimate:
        """The mean over rows and its percentile interval."""
        sums = np.bincount(self._cluster, weights=values, minlength=self._num_docs)
        counts = np.bincount(self._cluster, minlength=self._num_docs)
        means = (self._times @ sums) / (self._times @ counts)
        low, high = np.quantile(means, (0.025, 0.975))
        return Estimate(float(np.mean(values)), float(low), float(high), len(values), self._num_docs)

    def ratio(self, numerator: Float[np.ndarray, "row"], denominator: Float[np.ndarray, "row"]) -> Estimate:
        """Mean over mean, both of the same drawn documents, and its percentile interval."""
        sums = [np.bincount(self._cluster, weights=x, minlength=self._num_docs) for x in (numerator, denominator)]
        drawn = (self._times @ sums[0]) / (self._times @ sums[1])
        low, high = np.quantile(drawn, (0.025, 0.975))
        value = float(np.sum(numerator) / np.sum(denominator))
        return Estimate(value, float(low), float(high), len(numerator), self._num_docs)

    def share(self, part: Float[np.ndarray, "row"], whole: Float[np.ndarray, "row"]) -> Estimate | None:
        """`ratio` of what is no certain whole: None where it is not above zero in every draw, for then none is told."""
        sums = np.bincount(self._cluster, weights=whole, minlength=self._num_docs)
        return self.ratio(part, whole) if (self._times @ sums > 0).all() else None
