"""Task `logit_lens`: which tokens does this diff make more or less likely, read directly through the unembedding?

Four kinds of question. `promoted` and `suppressed` ask for the tokens whose logits the diff moves most up or down,
those that go down each behind a minus (`MARKS`); `yes_no` and `choice` ask whether, or which, token is among the k that
go up most. The token that is not is one that the same site often raises in other rows, drawn so that knowing the site
does not help (`draw_pair`). Yes is said by repeating the token: the unembedding then compares it with the diff,
as it does for a list, where the word "yes" would need that comparison within the network. The labels of −diff are
those of diff with the ends swapped, so every diff gives a second, sign-flipped pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from diff_oracle.records import Record, RecordSet
from diff_oracle.tasks.base import Phrasing, Question, check_kind, label, label_column
from diff_oracle.tasks.text import MINUS, Text, Vocabulary, parse_token_list, token_list
from diff_oracle.tasks.usual import NO, Usual, draw_pair, draw_wording, pair_phrasings, pair_prior, pair_question

End = Literal["promoted", "suppressed"]

# Short: every word of a question is paid for at every training step. {0} and {1} stand for tokens, set in quotes.
LISTS: dict[str, dict[Phrasing, tuple[str, ...]]] = {
    "promoted": {
        "seen": ("Raises?", "More likely?", "Adds what?", "Tokens added?", "Tokens raised?", "What is more likely?"),
        "heldout": ("Raised tokens?", "What is raised?"),
    },
    "suppressed": {
        "seen": (
            "Lowers?",
            "Less likely?",
            "Removes what?",
            "Tokens removed?",
            "Tokens lowered?",
            "What is less likely?",
        ),
        "heldout": ("Lowered tokens?", "What is lowered?"),
    },
}
PHRASINGS = LISTS | pair_phrasings(LISTS["promoted"])


# What stands before each token of a list. The minus says which end of the diff is named, so that the token behind it
# can be read off the diff without looking back at the question.
MARKS = {"promoted": "", "suppressed": MINUS}

# Shares of the training examples.
KINDS = {"promoted": 0.25, "suppressed": 0.25, "yes_no": 0.25, "choice": 0.25}


@dataclass
class LogitLensConfig:
    """How many tokens are measured and asked for."""

    k: int = 10
    """Tokens kept at each end of the direct logit shift: what yes/no and choice questions call most."""
    num_asked: int = 5
    """Tokens that an open question asks for."""

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(f"tasks.logit_lens.k must be at least 2, got {self.k}")
        if not 1 <= self.num_asked <= self.k:
            raise ValueError(f"tasks.logit_lens.num_asked must be 1…k = {self.k}, got {self.num_asked}")


@dataclass
class LogitLens:
    """Questions on the direct logit shift, and their scores.

    Attributes:
        usual: Set by `fit`: what each site usually holds at each end; under site None, all sites together.
    """

    config: LogitLensConfig = field(default_factory=LogitLensConfig)
    usual: dict[tuple[str | None, End], Usual] = field(default_factory=dict, init=False, repr=False)
    _no_id: int = field(default=-1, init=False, repr=False)
    name = "logit_lens"
    kinds = MappingProxyType(KINDS)
    open_kinds = ("promoted", "suppressed")
    signed = True

    def fit(self, records: RecordSet, vocabulary: Vocabulary) -> None:
        """Learns from the training rows what each site usually does."""
        self.usual.clear()
        self._no_id = vocabulary.encode((NO,))[0]
        sites = np.array(records.sites)
        ends: tuple[End, End] = ("promoted", "suppressed")
        for end in ends:
            lists = np.stack(list(label_column(records, self.name, f"{end}_ids")))
            self.usual[None, end] = Usual.of(list(lists), self.config.num_asked)
            for site in np.unique(sites):
                self.usual[str(site), end] = Usual.of(list(lists[sites == site]), self.config.num_asked)

    def kinds_for(self, record: Record) -> Sequence[str]:
        """Every kind: all sites have a direct logit shift."""
        return tuple(self.kinds)

    def askable(self, records: RecordSet) -> Bool[np.ndarray, "row kind"]:
        """Every kind of every row."""
        return np.ones((len(records), len(self.kinds)), dtype=bool)

    def top_answer(self, labels: Mapping[str, Any]) -> int | str | None:
        """The token that the diff raises most."""
        return int(label(labels, self.name, "promoted_ids")[0])

    def targets(self, record: Record, kind: str) -> tuple[int | str, ...]:
        """The k tokens at an end; yes/no and forced choice ask about the promoted ones."""
        end = "suppressed" if kind == "suppressed" else "promoted"
        return tuple(label(record.labels, self.name, f"{end}_ids").tolist())

    def question(
        self, record: Record, kind: str, rng: np.random.Generator, phrasing: Phrasing = "seen", sign: int = 1
    ) -> Question:
        """A question of a kind about `sign` times the record's diff.

        Raises:
            ValueError: The kind is unknown, or the record was not measured for this task.
            RuntimeError: `fit` was not called.
        """
        check_kind(kind, self.kinds)
        self._check_fitted()
        ends = [label(record.labels, self.name, f"{end}_ids").tolist() for end in ("promoted", "suppressed")]
        promoted, suppressed = ends if sign > 0 else ends[::-1]
        wording = draw_wording(PHRASINGS[kind][phrasing], rng)
        if kind in self.open_kinds:
            return self._list_question(promoted if kind == "promoted" else suppressed, kind, phrasing, wording)
        usual = self.usual.get((record.site, "promoted" if sign > 0 else "suppressed"))
        return pair_question(self.name, kind, phrasing, wording, self._pair(promoted, suppressed, usual, rng), rng)

    def standard_questions(self, record: Record, vocabulary: Vocabulary) -> list[Question]:
        """The two lists.

        Raises:
            ValueError: The record was not measured for this task.
        """
        return [
            self._list_question(
                label(record.labels, self.name, f"{end}_ids").tolist(), end, "seen", PHRASINGS[end]["seen"][0]
            )
            for end in self.open_kinds
        ]

    def _list_question(self, tokens: Sequence[int], kind: str, phrasing: Phrasing, wording: str) -> Question:
        answer = token_list(tokens[: self.config.num_asked], MARKS[kind])
        return Question(self.name, kind, phrasing, (wording,), answer)

    def score(self, question: Question, answer: str, vocabulary: Vocabulary) -> float:
        """Open questions: the share of the asked tokens that are named, with their mark (naming more does not help).

        Questions with choices: 1 if the answer is the right choice, else 0.
        """
        gold = vocabulary.show(question.answer)
        if question.choices:
            return float(answer == gold)
        wanted = parse_token_list(gold)
        named = parse_token_list(answer)[: len(wanted)]
        return len(set(named) & set(wanted)) / len(wanted)

    def prior_answer(self, site: str, question: Question) -> Text:
        """Open: the site's commonest tokens. Else by how often the site's training rows hold the token.

        A site that no training row has is answered by all sites together.

        Raises:
            RuntimeError: `fit` was not called.
        """
        self._check_fitted()
        end: End = "suppressed" if question.kind == "suppressed" else "promoted"
        usual = self.usual.get((site, end), self.usual[None, end])
        if not question.choices:
            return token_list(usual.commonest, MARKS[question.kind])
        return pair_prior(question, usual)

    def recency_answer(self, record: Record, question: Question) -> Text | None:
        """None: it is not asked about places."""
        return None

    def _pair(
        self, promoted: Sequence[int], suppressed: Sequence[int], usual: Usual | None, rng: np.random.Generator
    ) -> tuple[int, int]:
        """A token of the row's k, and one outside them that the site often has there.

        Where the training rows offer no such pair (a site that they lack), the second comes from the other end of the
        row's own shift. The token that is the word "no" is never drawn.
        """
        promoted = [token for token in promoted if token != self._no_id]
        suppressed = [token for token in suppressed if token != self._no_id]
        pair = draw_pair(promoted, usual, rng, barred=[self._no_id])
        return pair or (int(rng.choice(promoted)), int(rng.choice(suppressed)))

    def _check_fitted(self) -> None:
        if not self.usual:
            raise RuntimeError(f"task {self.name} knows no site yet: call task.fit(dataset.split('train')) first")
