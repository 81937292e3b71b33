"""Asks an oracle the questions of a split, with every control, and scores the answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from diff_oracle.evaluation.bootstrap import DocumentBootstrap
from diff_oracle.evaluation.controls import CONTROLS, MATCHED, SITE_PRIOR, control_prompts, draw_rows
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import Prompt
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import DiffDataset, Record, RecordSet, Split
from diff_oracle.subject.sites import DiffSite
from diff_oracle.tasks import Question, Task
from diff_oracle.tasks.base import Phrasing

logger = logging.getLogger(__name__)

MIN_GROUP_DOCS = 10  # resampling fewer documents gives intervals that are too narrow to be believed


@dataclass
class EvaluationConfig:
    """How much is asked."""

    num_rows: int = 600
    """Rows of split `test` for a kind of question; a third of them is asked in held-out wordings."""
    curve_rows: int = 96
    """Rows of split `select` for a point of the learning curve."""
    selection_rows: int = 300
    """Rows of split `select` for the selection metric after training."""
    batch_size: int = 128
    """Prompts answered at once."""
    resamples: int = 2000
    """Bootstrap resamples of the documents."""
    controls: list[str] = field(default_factory=lambda: list(CONTROLS))
    """Controls to ask; `matched` is always asked."""

    def __post_init__(self) -> None:
        for name in ("num_rows", "curve_rows", "selection_rows", "batch_size", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} must be at least 1, got {getattr(self, name)}")
        for control in self.controls:
            if control not in CONTROLS:
                raise ValueError(f"unknown control {control!r}: choose from {', '.join(CONTROLS)}")


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


def evaluate(
    oracle: Oracle, dataset: DiffDataset, tasks: Sequence[Task], config: EvaluationConfig, split: Split, seed: int
) -> list[Result]:
    """Scores by task, kind and site group: each control's, and matched − control, with intervals.

    The tasks must be fitted. A site group seen in fewer than `MIN_GROUP_DOCS` documents has no line of its own.
    """
    controls = [MATCHED, *(c for c in config.controls if c != MATCHED)]
    results: list[Result] = []
    for task, kind, chosen, partners in asked_rows(dataset.split(split), tasks, config.num_rows, seed):
        questions = [_question(task, record, kind, index, seed) for index, record in enumerate(chosen)]
        scores: dict[str, Float[np.ndarray, "row"]] = {}
        for control in controls:
            logger.info("asking %s/%s: %s", task.name, kind, control)
            if control == SITE_PRIOR:
                answers = [
                    oracle.vocabulary.show(task.prior_answer(r.site, q)) for r, q in zip(chosen, questions, strict=True)
                ]
            else:
                prompts = control_prompts(control, oracle.prompts, chosen, partners, questions, seed)
                answers = answer(oracle, prompts, questions, config.batch_size)
            scores[control] = np.array(
                [task.score(q, a, oracle.vocabulary) for q, a in zip(questions, answers, strict=True)]
            )
        results += _summarise(task.name, kind, split, chosen, questions, scores, config.resamples, seed)
    return results


def selection_scores(
    oracle: Oracle, dataset: DiffDataset, tasks: Sequence[Task], num_rows: int, batch_size: int, seed: int
) -> dict[str, float]:
    """Mean scores on `num_rows` rows of split `select`, matched and shuffled: cheap enough to be asked while training.

    The tasks must be fitted.
    """
    scores = {}
    for task, kind, chosen, partners in asked_rows(dataset.split("select"), tasks, num_rows, seed):
        questions = [task.question(r, kind, keyed_rng(seed, "select", kind, i)) for i, r in enumerate(chosen)]
        for control in (MATCHED, "shuffled"):
            prompts = control_prompts(control, oracle.prompts, chosen, partners, questions, seed)
            answers = answer(oracle, prompts, questions, batch_size)
            right = [task.score(q, a, oracle.vocabulary) for q, a in zip(questions, answers, strict=True)]
            scores[f"select/{task.name}/{kind}/{control}"] = float(np.mean(right))
    return scores


def asked_rows(
    records: RecordSet, tasks: Sequence[Task], num_rows: int, seed: int
) -> Iterator[tuple[Task, str, list[Record], list[Record]]]:
    """For each task and kind: rows that can be asked, and for each a row of its site in another document.

    The tasks must be fitted. A kind that no row can be asked is left out, with a warning.

    Raises:
        ValueError: A task can be asked of no row.
    """
    for task in tasks:
        askable = task.askable(records)
        if not askable.any():
            raise ValueError(
                f"none of {len(records)} rows can be asked about {task.name}: choose other sites or more documents"
            )
        drawn: dict[bytes, tuple[list[Record], list[Record]]] = {}  # most kinds are asked of the same rows
        for kind, possible in zip(task.kinds, askable.T, strict=True):
            if possible.tobytes() not in drawn:
                rows, partners = draw_rows(records, num_rows, seed, possible)
                drawn[possible.tobytes()] = (records.take(rows), records.take(partners)) if len(rows) else ([], [])
            chosen, others = drawn[possible.tobytes()]
            if chosen:
                yield task, kind, chosen, others
            else:
                logger.warning("no row can be asked %s/%s: it is left out", task.name, kind)


def selection_metric(scores: dict[str, float]) -> float:
    """What a sweep maximises: matched − shuffled on split `select`, mean over tasks and kinds."""
    matched = [value for name, value in scores.items() if name.endswith(f"/{MATCHED}")]
    shuffled = [value for name, value in scores.items() if name.endswith("/shuffled")]
    return float(np.mean(matched) - np.mean(shuffled))


def answer(oracle: Oracle, prompts: Sequence[Prompt], questions: Sequence[Question], batch_size: int) -> list[str]:
    """Answers in canonical form: by the choices' logits where there are choices, else generated."""
    if questions[0].choices:
        log_probs = oracle.choice_log_probs(prompts, [q.choices for q in questions], batch_size)
        best = [int(row.argmax()) for row in log_probs]
        return [oracle.vocabulary.show(q.choices[i]) for q, i in zip(questions, best, strict=True)]
    longest = max(len(oracle.vocabulary.encode(q.answer)) for q in questions)
    return oracle.generate(prompts, max_new_tokens=longest + 1, batch_size=batch_size)


