"""The rows of a split as the reconstructors see them: what is to be rebuilt, from what, and what is true of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diff_oracle.nla.metrics import unit_scale
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import Record, RecordSet
from diff_oracle.subject.sites import DiffSite
from diff_oracle.tasks.claims import Claim
from diff_oracle.tasks.explanation import ExplanationConfig, gold_claims
from diff_oracle.tasks.text import Vocabulary

Claims = Sequence[Claim]


@dataclass(frozen=True)
class Rows:
    """Some rows of a split."""

    records: list[Record]
    gold: list[list[Claim]]
    """What the labels claim of each."""
    target: Float[np.ndarray, "row d_model"]
    """q of each diff."""
    before: Float[np.ndarray, "row d_model"]
    """q of each residual before."""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def sites(self) -> list[str]:
        """Each row's site."""
        return [record.site for record in self.records]

    @property
    def groups(self) -> list[str]:
        """Each row's kind of site."""
        return [DiffSite.parse(site).group for site in self.sites]

    @property
    def last_tokens(self) -> list[int]:
        """The token at each row's position."""
        return [record.token_ids[-1] for record in self.records]


def read_rows(
    records: RecordSet, config: ExplanationConfig, vocabulary: Vocabulary, num_rows: int | None, seed: int
) -> Rows:
    """All rows, or a random choice.

    Args:
        records: A split, or a part of one.
        config: What the gold claims are.
        vocabulary: Which tokens they may name.
        num_rows: How many at most.
        seed: Keys the choice.
    """
    chosen = np.arange(len(records))
    if num_rows is not None:
        chosen = keyed_rng(seed, "nla rows").permutation(chosen)[:num_rows]
    some = records.take(chosen)
    diffs, befores = (np.stack([getattr(r, name) for r in some]).astype(np.float64) for name in ("diff", "before"))
    gold = [gold_claims(record.labels, config, vocabulary) for record in some]
    return Rows(some, gold, unit_scale(diffs), unit_scale(befores))


def other_documents(records: Sequence[Record], seed: int) -> list[int]:
    """For each row another one of the same site, of another document where there is one."""
    by_site: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        by_site.setdefault(record.site, []).append(i)
    result = []
    for i, record in enumerate(records):
        rng = keyed_rng(seed, "shuffled", i)
        same = by_site[record.site]
        others = [j for j in same if records[j].doc_id != record.doc_id] or [j for j in same if j != i] or [i]
        result.append(others[rng.integers(len(others))])
    return result
