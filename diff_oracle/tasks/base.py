"""What every task has: questions about a diff, in several phrasings, and a score for an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from diff_oracle.records import Record, RecordSet
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
    config: Any
    """A dataclass; its fields are the keys of conf/task/NAME.yaml."""

    def fit(self, records: RecordSet, vocabulary: Vocabulary) -> None:
        """Learns from the training rows what each site usually does; before anything is asked."""
        ...

    def question(
        self, record: Record, kind: str, rng: np.random.Generator, phrasing: Phrasing = "seen", sign: int = 1
    ) -> Question:
        """A question of a kind about `sign` times the record's diff."""
        ...

    def score(self, question: Question, answer: str, vocabulary: Vocabulary) -> float:
        """How right an answer is, from 0 to 1."""
        ...

    def prior_answer(self, site: str, question: Question) -> Text:
        """The best answer that knows the site and the training rows but not the diff."""
        ...
