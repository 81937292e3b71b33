"""Reconstructors in closed form: ridge regression to a diff, a readout for each site."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

PENALTIES = (3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
"""Times the number of a site's rows and the mean square of its features."""
POOLED = ""


@dataclass(frozen=True)
class _Fit:
    """One site's readout for every penalty: y = mean_y + (x − mean_x) right' diag(·) coefficients."""

    mean_x: Float[np.ndarray, "feature"]
    mean_y: Float[np.ndarray, "d_model"]
    singular: Float[np.ndarray, "rank"]
    right: Float[np.ndarray, "rank feature"]
    projected: Float[np.ndarray, "rank d_model"]
    scale: float

    @classmethod
    def of(cls, x: Float[np.ndarray, "row feature"], y: Float[np.ndarray, "row d_model"]) -> _Fit:
        mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
        left, singular, right = _thin_svd(x - mean_x)
        scale = float(np.sum(singular**2)) / max(1, x.shape[1])  # rows times the mean square of a feature
        return cls(mean_x, mean_y, singular, right, left.T @ (y - mean_y), scale)

    def predict(self, x: Float[np.ndarray, "row feature"], penalty: float) -> Float[np.ndarray, "row d_model"]:
        return np.asarray(self.mean_y + ((x - self.mean_x) @ self.right.T * self.shrunk(penalty)) @ self.projected)

    def shrunk(self, penalty: float) -> Float[np.ndarray, "rank"]:
        """The diagonal of the readout."""
        return np.asarray(self.singular / (self.singular**2 + penalty * self.scale + 1e-12))


def _thin_svd(
    x: Float[np.ndarray, "row feature"],
) -> tuple[Float[np.ndarray, "row rank"], Float[np.ndarray, "rank"], Float[np.ndarray, "rank feature"]]:
    """x = left diag(singular) right, by the eigenvalues of the smaller of x x' and x' x.

    Directions below 1e-6 of the largest, where rounding would make up the vectors, are left out: every penalty shrinks
    them to nothing.
    """
    wide = x.shape[0] < x.shape[1]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    kept = values > max(0.0, values[-1]) * 1e-12
    singular, vectors = np.sqrt(values[kept]), vectors[:, kept]
    if wide:
        return vectors, singular, vectors.T @ x / singular[:, None]
    return x @ vectors / singular, singular, vectors.T


class SiteRidge:
    """Ridge regression with a readout for each site, each with the penalty that does best on its select rows.

    A site with fewer than two training rows, or none, is read by a readout of all sites together.
    """

    def __init__(
        self,
        sites: Sequence[str],
        x: Float[np.ndarray, "row feature"],
        y: Float[np.ndarray, "row d_model"],
    ) -> None:
        self._all, self._fits = (x, y), {}
        for site, rows in rows_by_site(sites):
            if len(rows) > 1:
                self._fits[site] = _Fit.of(x[rows], y[rows])
        self._penalties: dict[str, float] = {}

    def select(
        self, sites: Sequence[str], x: Float[np.ndarray, "row feature"], y: Float[np.ndarray, "row d_model"]
    ) -> SiteRidge:
        """Sets the penalties whose reconstructions of these rows are nearest; a site without rows has that of all."""
        errors = {}
        for site, rows in rows_by_site(sites):
            fit = self._fit(site)
            errors[site] = np.array([np.sum((fit.predict(x[rows], penalty) - y[rows]) ** 2) for penalty in PENALTIES])
        errors[POOLED] = np.sum(list(errors.values()), axis=0)
        self._penalties = {site: PENALTIES[int(of_site.argmin())] for site, of_site in errors.items()}
        return self

    def predict(self, sites: Sequence[str], x: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, "row d_model"]:
        """The reconstructions, in the units of y."""
        result = np.empty((len(x), self._all[1].shape[1]))
        for site, rows in rows_by_site(sites):
            fit = self._fit(site)
            result[rows] = fit.predict(x[rows], self._penalty(site))
        return result

    def maps(self) -> Iterator[tuple[str, Float[np.ndarray, "feature d_model"], Float[np.ndarray, "d_model"]]]:
        """Each site, and W and b with which y = x W + b is what `predict` gives; last, under `POOLED`, of all sites.

        One by one, for all of them are large.
        """
        for site in [*self._fits, POOLED]:
            fit = self._fit(site)
            weight = fit.right.T @ (fit.shrunk(self._penalty(site))[:, None] * fit.projected)
            yield site, weight, fit.mean_y - fit.mean_x @ weight

    def _fit(self, site: str) -> _Fit:
        """A site's readout, or that of all sites."""
        if site not in self._fits:
            return self._pooled  # fitted when it is first asked for: it is large and seldom needed
        return self._fits[site]

    @cached_property
    def _pooled(self) -> _Fit:
        return _Fit.of(*self._all)

    def _penalty(self, site: str) -> float:
        return self._penalties.get(site, self._penalties.get(POOLED, PENALTIES[-1]))


def rows_by_site(sites: Sequence[str]) -> list[tuple[str, Int[np.ndarray, "_"]]]:
    """Each site with its rows."""
    of_row = np.asarray(sites)
    return [(str(site), np.flatnonzero(of_row == site)) for site in np.unique(of_row)]


class TokenMeans:
    """The mean of a site's diffs behind the same last token, drawn towards the site's mean."""

    def __init__(
        self, sites: Sequence[str], tokens: Sequence[int], y: Float[np.ndarray, "row d_model"], weight: float = 4.0
    ) -> None:
        self._weight = weight
        self._sums: dict[tuple[str, int], tuple[Float[np.ndarray, "d_model"], int]] = {}
        totals: dict[str, list[int]] = {}
        for i, (site, token) in enumerate(zip(sites, tokens, strict=True)):
            total, count = self._sums.get((site, token), (np.zeros(y.shape[1]), 0))
            self._sums[site, token] = total + y[i], count + 1
            totals.setdefault(site, []).append(i)
        self._means = {site: y[rows].mean(axis=0) for site, rows in totals.items()}
        self._everywhere = y.mean(axis=0)

    def predict(self, sites: Sequence[str], tokens: Sequence[int]) -> Float[np.ndarray, "row d_model"]:
        """The reconstructions."""
        rows = []
        for site, token in zip(sites, tokens, strict=True):
            mean = self._means.get(site, self._everywhere)
            total, count = self._sums.get((site, token), (np.zeros_like(mean), 0))
            rows.append((total + self._weight * mean) / (count + self._weight))
        return np.stack(rows)
