"""Asks an oracle the questions of a split, with every control, and scores the answers; `results` sums them up."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from diff_oracle.evaluation.controls import (
    CONTROLS,
    LINEAR_PROBE,
    MATCHED,
    PARTNER_CONTROLS,
    RECENCY,
    SITE_PRIOR,
    AskedRow,
    RowDrawer,
    control_prompts,
)
from diff_oracle.evaluation.probe import Probes
from diff_oracle.evaluation.results import MIN_DOCS, Result, reported_parts, summarise
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import Prompt
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import DiffDataset, Record, RecordSet, Split
from diff_oracle.tasks import Question, Task, Text
from diff_oracle.tasks.base import Phrasing
from diff_oracle.training.holdout import HoldoutConfig

logger = logging.getLogger(__name__)


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
    probe_rows: int = 20000
    """Training rows that the linear probe is fitted on at most; a tenth as many of `select` choose its penalties."""
    controls: list[str] = field(default_factory=lambda: list(CONTROLS))
    """Controls to ask; `matched` is always asked, `linear_probe` only on split `test`."""

    def __post_init__(self) -> None:
        for name in ("num_rows", "curve_rows", "selection_rows", "batch_size", "resamples", "probe_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} must be at least 1, got {getattr(self, name)}")
        for control in self.controls:
            if control not in CONTROLS:
                raise ValueError(f"unknown control {control!r}: choose from {', '.join(CONTROLS)}")


class Evaluator:
    """Asks the questions of a split with every control.

    The tasks must be fitted.
    """

    def __init__(
        self,
        oracle: Oracle,
        dataset: DiffDataset,
        tasks: Sequence[Task],
        config: EvaluationConfig,
        seed: int,
        holdout: HoldoutConfig | None = None,
    ) -> None:
        self._oracle, self._dataset, self._tasks = oracle, dataset, tasks
        self._config, self._seed, self._holdout = config, seed, holdout or HoldoutConfig()
        self._probes = Probes(dataset, oracle.vocabulary, config.probe_rows, self._holdout, seed)

    def evaluate(self, split: Split) -> list[Result]:
        """Scores by task, kind and site group: each control's, and matched − control, with intervals.

        Raises:
            ValueError: A task can be asked of no row, no row can be shuffled, or the rows drawn would have no line.
        """
        config, seed = self._config, self._seed
        controls = dict.fromkeys((MATCHED, *config.controls))
        if LINEAR_PROBE in controls and split != "test":
            logger.info("no linear probe on split %s, which it is chosen by", split)
            del controls[LINEAR_PROBE]
        drawn = []  # all of it before anything is asked, so that what cannot be reported is said at once
        for task, kind, rows in asked_rows(self._dataset.split(split), self._tasks, config.num_rows, seed):
            questions = [_question(task, row.record, kind, index, seed) for index, row in enumerate(rows)]
            drawn.append((task, kind, rows, [row.record for row in rows], questions))
        if not any(any(reported_parts(records, questions, self._holdout)) for *_, records, questions in drawn):
            raise ValueError(
                f"nothing of split {split} can be reported: the rows drawn are of held-out sites, each kind of which "
                f"has fewer than {MIN_DOCS} documents: raise evaluation.num_rows={config.num_rows}"
            )
        results: list[Result] = []
        for task, kind, rows, records, questions in drawn:
            scores = {}
            for control in controls:
                logger.info("asking %s/%s: %s", task.name, kind, control)
                values = self._scores(control, task, kind, rows, questions)
                # A task may have no answer by places, or no probe; but where no row has a partner, results say so.
                if control in PARTNER_CONTROLS or not np.isnan(values).all():
                    scores[control] = values
            results += summarise(records, questions, scores, split, config.resamples, seed, self._holdout)
        return results

    def _scores(
        self, control: str, task: Task, kind: str, rows: Sequence[AskedRow], questions: Sequence[Question]
    ) -> Float[np.ndarray, "row"]:
        """A score for each row; NaN where it lacks what the control needs."""
        records = [row.record for row in rows]
        answers: Sequence[Text | None]
        if control == SITE_PRIOR:
            answers = [task.prior_answer(record.site, q) for record, q in zip(records, questions, strict=True)]
        elif control == RECENCY:
            answers = [task.recency_answer(record, q) for record, q in zip(records, questions, strict=True)]
        elif control == LINEAR_PROBE:
            probe = self._probes.fit(task, kind)
            answers = [None] * len(records) if probe is None else probe.answers(records, questions)
        else:
            return self._oracle_scores(control, task, rows, questions)
        show = self._oracle.vocabulary.show
        return _score(task, questions, [None if a is None else show(a) for a in answers], self._oracle)

    def _oracle_scores(
        self, control: str, task: Task, rows: Sequence[AskedRow], questions: Sequence[Question]
    ) -> Float[np.ndarray, "row"]:
        asked = [i for i, row in enumerate(rows) if control not in PARTNER_CONTROLS or control in row.partners]
        answers: list[str | None] = [None] * len(rows)
        if asked:
            own_questions = [questions[i] for i in asked]
            prompts = control_prompts(
                control, self._oracle.prompts, [rows[i] for i in asked], own_questions, self._seed
            )
            found = answer(self._oracle, prompts, own_questions, self._config.batch_size)
            for i, text in zip(asked, found, strict=True):
                answers[i] = text
        return _score(task, questions, answers, self._oracle)


def selection_scores(
    oracle: Oracle,
    dataset: DiffDataset,
    tasks: Sequence[Task],
    num_rows: int,
    batch_size: int,
    seed: int,
    holdout: HoldoutConfig | None = None,
) -> dict[str, float]:
    """Mean scores on `num_rows` rows of split `select`, matched and shuffled: cheap enough to be asked while training.

    The tasks must be fitted. Sites that are held out of training are left out.
    """
    records, scores = dataset.split("select"), {}
    among = None if holdout is None else holdout.trained(records.sites)
    for task, kind, rows in asked_rows(records, tasks, num_rows, seed, among):
        questions = [task.question(row.record, kind, keyed_rng(seed, "select", kind, i)) for i, row in enumerate(rows)]
        for control in (MATCHED, "shuffled"):
            prompts = control_prompts(control, oracle.prompts, rows, questions, seed)
            right = _score(task, questions, answer(oracle, prompts, questions, batch_size), oracle)
            scores[f"select/{task.name}/{kind}/{control}"] = float(np.mean(right))
    return scores


def asked_rows(
    records: RecordSet,
    tasks: Sequence[Task],
    num_rows: int,
    seed: int,
    among: Bool[np.ndarray, "row"] | None = None,
) -> Iterator[tuple[Task, str, list[AskedRow]]]:
    """For each task and kind: rows that can be asked, with their partners.

    The tasks must be fitted. A kind that no row can be asked is left out, with a warning.

    Raises:
        ValueError: A task can be asked of no row, or no row can be shuffled.
    """
    drawer = RowDrawer(records, seed)
    for task in tasks:
        askable = task.askable(records)
        if among is not None:
            askable &= among[:, None]
        drawn: dict[bytes, list[AskedRow]] = {}  # most kinds are asked of the same rows
        for possible in askable.T:
            if possible.tobytes() not in drawn:
                drawn[possible.tobytes()] = drawer.draw(num_rows, possible)
        if not any(drawn.values()):
            raise ValueError(
                f"none of {len(records)} rows can be asked about {task.name}: choose other sites or more documents"
            )
        for kind, possible in zip(task.kinds, askable.T, strict=True):
            if rows := drawn[possible.tobytes()]:
                yield task, kind, rows
            else:
                logger.warning("no row can be asked %s/%s: it is left out", task.name, kind)


def selection_metric(scores: dict[str, float]) -> float:
    """What a sweep maximises: matched − shuffled on split `select`, mean over tasks and kinds."""
    matched = [value for name, value in scores.items() if name.endswith(f"/{MATCHED}")]
    shuffled = [value for name, value in scores.items() if name.endswith("/shuffled")]
    return float(np.mean(matched) - np.mean(shuffled))


def mean_score(scores: dict[str, float]) -> float:
    """What decides which state of a training is kept: the mean score of the right diffs, over tasks and kinds.

    Not the gap to `shuffled`, which is noisier, and blind to what a site always does until it is learned.
    """
    return float(np.mean([value for name, value in scores.items() if name.endswith(f"/{MATCHED}")]))


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


def _score(
    task: Task, questions: Sequence[Question], answers: Sequence[str | None], oracle: Oracle
) -> Float[np.ndarray, "row"]:
    """NaN where there is no answer."""
    return np.array(
        [
            np.nan if text is None else task.score(question, text, oracle.vocabulary)
            for question, text in zip(questions, answers, strict=True)
        ]
    )
