"""What training never sees, so that an evaluation can tell whether an oracle reads what it was not shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

from diff_oracle.subject.sites import DiffSite


@dataclass
class HoldoutConfig:
    """What is left out of training; the dataset holds it, and evaluation asks about it in lines of its own.

    What the tasks know of a site's habits, for drawing fair pairs and for `site_prior`, they know of these sites too.
    """

    tasks: list[str] = field(default_factory=list)
    """Whole tasks: measured and asked, but never trained."""
    layers: list[int] = field(default_factory=list)
    """Blocks: they, their halves, their heads, and every span that reaches over them."""
    heads: list[str] = field(default_factory=list)
    """Single heads, e.g. L3H2. The blocks that they are part of stay."""

    def __post_init__(self) -> None:
        for name in self.heads:
            if DiffSite.parse(name).kind != "head":
                raise ValueError(f"holdout.heads names single heads like L3H2, got {name!r}")

    def check(self, n_layers: int, n_heads: int, tasks: Sequence[str]) -> None:
        """Makes sure that what is held out is there, and that something is left.

        Raises:
            ValueError: The model has no such site, the task is not asked, or nothing is left to train.
        """
        for name in self.tasks:
            if name not in tasks:
                raise ValueError(f"holdout.tasks names {name!r}, which is not asked: add +task={name}")
        if set(self.tasks) == set(tasks):
            raise ValueError(f"holdout.tasks={self.tasks} leaves no task to train on")
        for site in (*(DiffSite("layer", layer) for layer in self.layers), *map(DiffSite.parse, self.heads)):
            site.check(n_layers, n_heads)
        if len(set(self.layers)) == n_layers:
            raise ValueError(f"holdout.layers={self.layers} leaves no block to train on")

    def group(self, site: str) -> str | None:
        """What reports call the group of a held-out site; None for one that is trained."""
        parsed = DiffSite.parse(site)
        if any(parsed.overlaps(DiffSite("layer", layer)) for layer in self.layers):
            return "held-out spans" if parsed.kind == "span" else "held-out layers"
        return "held-out heads" if site in self.heads else None

    def trained(self, sites: Sequence[str]) -> Bool[np.ndarray, "row"]:
        """Which rows training may see."""
        known = {site: self.group(site) is None for site in set(sites)}
        return np.array([known[site] for site in sites], dtype=bool)
