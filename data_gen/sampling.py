"""Where to measure: documents -> windows of text, and the positions and sites of each. Between corpus and measurement.

Every draw comes from a generator keyed by the seed and the document, so a document's windows are the same whichever
job reads it, and whatever was read before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from data_gen.corpus import Document
from data_gen.measure import Window
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import split_of
from diff_oracle.subject.sites import DiffSite


@dataclass
class SitesConfig:
    """Which diffs are taken."""

    names: list[str] = field(default_factory=lambda: ["layers", "components", "heads", "spans"])
    """Site sets (layers, components, heads, spans) or single sites (L3H2); each name is drawn equally often."""
    per_position: int | None = 6
    """Different sites taken at each position; null takes all that the names stand for."""

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("sites.names is empty: name at least one set or site, e.g. sites.names=[layers]")
        if self.per_position is not None and self.per_position < 1:
            raise ValueError(
                f"sites.per_position must be at least 1, or null for all sites of the set, got {self.per_position}"
            )


@dataclass
class SamplingConfig:
    """How much text is read, and where."""

    max_documents: int = 1500
    """Documents read from the corpus."""
    context_length: int = 96
    """Tokens a window, the beginning-of-sequence token included."""
    windows_per_document: int = 4
    """Windows taken from a long document, from its start on."""
    positions_per_window: int = 4
    """Positions drawn in a window."""
    min_position: int = 8
    """First position that may be drawn; position 0 never is."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"sampling.{name} must be at least 1, got {value}")
        if self.min_position >= self.context_length:
            raise ValueError(
                f"sampling.min_position={self.min_position} must be below sampling.context_length={self.context_length}"
            )


def document_windows(
    tokenizer: PreTrainedTokenizerBase,
    document: Document,
    site_sets: list[list[DiffSite]],
    sites: SitesConfig,
    sampling: SamplingConfig,
    seed: int,
) -> list[Window]:
    """A document's windows, each with its positions and sites drawn; none of a document that is too short."""
    prefix = tokenizer("")["input_ids"]  # what this tokenizer puts before a text
    length = sampling.context_length - len(prefix)
    ids = tokenizer.encode(document.text, add_special_tokens=False, verbose=False)
    split, rng = split_of(document.text), keyed_rng(seed, "windows", document.doc_id)
    windows = []
    for start in range(0, len(ids), length)[: sampling.windows_per_document]:
        piece = prefix + ids[start : start + length]
        if len(piece) <= sampling.min_position:
            continue
        candidates = np.arange(sampling.min_position, len(piece))
        positions = sorted(rng.permutation(candidates)[: sampling.positions_per_window])
        queries = [(int(p), site) for p in positions for site in _draw_sites(site_sets, sites.per_position, rng)]
        windows.append(Window(document.doc_id, split, piece, queries))
    return windows


def _draw_sites(site_sets: list[list[DiffSite]], wanted: int | None, rng: np.random.Generator) -> list[DiffSite]:
    """Different sites: each time a set is drawn, then a site in it; all of them where none are left out."""
    every = dict.fromkeys(site for sites in site_sets for site in sites)
    if wanted is None or wanted >= len(every):
        return list(every)
    drawn: dict[DiffSite, None] = {}
    while len(drawn) < wanted:
        sites = site_sets[rng.integers(len(site_sets))]
        drawn[sites[rng.integers(len(sites))]] = None
    return list(drawn)
