"""Ridge regression from diffs to the tokens and classes that a question asks for, pooled over sites.

With x the diff's direction and log ‖diff‖ / ‖before‖, less their mean over the site, and Y one indicator column for
every token or class that some training row holds:

    W   minimises ‖Y − X W‖² + λ ‖W‖²            over the rows of all sites
    W_s minimises ‖Y − X W_s‖² + μ ‖W_s − W‖²    over the site's rows; μ = ∞ leaves one readout for all sites
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import Float, Shaped
from scipy.linalg import solve
from scipy.sparse import csr_array
from sklearn.preprocessing import MultiLabelBinarizer

from diff_oracle.records import Record
from diff_oracle.tasks import Text
from diff_oracle.tasks.usual import PRIOR_ROWS

TINY = 1e-12  # a diff of nothing but zeros has no direction


@dataclass(frozen=True)
class _Site:
    """The training rows of a site: X − mean = left · diag(singular) · right."""

    mean: Float[np.ndarray, "feature"]
    share: Float[np.ndarray, "column"]
    left: Float[np.ndarray, "row rank"]
    singular: Float[np.ndarray, "rank"]
    right: Float[np.ndarray, "rank feature"]
    targets: csr_array


class RidgeReadout:
    """Indicators read from diffs, by one regression for all penalties.

    Attributes:
        names: The target of each column: everything that some training row's targets hold.
        columns: Each target's column, by how an answer says it.
        tokens: The columns of tokens.
        words: The columns of words.
    """

    def __init__(self, records: Sequence[Record], targets: Sequence[Sequence[int | str]]) -> None:
        self.names: list[int | str] = list(dict.fromkeys(chain.from_iterable(targets)))
        self.columns: dict[Text, int] = {(name,): column for column, name in enumerate(self.names)}
        is_token = np.array([isinstance(name, int) for name in self.names], dtype=bool)
        self.tokens, self.words = np.flatnonzero(is_token), np.flatnonzero(~is_token)
        binarizer = MultiLabelBinarizer(classes=self.names, sparse_output=True)
        indicators = csr_array(binarizer.fit_transform(targets), dtype=np.float64)
        x, sites = features(records), np.array([record.site for record in records])
        self._least = 0.5 / len(records)  # no share is exactly 0 or 1, or z would have no unit
        self._mean, self._share = x.mean(axis=0), indicators.mean(axis=0)
        self._sites: dict[str, _Site] = {}
        for site in np.unique(sites):
            rows = np.flatnonzero(sites == site)
            mean, held = x[rows].mean(axis=0), indicators[rows]
            x[rows] -= mean
            share = (held.sum(axis=0) + PRIOR_ROWS * self._share) / (len(rows) + PRIOR_ROWS)
            self._sites[str(site)] = _Site(mean, share, *np.linalg.svd(x[rows], full_matrices=False), held)
        # Rows are centred within their site, so the indicators need not be.
        self._gram, self._cross = x.T @ x, (indicators.T @ x).T

    def weights(self, penalty: float) -> Float[np.ndarray, "feature column"]:
        """W, the readout of all sites together."""
        ridge = self._gram + penalty * np.eye(len(self._gram))
        return np.asarray(solve(ridge, self._cross, assume_a="pos"))

    def raised(
        self,
        sites: Shaped[np.ndarray, "row"],
        x: Float[np.ndarray, "row feature"],
        weights: Float[np.ndarray, "feature column"],
        site_penalty: float,
    ) -> Float[np.ndarray, "row column"]:
        """x W_s: by how much each row's diff raises each column's probability; a new site is read by W.

        Args:
            sites: Each row's site.
            x: The rows' `features`.
            weights: W.
            site_penalty: μ.
        """
        # W_s = W + (X'X + μ)⁻¹ X' (Y − X W), multiplied from the left, since all the W_s would not fit into memory.
        rest, own_part = x.copy(), np.zeros((len(x), len(self.names)))
        for name in np.unique(sites):
            rows, own = np.flatnonzero(sites == name), self._sites.get(str(name))
            rest[rows] -= self._mean if own is None else own.mean
            if own is not None:
                along = rest[rows] @ own.right.T / (own.singular**2 + site_penalty) * own.singular
                own_part[rows] = (along @ own.left.T) @ own.targets
                rest[rows] -= (along * own.singular) @ own.right
        return rest @ weights + own_part

    def share(self, site: str) -> Float[np.ndarray, "column"]:
        """p, drawn towards the share of all rows as by `PRIOR_ROWS` more of them; a new site has just that."""
        own = self._sites.get(site)
        return np.clip(self._share if own is None else own.share, self._least, 1 - self._least)


def features(records: Sequence[Record]) -> Float[np.ndarray, "row feature"]:
    """Each diff's direction, and behind it log ‖diff‖ / ‖before‖; the oracle is told both, the latter in words."""
    diffs = np.stack([record.diff for record in records]).astype(np.float64)
    norms = np.linalg.norm(diffs, axis=1, keepdims=True)
    sizes = np.array([[record.relative_size] for record in records])
    return np.hstack([diffs / np.maximum(norms, TINY), np.log(np.maximum(sizes, TINY))])
