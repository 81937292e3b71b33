"""Controls: the same questions, asked with something else in place of the diff.

| control | what the oracle gets |
|---|---|
| matched | the diff |
| shuffled | the diff of the same site in another document |
| wrong_site | the diff of another site at the same position, which writes nothing that the right one does |
| same_document | the diff of the same site at another position of the document |
| sign_flipped | −diff |
| random | a Gaussian vector of the diff's norm |
| none | zeros |
| text_only | the context's text and no slots |
| recency | nothing is asked: what the places of the tokens in the text suggest (`Task.recency_answer`) |
| site_prior | nothing is asked: what the site's training rows suggest (`Task.prior_answer`) |
| linear_probe | no oracle: a linear readout of the diff, fitted on the training rows; not a control but a yardstick |

The site, the size and the question are always the row's own, and so is the residual before the diff where the oracle is
shown it: what is replaced is the diff alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from diff_oracle.oracle.prompt import Prompt, PromptBuilder
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import Record, RecordSet
from diff_oracle.subject.sites import DiffSite
from diff_oracle.tasks import Question

MATCHED, SITE_PRIOR, RECENCY, LINEAR_PROBE = "matched", "site_prior", "recency", "linear_probe"
PARTNER_CONTROLS = ("shuffled", "wrong_site", "same_document")
ORACLE_CONTROLS = (MATCHED, *PARTNER_CONTROLS, "sign_flipped", "random", "none", "text_only")
CONTROLS = (*ORACLE_CONTROLS, RECENCY, SITE_PRIOR, LINEAR_PROBE)


@dataclass(frozen=True)
class AskedRow:
    """A row to be asked about, and the rows whose diffs its controls get."""

    record: Record
    partners: dict[str, Record]
    """By control; `shuffled` is always there, the others where the split has such a row."""


class RowDrawer:
    """Draws rows of a split with their partners.

    Raises:
        ValueError: No site was seen in two documents, so that nothing can be shuffled.
    """

    def __init__(self, records: RecordSet, seed: int) -> None:
        self._records, self._seed = records, seed
        sites, documents = records.sites, records.doc_ids
        contexts = [context.tobytes() for context in map(np.ascontiguousarray, records.column("token_ids"))]
        self._sites, self._documents, self._contexts = sites, documents, contexts
        self._by_site = _group(sites)
        self._by_context = _group(list(zip(documents, contexts, strict=True)))
        self._by_document = _group(list(zip(documents, sites, strict=True)))
        spread = {site: len({documents[j] for j in rows}) > 1 for site, rows in self._by_site.items()}
        self._possible = np.array([spread[site] for site in sites])
        if not self._possible.any():
            raise ValueError(
                "no site was seen in two documents, so nothing can be shuffled: use more documents or fewer sites"
            )

    def draw(self, num_rows: int, askable: Bool[np.ndarray, "row"] | None = None) -> list[AskedRow]:
        """Rows drawn at random, among those that are `askable` where that is given; partners among all.

        A row whose site no other document has is left out, so that every row can be shuffled.
        """
        rng = keyed_rng(self._seed, "evaluation rows")
        allowed = self._possible if askable is None else self._possible & askable
        rows = [int(i) for i in rng.permutation(len(self._records)) if allowed[i]][:num_rows]
        partners = [self._partners(row) for row in rows]
        needed = sorted({*rows, *(j for found in partners for j in found.values())})
        record = dict(zip(needed, self._records.take(needed) if needed else [], strict=True))
        return [
            AskedRow(record[row], {control: record[j] for control, j in found.items()})
            for row, found in zip(rows, partners, strict=True)
        ]

    def _partners(self, row: int) -> dict[str, int]:
        site, document, context = self._sites[row], self._documents[row], self._contexts[row]
        here = DiffSite.parse(site)
        candidates: dict[str, list[int]] = {
            "shuffled": [j for j in self._by_site[site] if self._documents[j] != document],
            "wrong_site": [
                j for j in self._by_context[document, context] if not here.overlaps(DiffSite.parse(self._sites[j]))
            ],
            "same_document": [j for j in self._by_document[document, site] if self._contexts[j] != context],
        }
        rng = keyed_rng(self._seed, "partners", row)
        return {control: found[rng.integers(len(found))] for control, found in candidates.items() if found}


def _group(keys: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    return groups


def control_prompts(
    control: str, prompts: PromptBuilder, rows: Sequence[AskedRow], questions: Sequence[Question], seed: int
) -> list[Prompt]:
    """The prompts of a control that asks the oracle.

    Raises:
        KeyError: A row has no partner for the control.
    """
    if control == "text_only":
        return [prompts.with_text(row.record, q.text) for row, q in zip(rows, questions, strict=True)]
    instead: dict[str, Callable[[int, AskedRow], np.ndarray | None]] = {
        MATCHED: lambda index, row: None,
        "sign_flipped": lambda index, row: -row.record.diff,
        "random": lambda index, row: _noise(row.record.diff, keyed_rng(seed, "random diff", index)),
        "none": lambda index, row: np.zeros_like(row.record.diff),
        **{name: lambda index, row: row.partners[control].diff for name in PARTNER_CONTROLS},
    }
    return [
        prompts.about(row.record, question.text, instead[control](index, row))
        for index, (row, question) in enumerate(zip(rows, questions, strict=True))
    ]


def _noise(diff: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(len(diff))
    return (noise * np.linalg.norm(diff) / np.linalg.norm(noise)).astype(np.float32)
