"""What every task has: questions about a diff, in several phrasings, and a score for an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from diff_oracle.records import LABEL_COLUMNS, Record, RecordSet
from diff_oracle.tasks.text import Text, Vocabulary

Phrasing = Literal["seen", "heldout"]


@dataclass(frozen=True)
class Question:
    """A question about one diff, and its measured answer."""

    task: str
    kind: str
    phrasing: Phrasing
    """`heldout` phrasings are never trained on."""
    text: Text
    answer: Text
    choices: tuple[Text, ...] = ()
    """The possible answers of a question scored by logits; empty for an open question."""


@runtime_checkable
class Task(Protocol):
    """One file of `diff_oracle.tasks` each."""

    name: str
    kinds: Mapping[str, float]
    """Kinds of question, each with its share of the training examples."""
    open_kinds: Sequence[str]
    """The kinds answered with a list: what training begins with, the first one alone where `one_list_first` asks."""
    signed: bool
    """Whether −diff has an answer too: the same labels with their ends swapped."""
    config: Any
    """A dataclass; its fields are the keys of conf/task/NAME.yaml."""

    def fit(self, records: RecordSet, vocabulary: Vocabulary) -> None:
        """Learns from the training rows what each site usually does; before anything is asked."""
        ...

    def kinds_for(self, record: Record) -> Sequence[str]:
        """The kinds that can be asked of a record: some have no label, or none that answers a kind."""
        ...

    def askable(self, records: RecordSet) -> Bool[np.ndarray, "row kind"]:
        """`kinds_for` of every row, in the order of `kinds`."""
        ...

    def top_answer(self, labels: Mapping[str, Any]) -> int | str | None:
        """A row's headline: the id of one token, or the words that stand where no token does; None without a label.

        Needs no `fit`.
        """
        ...

    def targets(self, record: Record, kind: str) -> tuple[int | str, ...]:
        """What a probe without language learns to tell for a kind: the row's right tokens by id, or its class by name.

        Empty where the row has no label for it.
        """
        ...

    def question(
        self, record: Record, kind: str, rng: np.random.Generator, phrasing: Phrasing = "seen", sign: int = 1
    ) -> Question:
        """A question of a kind about `sign` times the record's diff; the kind is one of `kinds_for`."""
        ...

    def score(self, question: Question, answer: str, vocabulary: Vocabulary) -> float:
        """How right an answer is, from 0 to 1."""
        ...

    def prior_answer(self, site: str, question: Question) -> Text:
        """The best answer that knows the site and the training rows but not the diff."""
        ...

    def recency_answer(self, record: Record, question: Question) -> Text | None:
        """What the places of the tokens in the text suggest, without the diff; None where they suggest nothing."""
        ...


@runtime_checkable
class Standard(Protocol):
    """A task with questions that need no training rows: what explaining a text of one's own asks."""

    def standard_questions(self, record: Record, vocabulary: Vocabulary) -> list[Question]:
        """Those that the record's labels answer, always in the same wording, one that training has; needs no `fit`."""
        ...


def check_kind(kind: str, kinds: Mapping[str, float]) -> None:
    """Makes sure that a task has a kind of question.

    Raises:
        ValueError: It has not.
    """
    if kind not in kinds:
        raise ValueError(f"unknown question kind {kind!r}: choose from {', '.join(kinds)}")


def check_askable(task: str, record: Record, kind: str, possible: Sequence[str], sign: int) -> None:
    """Makes sure that the labels of an unsigned task answer a question.

    Raises:
        ValueError: The record cannot be asked the kind, or the question is about −diff.
    """
    if sign != 1:
        raise ValueError(f"labels of {task} say nothing about -diff, got sign {sign}: ask with sign=1")
    if kind not in possible:
        raise ValueError(
            f"{task} cannot ask {kind!r} of this record of {record.site}: "
            f"its labels answer {', '.join(possible) or 'nothing'}"
        )


def label(labels: Mapping[str, Any], task: str, name: str) -> Any:
    """A row's label.

    Raises:
        ValueError: The dataset was not measured for the task.
    """
    if name not in labels:
        raise ValueError(
            f"the record has no {name}: its dataset was not measured for {task}, build it with +task={task}"
        )
    return labels[name]


def label_column(records: RecordSet, task: str, name: str) -> np.ndarray | list[np.ndarray]:
    """A whole column of labels, as numpy.

    Raises:
        ValueError: The dataset was not measured for the task.
    """
    try:
        return records.column(name)
    except KeyError as error:
        raise ValueError(
            f"the dataset has no {name}: it was not measured for {task}, build it with +task={task}"
        ) from error


def label_rows(records: RecordSet, task: str) -> Iterator[dict[str, Any]]:
    """Every row's labels, read without the vectors; lists as Python's, which are faster to walk through."""
    columns = {name: label_column(records, task, name) for name in LABEL_COLUMNS[task]}
    plain = [map(np.ndarray.tolist, column) if isinstance(column, list) else column for column in columns.values()]
    for values in zip(*plain, strict=True):
        yield dict(zip(columns, values, strict=True))
