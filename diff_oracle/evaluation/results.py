"""From scores of rows to the lines of eval.json: means with their intervals, by question and site group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from diff_oracle.evaluation.bootstrap import DocumentBootstrap
from diff_oracle.evaluation.controls import MATCHED
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import Record, Split
from diff_oracle.subject.sites import DiffSite
from diff_oracle.tasks import Question
from diff_oracle.training.holdout import HoldoutConfig

MIN_DOCS = 10  # resampling fewer documents gives intervals that are too narrow to be believed


@dataclass(frozen=True)
class Result:
    """One line of eval.json; without a value (and n = 0) where a control could be asked of no row."""

    task: str
    question: str
    split: str
    site_group: str
    control: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    n_docs: int


def summarise(
    records: Sequence[Record],
    questions: Sequence[Question],
    scores: Mapping[str, Float[np.ndarray, "row"]],
    split: Split,
    resamples: int,
    seed: int,
    holdout: HoldoutConfig,
) -> list[Result]:
    """The lines of one kind of question: each control's score, and matched − control.

    A row that lacks a control (NaN) counts neither for it nor for the gap to it.
    """
    metric = "accuracy" if questions[0].choices else "overlap"
    doc_ids = np.array([record.doc_id for record in records])
    lines = list(scores.items())
    lines += [(f"{MATCHED} - {name}", scores[MATCHED] - values) for name, values in lines if name != MATCHED]
    results = []
    for kind, group, mask in reported_parts(records, questions, holdout):
        for name, values in lines:
            there = mask & ~np.isnan(values)
            if there.any():
                bootstrap = DocumentBootstrap(doc_ids[there], resamples, keyed_rng(seed, "bootstrap"))
                numbers = asdict(bootstrap.estimate(values[there]))
            elif name in scores:
                numbers = {"value": None, "ci_low": None, "ci_high": None, "n": 0, "n_docs": 0}
            else:
                continue
            results.append(Result(questions[0].task, kind, split, group, name, metric, **numbers))
    return results


def reported_parts(
    records: Sequence[Record], questions: Sequence[Question], holdout: HoldoutConfig
) -> Iterator[tuple[str, str, Bool[np.ndarray, "row"]]]:
    """(question, site group, its rows) of everything that has lines of its own.

    Sites that were held out of training are not among "all" but in groups of their own, and so are held-out wordings; a
    task that was held out says so in its question. A group seen in fewer than `MIN_DOCS` documents is left out.
    """
    kind = questions[0].kind + (", held-out task" if questions[0].task in holdout.tasks else "")
    held_out = [holdout.group(record.site) for record in records]
    groups = np.array([out or DiffSite.parse(r.site).group for out, r in zip(held_out, records, strict=True)])
    trained = np.array([out is None for out in held_out])
    new_wording = np.array([question.phrasing == "heldout" for question in questions])
    for name, mask in ((kind, trained & ~new_wording), (f"{kind}, held-out wording", trained & new_wording)):
        if mask.any():
            yield name, "all", mask
    doc_ids = np.array([record.doc_id for record in records])
    for group in sorted(set(groups)):
        mask = ~new_wording & (groups == group)
        if len(set(doc_ids[mask])) >= MIN_DOCS:
            yield kind, str(group), mask


def to_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The content of eval.json."""
    return [asdict(result) for result in results]
