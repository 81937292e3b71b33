"""Which sites can be put into words: what measured claims carry of each site's diffs, for a bag-of-words reader.

Sites are taken a layer at a time, so that memory does not grow with the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from diff_oracle.evaluation.bootstrap import DocumentBootstrap
from diff_oracle.nla.bag import ClaimFeatures
from diff_oracle.nla.metrics import Means, spread
from diff_oracle.nla.rows import Rows, read_rows
from diff_oracle.nla.rungs import blind_rungs, fit_before, gold_rungs
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import DiffDataset
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite
from diff_oracle.tasks.explanation import ExplanationConfig
from diff_oracle.tasks.text import Vocabulary

RUNGS = (
    "before",
    "gold: bag",
    "gold: bag, before",
    "rotated_codebook: bag",
    "rotated_codebook: bag, before",
    "gold, shuffled: bag",
)
GAINS = (("gold: bag", "rotated_codebook: bag"), ("gold: bag, before", "before"))


@dataclass(frozen=True)
class SiteLine:
    """One line of sites.json: a rung's FVE of a site's mean, or the gain of one over another ("a - b")."""

    site: str
    rung: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    n_docs: int
    n_train: int


def score_sites(
    dataset: DiffDataset, config: ExplanationConfig, subject: Subject, vocabulary: Vocabulary, resamples: int, seed: int
) -> Iterator[SiteLine]:
    """The lines of every site that all splits have.

    Args:
        dataset: With labels of `logit_lens`, and of the other tasks whose claims are to be read.
        config: What an explanation names.
        subject: The model that was measured.
        vocabulary: Its tokens.
        resamples: Of the test documents.
        seed: Keys the rotation and the resamples.
    """
    splits = [dataset.split(name) for name in ("train", "select", "test")]
    common = set.intersection(*(set(split.sites) for split in splits))
    layers = sorted({DiffSite.parse(site).layer for site in common})
    features = ClaimFeatures(subject.W_U.T.float().cpu().numpy())
    for layer in tqdm(layers, desc="fitting", unit=" layers"):
        wanted = {site for site in common if DiffSite.parse(site).layer == layer}
        masks = [np.isin(split.sites, list(wanted)) for split in splits]
        train, select, test = (
            read_rows(split.where(mask), config, vocabulary, None, seed)
            for split, mask in zip(splits, masks, strict=True)
        )
        before = fit_before(train, select)
        rebuilt = blind_rungs(train, test, before)
        gold, *_ = gold_rungs(train, select, test, features, subject, vocabulary, seed)
        yield from _lines(rebuilt | gold, train, test, resamples, seed)


def _lines(rebuilt: dict[str, Any], train: Rows, test: Rows, resamples: int, seed: int) -> Iterator[SiteLine]:
    means, sites = Means.of(train.sites, train.target), np.array(test.sites)
    denominator = spread(test.target, means.at(test.sites))
    errors = {rung: np.mean((rebuilt[rung] - test.target) ** 2, axis=1) for rung in RUNGS}
    better = {rung: denominator - error for rung, error in errors.items()}
    better |= {f"{rung} - {over}": errors[over] - errors[rung] for rung, over in GAINS}
    for site in sorted(set(test.sites), key=lambda name: str(DiffSite.parse(name))):
        mask = sites == site
        docs = [test.records[i].doc_id for i in np.flatnonzero(mask)]
        bootstrap = DocumentBootstrap(docs, resamples, keyed_rng(seed, "bootstrap"))
        for rung, values in better.items():
            estimate = bootstrap.ratio(values[mask], denominator[mask])
            yield SiteLine(site, rung, **asdict(estimate), n_train=train.sites.count(site))


def draw_sites(lines: Sequence[SiteLine], title: str) -> Figure:
    """Layers × heads, with a column for the whole layer: FVE from gold claims; its gain over the rotated codebook."""
    panels = ("gold: bag", "before", "gold: bag - rotated_codebook: bag")
    sites = {line.site: DiffSite.parse(line.site) for line in lines}
    num_layers = 1 + max(site.layer for site in sites.values())
    num_heads = 1 + max((site.head for site in sites.values() if site.head is not None), default=-1)
    figure = Figure(figsize=(1.2 + 0.35 * len(panels) * (num_heads + 2), 1.2 + 0.22 * num_layers), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        grid = np.full((num_layers, num_heads + 1), np.nan)
        for line in lines:
            site = sites[line.site]
            if line.rung == panel and site.kind in ("head", "layer"):
                grid[site.layer, num_heads if site.head is None else site.head] = line.value
        gain = " - " in panel
        image = axes.imshow(
            grid, aspect="auto", cmap="RdBu" if gain else "viridis", vmin=-0.2 if gain else 0, vmax=0.2 if gain else 1
        )
        axes.set_xticks(range(num_heads + 1), [*(f"H{head}" for head in range(num_heads)), "layer"], rotation=90)
        axes.set_title(panel, fontsize=9)
        axes.set_ylabel("layer")
        figure.colorbar(image, ax=axes)
    figure.suptitle(title, fontsize=10)
    return figure
