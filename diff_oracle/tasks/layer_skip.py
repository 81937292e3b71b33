"""Task `layer_skip`: what would the model say next, had this diff not been added to its residual?

Five kinds of question. `gained` and `lost` ask for the tokens whose probability rises or falls most, the latter each
behind a minus; `NO_CHANGE` is the answer where KL(base || skipped) is below `small_kl`. `size` asks whether that KL is
small, medium or large. `yes_no` asks about a token, one that gains or one that gains in other rows of the site
(`draw_pair`). `top` sets the token that was on top against the best other one of the skipped run: does that one win, or
does the top stay the `SAME`? It is asked of close calls alone, as many of either outcome at every site, so that
neither the site nor a text with an obvious next token tells the answer. Nothing is known about −diff.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool

from diff_oracle.records import Record, RecordSet
from diff_oracle.tasks.base import Phrasing, Question, check_askable, check_kind, label, label_rows
from diff_oracle.tasks.claims import NO_CHANGE
from diff_oracle.tasks.text import MINUS, Text, Vocabulary, token_list
from diff_oracle.tasks.usual import (
    NO,
    Usual,
    best_constant,
    draw_pair,
    draw_wording,
    fill,
    pair_phrasings,
    pair_prior,
    pair_question,
    score_list,
)

SAME = "same"
SIZES = ("small", "medium", "large")
MARKS = {"gained": "", "lost": MINUS}

# Short: every word of a question is paid for at every training step. {0} stands for a token, set in quotes.
GAINED: dict[Phrasing, tuple[str, ...]] = {
    "seen": ("If skipped, more likely?", "Skipped: what gains?", "Without it, more likely?", "Skipped: gains?"),
    "heldout": ("Without it, what gains?", "If skipped, what rises?"),
}
PHRASINGS: dict[str, dict[Phrasing, tuple[str, ...]]] = {
    "gained": GAINED,
    "lost": {
        "seen": ("If skipped, less likely?", "Skipped: what loses?", "Without it, less likely?", "Skipped: losses?"),
        "heldout": ("Without it, what loses?", "If skipped, what falls?"),
    },
    "yes_no": pair_phrasings(GAINED)["yes_no"],
    "top": {
        "seen": ('"{0}" or same. If skipped, first?', '"{0}" or same. Without it, on top?', '"{0}" or same. Top?'),
        "heldout": ('"{0}" or same. If skipped, on top?',),
    },
    "size": {
        "seen": ("If skipped, how much changes?", "Skipped: how large a change?", "Size of the change?"),
        "heldout": ("Without it, how much changes?",),
    },
}

# Shares of the training examples.
KINDS = {"gained": 0.25, "lost": 0.2, "yes_no": 0.2, "top": 0.2, "size": 0.15}


@dataclass
class LayerSkipConfig:
    """What is measured, and which change is small or large."""

    k: int = 10
    """Tokens kept of each run, and at each end of their difference."""
    scope: str = "position"
    """Where the diff is taken out: at its `position`, or in the whole `sequence`."""
    num_asked: int = 3
    """Tokens that an open question asks for at most."""
    small_kl: float = 0.02
    """KL(base || skipped) in nats below which nothing has changed."""
    large_kl: float = 0.3
    """KL from which a change is large."""

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(f"tasks.layer_skip.k must be at least 2, got {self.k}")
        if not 1 <= self.num_asked <= self.k:
            raise ValueError(f"tasks.layer_skip.num_asked must be 1…k = {self.k}, got {self.num_asked}")
        if self.scope not in ("position", "sequence"):
            raise ValueError(f"unknown tasks.layer_skip.scope {self.scope!r}: choose from position, sequence")
        if not 0 < self.small_kl < self.large_kl:
            raise ValueError(
                f"tasks.layer_skip.small_kl must be above 0 and below large_kl = {self.large_kl}, got {self.small_kl}"
            )


@dataclass(frozen=True)
class Contest:
    """Who is on top of the skipped run: the token that was, or the best other one?"""

    challenger: int
    """The best token of the skipped run, beside the base run's top."""
    wins: bool
    """Whether it comes out on top."""
    margin: float
    """By how much probability the winner is ahead."""

    @classmethod
    def of(cls, labels: Mapping[str, Any]) -> Contest:
        """Reads a row's labels; a top of the base run that was not kept for the skipped one has lost all."""
        top = int(labels["base_ids"][0])
        skipped = {int(i): float(p) for i, p in zip(labels["skipped_ids"], labels["skipped_probs"], strict=True)}
        challenger = next(token for token in skipped if token != top)
        wins = int(labels["skipped_ids"][0]) != top
        return cls(challenger, wins, abs(skipped[challenger] - skipped.get(top, 0.0)))


def changed_tokens(labels: Mapping[str, Any], end: str) -> list[int]:
    """The tokens that truly gain, or lose, among those kept at that end; strongest first."""
    rising = 1 if end == "gained" else -1
    pairs = zip(labels[f"{end}_ids"], labels[f"{end}_deltas"], strict=True)
    return [int(token) for token, delta in pairs if delta * rising > 0]


