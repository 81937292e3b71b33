"""The rows of a split as the reconstructors see them: what is to be rebuilt, from what, and what is true of it."""

from __future__ import annotations

from collections import defaultdict
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


class OtherDocuments:
    """Draws rows of other documents: of the same site where there are some, else of the same kind of site, else any.

    Args:
        records: What is drawn from.

    Raises:
        ValueError: All are of one document.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        if len(docs := {record.doc_id for record in records}) < 2:
            raise ValueError(f"every row is of one document ({', '.join(docs)}): there is none to compare it with")
        self._records = records
        self._alike: dict[str, list[int]] = defaultdict(list)
        for i, record in enumerate(records):
            for name in _names(record):
                self._alike[name].append(i)

    def draw(self, i: int, rng: np.random.Generator) -> int:
        """One for row `i`."""
        own = self._records[i]
        for name in _names(own):
            others = [j for j in self._alike[name] if self._records[j].doc_id != own.doc_id]
            if others:
                break
        return int(others[rng.integers(len(others))])


def _names(record: Record) -> tuple[str, str, str]:
    """What rows that are alike have in common, the most alike first."""
    return record.site, f"every site of kind {DiffSite.parse(record.site).group}", "every site"


def other_documents(records: Sequence[Record], seed: int) -> list[int]:
    """For each row one of another document (`OtherDocuments`)."""
    others = OtherDocuments(records)
    return [others.draw(i, keyed_rng(seed, "shuffled", i)) for i in range(len(records))]
