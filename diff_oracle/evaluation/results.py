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

MIN_GROUP_DOCS = 10  # resampling fewer documents gives intervals that are too narrow to be believed


@dataclass(frozen=True)
class Result:
    """One line of eval.json."""

    task: str
    question: str
    split: str
    site_group: str
    control: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
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

    A row that lacks a control (NaN) counts neither for it nor for the gap to it. A site group seen in fewer than
    `MIN_GROUP_DOCS` documents has no line of its own. Sites that were held out of training are not among "all" but
    have lines of their own, and so have held-out wordings; a task that was held out says so in every line.
    """
    metric = "accuracy" if questions[0].choices else "overlap"
    doc_ids = np.array([record.doc_id for record in records])
    lines = list(scores.items())
    lines += [(f"{MATCHED} - {name}", scores[MATCHED] - values) for name, values in lines if name != MATCHED]
    results = []
    for kind, group, mask in _parts(records, questions, holdout):
        for name, values in lines:
            there = mask & ~np.isnan(values)
            if not there.any() or (group != "all" and len(set(doc_ids[there])) < MIN_GROUP_DOCS):
                continue
            bootstrap = DocumentBootstrap(doc_ids[there], resamples, keyed_rng(seed, "bootstrap"))
            estimate = bootstrap.estimate(values[there])
            results.append(Result(questions[0].task, kind, split, group, name, metric, **asdict(estimate)))
    return results


def _parts(
    records: Sequence[Record], questions: Sequence[Question], holdout: HoldoutConfig
) -> Iterator[tuple[str, str, Bool[np.ndarray, "row"]]]:
    """(question, site group, its rows)."""
    kind = questions[0].kind + (", held-out task" if questions[0].task in holdout.tasks else "")
    held_out = [holdout.group(record.site) for record in records]
    groups = np.array([out or DiffSite.parse(r.site).group for out, r in zip(held_out, records, strict=True)])
    trained = np.array([out is None for out in held_out])
    new_wording = np.array([question.phrasing == "heldout" for question in questions])
    yield kind, "all", trained & ~new_wording
    yield f"{kind}, held-out wording", "all", trained & new_wording
    for group in sorted(set(groups)):
        yield kind, str(group), ~new_wording & (groups == group)


def to_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The content of eval.json."""
    return [asdict(result) for result in results]