def _question(task: Task, record: Record, kind: str, index: int, seed: int) -> Question:
    phrasing: Phrasing = "heldout" if index % 3 == 2 else "seen"
    return task.question(record, kind, keyed_rng(seed, "evaluation", kind, index), phrasing)


def _summarise(
    task: str,
    kind: str,
    split: Split,
    records: Sequence[Record],
    questions: Sequence[Question],
    scores: dict[str, Float[np.ndarray, "row"]],
    resamples: int,
    seed: int,
) -> list[Result]:
    groups = np.array([DiffSite.parse(record.site).group for record in records])
    heldout = np.array([question.phrasing == "heldout" for question in questions])
    doc_ids = np.array([record.doc_id for record in records])
    metric = "accuracy" if questions[0].choices else "precision"
    parts = [(kind, "all", ~heldout), (f"{kind}, held-out wording", "all", heldout)]
    parts += [(kind, str(group), ~heldout & (groups == group)) for group in sorted(set(groups))]
    results = []
    for question, group, mask in parts:
        if not mask.any() or (group != "all" and len(set(doc_ids[mask])) < MIN_GROUP_DOCS):
            continue
        bootstrap = DocumentBootstrap(doc_ids[mask], resamples, keyed_rng(seed, "bootstrap"))
        for control, values in scores.items():
            lines = [(control, values)]
            if control != MATCHED:
                lines.append((f"{MATCHED} - {control}", scores[MATCHED] - values))
            for name, line in lines:
                estimate = bootstrap.estimate(line[mask])
                results.append(Result(task, question, split, group, name, metric, **asdict(estimate)))
    return results


def to_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The content of eval.json."""
    return [asdict(result) for result in results]
