"""How near a rebuilt diff comes to the true one (research.md §3).

With q(v) = √d · v / ‖v‖, so that a diff's size does not weigh:

    error  = mean_d (p − q(g))²            of a reconstruction p of g; p is taken as it is
    FVE    = 1 − E[error] / E[mean_d (q(g) − μ)²]    μ: the mean of q(g) over the training rows of all sites, or of
                                                    the row's own
    nmse   = mean_d (q(p) − q(g))² = 2 (1 − cos(p, g))
    FVE of directions = the same with nmse in place of error

A reconstruction that is less sure is shorter: that costs no FVE, but FVE of directions, which asks for full size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

TINY = 1e-12


def unit_scale(vectors: Float[np.ndarray, "row d_model"]) -> Float[np.ndarray, "row d_model"]:
    """q: each row with mean square 1; zeros stay zeros."""
    rms = np.sqrt(np.mean(vectors**2, axis=-1, keepdims=True))
    return vectors / np.maximum(rms, TINY)


@dataclass(frozen=True)
class Means:
    """μ, from the training rows."""

    everywhere: Float[np.ndarray, "d_model"]
    by_site: dict[str, Float[np.ndarray, "d_model"]]

    @classmethod
    def of(cls, sites: Sequence[str], targets: Float[np.ndarray, "row d_model"]) -> Means:
        """The means of q-scaled diffs."""
        of_row = np.asarray(sites)
        by_site = {str(site): targets[of_row == site].mean(axis=0) for site in np.unique(of_row)}
        return cls(targets.mean(axis=0), by_site)

    def at(self, sites: Sequence[str]) -> Float[np.ndarray, "row d_model"]:
        """Each row's own site's mean; that of all sites for a site that training lacks."""
        return np.stack([self.by_site.get(site, self.everywhere) for site in sites])


@dataclass(frozen=True)
class Errors:
    """Each row's parts of the metrics."""

    error: Float[np.ndarray, "row"]
    nmse: Float[np.ndarray, "row"]
    cosine: Float[np.ndarray, "row"]
    centred_cosine: Float[np.ndarray, "row"]
    """Cosine of what is left when the site's mean is taken from both."""
    norm_ratio: Float[np.ndarray, "row"]
    """‖p‖ / √d."""

    @classmethod
    def of(
        cls,
        rebuilt: Float[np.ndarray, "row d_model"],
        target: Float[np.ndarray, "row d_model"],
        site_mean: Float[np.ndarray, "row d_model"],
    ) -> Errors:
        """Compares reconstructions with q-scaled diffs."""
        cos = cosine(rebuilt, target)
        return cls(
            error=np.mean((rebuilt - target) ** 2, axis=1),
            nmse=2 * (1 - cos),
            cosine=cos,
            centred_cosine=cosine(rebuilt - site_mean, target - site_mean),
            norm_ratio=np.sqrt(np.mean(rebuilt**2, axis=1)),
        )


def spread(
    target: Float[np.ndarray, "row d_model"], mean: Float[np.ndarray, "*row d_model"]
) -> Float[np.ndarray, "row"]:
    """mean_d (q(g) − μ)²: the denominator of an FVE."""
    return np.asarray(np.mean((target - mean) ** 2, axis=1))


def cosine(a: Float[np.ndarray, "row d_model"], b: Float[np.ndarray, "row d_model"]) -> Float[np.ndarray, "row"]:
    """Of rows; 0 where one of them is zero."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.where(norms > TINY, (a * b).sum(axis=1) / np.maximum(norms, TINY), 0.0)
