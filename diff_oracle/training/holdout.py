"""What training never sees, so that an evaluation can tell whether an oracle reads what it was not shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool

from diff_oracle.subject.sites import DiffSite, expand_sites
from diff_oracle.tasks import Task
from diff_oracle.training.mixture import MixtureConfig, shares


@dataclass
class HoldoutConfig:
    """What is left out of training; the dataset holds it, and evaluation asks about it in lines of its own.

    What the tasks know of a site's habits, for drawing fair pairs and for `site_prior`, they know of these sites too.
    """

    tasks: list[str] = field(default_factory=list)
    """Whole tasks: measured and asked, but never trained. So are those of weight 0 in `mixture.tasks`."""
    layers: list[int] = field(default_factory=list)
    """Blocks: they, their halves, their heads, and every span that reaches over them."""
    heads: list[str] = field(default_factory=list)
    """Single heads, e.g. L3H2. The blocks that they are part of stay."""

    def __post_init__(self) -> None:
        for name in self.heads:
            if DiffSite.parse(name).kind != "head":
                raise ValueError(f"holdout.heads names single heads like L3H2, got {name!r}")

    def with_weightless(self, mixture: MixtureConfig, tasks: Sequence[Task]) -> HoldoutConfig:
        """The same, with the tasks that the mixture gives no weight.

        Raises:
            ValueError: The mixture does not fit the tasks, or weighs one that is held out.
        """
        for name in self.tasks:
            if weight := mixture.tasks.get(name):
                raise ValueError(
                    f"mixture.tasks.{name}={weight} is for a task that holdout.tasks={self.tasks} leaves out of "
                    "training: drop one of the two"
                )
        weightless = [name for name, kinds in shares(mixture, tasks).items() if not any(kinds.values())]
        return replace(self, tasks=list(dict.fromkeys([*self.tasks, *weightless])))

    def check(self, n_layers: int, n_heads: int, tasks: Sequence[str], site_names: Sequence[str]) -> None:
        """Makes sure that what is held out is there, and that something is left.

        Args:
            n_layers: Blocks of the model.
            n_heads: Attention heads of a block.
            tasks: What is asked.
            site_names: What the dataset holds, single sites and sets of them (`sites.names`).

        Raises:
            ValueError: The model or the dataset has no such site, the task is not asked, or nothing is left to train.
        """
        for name in self.tasks:
            if name not in tasks:
                raise ValueError(f"holdout.tasks names {name!r}, which is not asked: add +task={name}")
        if set(self.tasks) == set(tasks):
            raise ValueError(f"holdout.tasks={self.tasks} leaves no task to train on")
        sites = expand_sites(site_names, n_layers, n_heads)
        blocks = [DiffSite("layer", layer) for layer in self.layers]
        heads = [DiffSite.parse(name) for name in self.heads]
        for site in (*blocks, *heads):
            site.check(n_layers, n_heads)
            if not any(site == other or (site in blocks and site.overlaps(other)) for other in sites):
                what = f"heads names {site}" if site.kind == "head" else f"layers names {site.layer}"
                raise ValueError(
                    f"holdout.{what}, but no site of the dataset is of it: sites.names={list(site_names)}; add one, or "
                    "hold out another"
                )
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