@dataclass(frozen=True)
class Habit:
    """What the training rows of a site hold."""

    gained: Usual
    """Tokens that gain where something changes."""
    winners: Usual
    """Challengers that win in close calls, each with how often it does."""
    closest: Mapping[bool, float]
    """Largest margin of a close call that is won, and of one that is lost."""
    answers: Mapping[str, tuple[int, ...]]
    """The best constant answer to each open question; empty for `NO_CHANGE`."""
    size: str
    """The commonest size."""


@dataclass
class LayerSkip:
    """Questions on the counterfactual run, and their scores.

    Attributes:
        habits: Set by `fit`: each site's habit; under None, that of all sites together.
    """

    config: LayerSkipConfig = field(default_factory=LayerSkipConfig)
    habits: dict[str | None, Habit] = field(default_factory=dict, init=False, repr=False)
    _no_id: int = field(default=-1, init=False, repr=False)
    _same_id: int = field(default=-1, init=False, repr=False)
    name = "layer_skip"
    kinds = MappingProxyType(KINDS)
    open_kinds = ("gained", "lost")
    signed = False

    def fit(self, records: RecordSet, vocabulary: Vocabulary) -> None:
        """Learns from the training rows what each site usually does.

        Raises:
            ValueError: No row has a label.
        """
        self._no_id, self._same_id = vocabulary.encode((NO,))[0], vocabulary.encode((SAME,))[0]
        parts: dict[str | None, list[Mapping[str, Any]]] = defaultdict(list)
        for site, labels in zip(records.sites, label_rows(records, self.name), strict=True):
            if not np.isnan(labels["kl"]):
                parts[site].append(labels)
                parts[None].append(labels)
        if not parts:
            raise ValueError("no training row has a layer_skip label: build the dataset again with +task=layer_skip")
        self.habits = {site: self._habit(rows) for site, rows in parts.items()}

    def _habit(self, rows: Sequence[Mapping[str, Any]]) -> Habit:
        asked = self.config.num_asked
        changed = [labels for labels in rows if self._changes(labels)]
        gained = [np.array(changed_tokens(labels, "gained"), dtype=np.int64) for labels in changed]
        contests = [Contest.of(labels) for labels in changed]
        closest = _closest(contests)
        close = [contest for contest in contests if contest.margin <= closest[contest.wins]]
        winners = [np.array([c.challenger] if c.wins else [], dtype=np.int64) for c in close]
        answers = {end: [self._answer(labels, end) for labels in rows] for end in self.open_kinds}
        return Habit(
            Usual.of(gained, asked),
            Usual.within(winners, [np.array([contest.challenger]) for contest in close]),
            closest,
            {end: best_constant([a for a in answers[end] if a is not None], asked) for end in self.open_kinds},
            Counter(self._size(labels) for labels in rows).most_common(1)[0][0],
        )

    def kinds_for(self, record: Record) -> Sequence[str]:
        """Where nothing changes, only the lists, whose answer says so, and the size.

        Raises:
            ValueError: The record was not measured for this task.
            RuntimeError: `fit` was not called.
        """
        label(record.labels, self.name, "kl")
        return self._kinds_for(record.site, record.labels)

    def askable(self, records: RecordSet) -> Bool[np.ndarray, "row kind"]:
        """`kinds_for` of every row, in the order of `kinds`."""
        rows = zip(records.sites, label_rows(records, self.name), strict=True)
        possible = [self._kinds_for(site, labels) for site, labels in rows]
        return np.array([[kind in kinds for kind in self.kinds] for kinds in possible]).reshape(-1, len(self.kinds))

    def _kinds_for(self, site: str, labels: Mapping[str, Any]) -> Sequence[str]:
        self._check_fitted()
        if np.isnan(labels["kl"]):
            return ()
        kinds = [end for end in self.open_kinds if self._answer(labels, end) is not None] + ["size"]
        if self._changes(labels):
            contest = Contest.of(labels)
            close = contest.margin <= self.habits.get(site, self.habits[None]).closest[contest.wins]
            kinds += ["top"] if close and contest.challenger != self._same_id else []
            kinds += ["yes_no"] if all(self._ends(labels)) else []
        return tuple(kinds)

    def top_answer(self, labels: Mapping[str, Any]) -> int | str | None:
        """The skipped run's top token, or `NO_CHANGE` where it is the base run's too."""
        if np.isnan(label(labels, self.name, "kl")):
            return None
        base, skipped = int(labels["base_ids"][0]), int(labels["skipped_ids"][0])
        return NO_CHANGE if base == skipped else skipped

    def targets(self, record: Record, kind: str) -> tuple[int | str, ...]:
        """The size's name; whether the top stays the `SAME`, or nothing of it; else what gains or loses."""
        possible = self.kinds_for(record)
        if kind == "size":
            return (self._size(record.labels),) if kind in possible else ()
        if kind == "top":
            return (SAME,) if kind in possible and not Contest.of(record.labels).wins else ()
        if not possible:
            return ()
        end = "lost" if kind == "lost" else "gained"
        return tuple(changed_tokens(record.labels, end)) if self._changes(record.labels) else (NO_CHANGE,)

    def question(
        self, record: Record, kind: str, rng: np.random.Generator, phrasing: Phrasing = "seen", sign: int = 1
    ) -> Question:
        """A question of a kind about the record's diff.

        Raises:
            ValueError: The kind is unknown, the record's labels do not answer it, or the sign is negative.
            RuntimeError: `fit` was not called.
        """
        check_kind(kind, self.kinds)
        check_askable(self.name, record, kind, self.kinds_for(record), sign)
        wording = draw_wording(PHRASINGS[kind][phrasing], rng)
        if kind in (*MARKS, "size"):
            return self._plain_question(record.labels, kind, phrasing, wording)
        if kind == "top":
            contest = Contest.of(record.labels)
            token = contest.challenger
            winner = (token,) if contest.wins else (SAME,)
            return Question(self.name, kind, phrasing, fill(wording, token), winner, ((token,), (SAME,)))
        return pair_question(self.name, kind, phrasing, wording, self._pair(record, rng), rng)

    def standard_questions(self, record: Record, vocabulary: Vocabulary) -> list[Question]:
        """The two lists, where there is something to name or nothing changes, and the size.

        Raises:
            ValueError: The record was not measured for this task.
        """
        if np.isnan(label(record.labels, self.name, "kl")):
            return []
        kinds = [end for end in self.open_kinds if self._answer(record.labels, end) is not None] + ["size"]
        return [self._plain_question(record.labels, kind, "seen", PHRASINGS[kind]["seen"][0]) for kind in kinds]

    def _plain_question(self, labels: Mapping[str, Any], kind: str, phrasing: Phrasing, wording: str) -> Question:
        """A question that the row's own labels make."""
        if kind == "size":
            choices = tuple((size,) for size in SIZES)
            return Question(self.name, kind, phrasing, (wording,), (self._size(labels),), choices)
        named = self._answer(labels, kind)
        answer = token_list(named, MARKS[kind]) if named else (NO_CHANGE,)
        return Question(self.name, kind, phrasing, (wording,), answer)

    def score(self, question: Question, answer: str, vocabulary: Vocabulary) -> float:
        """Open questions: the share of right tokens among those named or wanted, whichever are more.

        Questions with choices, and `NO_CHANGE`: 1 if the answer is right, else 0.
        """
        gold = vocabulary.show(question.answer)
        return float(answer == gold) if question.choices else score_list(answer, gold, NO_CHANGE)

    def prior_answer(self, site: str, question: Question) -> Text:
        """The site's best constant answer; of a token, whether it oftener gains, or wins, than not.

        A site that no training row has is answered by all sites together.

        Raises:
            RuntimeError: `fit` was not called.
        """
        self._check_fitted()
        habit = self.habits.get(site, self.habits[None])
        if question.kind in MARKS:
            named = habit.answers[question.kind]
            return token_list(named, MARKS[question.kind]) if named else (NO_CHANGE,)
        if question.kind == "size":
            return (habit.size,)
        if question.kind == "yes_no":
            return pair_prior(question, habit.gained)
        token = next(piece for piece in question.text if isinstance(piece, int))
        return (token,) if habit.winners.share([token])[0] > 0.5 else (SAME,)

    def recency_answer(self, record: Record, question: Question) -> Text | None:
        """None: it is not asked about places."""
        return None

    def _changes(self, labels: Mapping[str, Any]) -> bool:
        return bool(labels["kl"] >= self.config.small_kl)

    def _size(self, labels: Mapping[str, Any]) -> str:
        return SIZES[int(self._changes(labels)) + int(labels["kl"] >= self.config.large_kl)]

    def _answer(self, labels: Mapping[str, Any], end: str) -> list[int] | None:
        """The tokens to be named, none where nothing changes; None where something does, but no nameable token."""
        if not self._changes(labels):
            return []
        return changed_tokens(labels, end)[: self.config.num_asked] or None

    def _ends(self, labels: Mapping[str, Any]) -> list[list[int]]:
        """What gains and what loses, without the word "no", which is never asked about."""
        return [[t for t in changed_tokens(labels, end) if t != self._no_id] for end in ("gained", "lost")]

    def _pair(self, record: Record, rng: np.random.Generator) -> tuple[int, int]:
        """A token that gains, and one that does not but often does at the site; else one that loses in this row."""
        gained, lost = self._ends(record.labels)
        habit = self.habits.get(record.site)
        pair = draw_pair(gained, habit.gained if habit else None, rng, barred=[self._no_id])
        return pair or (int(rng.choice(gained)), int(rng.choice(lost)))

    def _check_fitted(self) -> None:
        if not self.habits:
            raise RuntimeError(f"task {self.name} knows no site yet: call task.fit(dataset.split('train')) first")


def _closest(contests: Sequence[Contest]) -> dict[bool, float]:
    """Up to which margin a contest won, or lost, is a close call: as many of either are."""
    margins = {wins: sorted(c.margin for c in contests if c.wins == wins) for wins in (True, False)}
    fewest = min(map(len, margins.values()))
    return {wins: values[fewest - 1] if fewest else -1.0 for wins, values in margins.items()}
