"""Task `attention`: which tokens does a site read, when it writes this diff?

Four kinds of question. `attended` asks for the tokens that carry at least `min_share` of the weight that is not the
sink's (position 0), repeated tokens summed over the positions that were kept; where the sink has nearly all, the answer
is `ONLY_SINK`. `yes_no` and `choice` set such a token against one of the same context that carries little: both stand
in the text, and how often the site attends to either, where it could, does not tell which (`draw_pair`). `distance`
asks how far back the most attended position lies. Recency is not balanced: heads read what is near, and of a pair the
token that stands later is right more often than not, which a reader that recovers the text's end may use. Nothing is
known about −diff. An MLP has no label and is not asked.
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
from diff_oracle.tasks.text import Text, Vocabulary, token_list
from diff_oracle.tasks.usual import (
    NO,
    Usual,
    best_constant,
    draw_pair,
    draw_wording,
    pair_prior,
    pair_question,
    score_list,
)

ONLY_SINK = "only the sink"
DISTANCES = (("itself", 0), ("previous", 1), ("near", 7), ("far", None))
"""Names of distances, each with the last one that it covers."""
LITTLE = 0.5  # of `min_share`: what a token that is not attended to carries at most, so that no near miss is asked

# {0} and {1} stand for tokens, set in quotes. Short: every word of a question is paid for at every training step.
PHRASINGS: dict[str, dict[Phrasing, tuple[str, ...]]] = {
    "attended": {
        "seen": ("Attends to?", "Looks at?", "Reads what?", "Tokens attended to?", "Tokens read?"),
        "heldout": ("Attended tokens?", "What is looked at?"),
    },
    "yes_no": {
        "seen": ('Attends to "{0}" or no?', 'Looks at "{0}" or no?', 'Reads "{0}" or no?'),
        "heldout": ('Attended to: "{0}" or no?',),
    },
    "choice": {
        "seen": ('Attends to "{0}" or "{1}"?', 'Looks at "{0}" or "{1}"?', 'Reads "{0}" or "{1}"?'),
        "heldout": ('Attended to: "{0}" or "{1}"?',),
    },
    "distance": {
        "seen": ("How far back?", "Looks how far back?", "Distance attended to?"),
        "heldout": ("Reads from how far back?",),
    },
}

# Shares of the training examples.
KINDS = {"attended": 0.4, "yes_no": 0.2, "choice": 0.2, "distance": 0.2}


@dataclass
class AttentionConfig:
    """What is measured, and what counts as attended."""

    k: int = 10
    """Source positions kept, strongest first."""
    weighting: str = "value_weighted"
    """`pattern`, or `value_weighted`: the pattern times what is read, along the head's write."""
    num_asked: int = 3
    """Tokens that an open question asks for at most."""
    min_share: float = 0.05
    """Share of the weight that is not the sink's from which a token counts as attended."""
    sink_only: float = 0.95
    """Share of the sink from which it is the only answer."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_asked <= self.k:
            raise ValueError(f"tasks.attention.num_asked must be 1…k = {self.k}, got {self.num_asked}")
        if self.weighting not in ("value_weighted", "pattern"):
            raise ValueError(
                f"unknown tasks.attention.weighting {self.weighting!r}: choose from value_weighted, pattern"
            )
        for name in ("min_share", "sink_only"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"tasks.attention.{name} must be above 0 and at most 1, got {getattr(self, name)}")


def token_shares(labels: Mapping[str, Any]) -> dict[int, float]:
    """The tokens that the kept positions hold, strongest first, each with its share of what is not the sink's."""
    total: dict[int, float] = defaultdict(float)
    for token, weight in zip(labels["attended_ids"], labels["attended_weights"], strict=True):
        total[int(token)] += float(weight)
    rest = 1 - float(labels["sink_weight"])
    return {token: weight / rest for token, weight in sorted(total.items(), key=lambda item: -item[1])}


def distance_name(distance: int) -> str:
    """The name of a distance in tokens."""
    return next(name for name, last in DISTANCES if last is None or distance <= last)


@dataclass(frozen=True)
class Habit:
    """What the training rows of a site hold."""

    usual: Usual
    """Attended tokens, each with how often it is attended to where it is attended to or ignored."""
    answer: tuple[int, ...]
    """The best constant answer to an open question; empty for `ONLY_SINK`."""
    distance: str
    """The commonest distance."""


@dataclass
class Attention:
    """Questions on attention, and their scores.

    Attributes:
        habits: Set by `fit`: each site's habit; under None, that of all sites together.
    """

    config: AttentionConfig = field(default_factory=AttentionConfig)
    habits: dict[str | None, Habit] = field(default_factory=dict, init=False, repr=False)
    _allowed: Bool[np.ndarray, "vocab"] = field(default_factory=lambda: np.empty(0, dtype=bool), init=False, repr=False)
    _no_id: int = field(default=-1, init=False, repr=False)
    name = "attention"
    kinds = MappingProxyType(KINDS)
    open_kinds = ("attended",)
    signed = False

    def fit(self, records: RecordSet, vocabulary: Vocabulary) -> None:
        """Learns from the training rows what each site usually does.

        Raises:
            ValueError: No row has a label.
        """
        self._allowed, self._no_id = vocabulary.allowed.cpu().numpy(), vocabulary.encode((NO,))[0]
        rows = [
            (site, labels, int(position), context)
            for site, labels, position, context in zip(
                records.sites,
                label_rows(records, self.name),
                records.column("position"),
                records.column("token_ids"),
                strict=True,
            )
            if not np.isnan(labels["sink_weight"])
        ]
        if not rows:
            raise ValueError(
                "no training row has an attention label: an MLP has none, so name sites with attention, e.g. "
                "sites.names=[layers]"
            )
        parts: dict[str | None, list[Any]] = defaultdict(list)
        for site, labels, position, context in rows:
            only_sink = labels["sink_weight"] >= self.config.sink_only
            attended = [] if only_sink else self._attended(labels)
            decided = [] if only_sink else [*attended, *self._ignored(labels, context.tolist())]
            distance = None if only_sink else distance_name(position - int(labels["attended_positions"][0]))
            row = np.array(attended, dtype=np.int64), np.array(decided, dtype=np.int64), only_sink, distance
            parts[site].append(row)
            parts[None].append(row)
        self.habits = {site: self._habit(part) for site, part in parts.items()}

    def _habit(self, rows: Sequence[Any]) -> Habit:
        attended, decided, only_sink, distances = zip(*rows, strict=True)
        asked = self.config.num_asked
        answers = [ids[:asked].tolist() for ids, sink in zip(attended, only_sink, strict=True) if sink or len(ids)]
        near = Counter(name for name in distances if name is not None).most_common(1)
        return Habit(
            Usual.within(attended, decided),
            best_constant(answers, asked) if answers else (),
            near[0][0] if near else DISTANCES[0][0],
        )

    def kinds_for(self, record: Record) -> Sequence[str]:
        """None where there is no label, the open one where the sink has all, one where no token has its share.

        Raises:
            ValueError: The record was not measured for this task.
            RuntimeError: `fit` was not called.
        """
        label(record.labels, self.name, "sink_weight")
        return self._kinds_for(record.labels)

    def askable(self, records: RecordSet) -> Bool[np.ndarray, "row kind"]:
        """`kinds_for` of every row, in the order of `kinds`."""
        possible = [self._kinds_for(labels) for labels in label_rows(records, self.name)]
        return np.array([[kind in kinds for kind in self.kinds] for kinds in possible]).reshape(-1, len(self.kinds))

    def _kinds_for(self, labels: Mapping[str, Any]) -> Sequence[str]:
        self._check_fitted()
        if np.isnan(labels["sink_weight"]):
            return ()
        if labels["sink_weight"] >= self.config.sink_only:
            return ("attended",)
        attended = self._attended(labels)
        if not attended:
            return ("distance",)
        return ("attended", "distance") if attended == [self._no_id] else tuple(self.kinds)

    def top_answer(self, labels: Mapping[str, Any]) -> int | str | None:
        """The most attended token, repeated ones summed; `ONLY_SINK`; or None for an MLP."""
        sink = label(labels, self.name, "sink_weight")
        if np.isnan(sink):
            return None
        return ONLY_SINK if sink >= self.config.sink_only else next(iter(token_shares(labels)))

    def targets(self, record: Record, kind: str) -> tuple[int | str, ...]:
        """The distance's name; for every other kind the attended tokens, or `ONLY_SINK`."""
        possible = self.kinds_for(record)
        if kind == "distance":
            return (_distance(record),) if kind in possible else ()
        if "attended" not in possible:
            return ()
        only_sink = record.labels["sink_weight"] >= self.config.sink_only
        return (ONLY_SINK,) if only_sink else tuple(self._attended(record.labels))

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
        if kind == "attended":
            only_sink = record.labels["sink_weight"] >= self.config.sink_only
            named = [] if only_sink else self._attended(record.labels)[: self.config.num_asked]
            return Question(self.name, kind, phrasing, (wording,), token_list(named) if named else (ONLY_SINK,))
        if kind == "distance":
            choices = tuple((name,) for name, _ in DISTANCES)
            return Question(self.name, kind, phrasing, (wording,), (_distance(record),), choices)
        return pair_question(self.name, kind, phrasing, wording, self._pair(record, rng), rng)

    def score(self, question: Question, answer: str, vocabulary: Vocabulary) -> float:
        """Open questions: the share of right tokens among those named or wanted, whichever are more.

        Questions with choices, and `ONLY_SINK`: 1 if the answer is right, else 0.
        """
        gold = vocabulary.show(question.answer)
        return float(answer == gold) if question.choices else score_list(answer, gold, ONLY_SINK)

    def prior_answer(self, site: str, question: Question) -> Text:
        """The site's best constant answer; of tokens, the one that it attends to oftener where it could.

        A site that no training row has is answered by all sites together.

        Raises:
            RuntimeError: `fit` was not called.
        """
        self._check_fitted()
        habit = self.habits.get(site, self.habits[None])
        if question.kind == "attended":
            return token_list(habit.answer) if habit.answer else (ONLY_SINK,)
        if question.kind == "distance":
            return (habit.distance,)
        return pair_prior(question, habit.usual)

    def _attended(self, labels: Mapping[str, Any]) -> list[int]:
        """The nameable tokens that have their share, strongest first."""
        shares = token_shares(labels).items()
        return [token for token, share in shares if share >= self.config.min_share and self._allowed[token]]

    def _ignored(self, labels: Mapping[str, Any], context: Sequence[int]) -> list[int]:
        """The nameable tokens of the context that carry little, in ascending order.

        Only the strongest positions were kept: any other has at most the weight of the weakest of them, and all others
        together have what is left.
        """
        kept, rest = token_shares(labels), 1 - float(labels["sink_weight"])
        weakest = float(labels["attended_weights"][-1]) / rest
        left = max(0.0, 1 - sum(kept.values()))
        unkept = Counter(context[1:])
        unkept.subtract(int(token) for token in labels["attended_ids"])
        bound = LITTLE * self.config.min_share
        return [
            token
            for token, times in sorted(unkept.items())
            if kept.get(token, 0.0) + min(times * weakest, left) < bound
            and self._allowed[token]
            and token != self._no_id
        ]

    def _pair(self, record: Record, rng: np.random.Generator) -> tuple[int, int]:
        """A token that is attended to, and one of the same context that is not; the word "no" is never drawn.

        Where the context has no such token, another one that the site often attends to; where the training rows know
        neither, any.
        """
        attended = [token for token in self._attended(record.labels) if token != self._no_id]
        ignored = self._ignored(record.labels, record.token_ids)
        usual, barred = self.habits.get(record.site, self.habits[None]).usual, [*record.token_ids, self._no_id]
        pair = draw_pair(attended, usual, rng, among=ignored) or draw_pair(attended, usual, rng, barred)
        others = ignored or np.setdiff1d(np.flatnonzero(self._allowed), barred)
        return pair or (int(rng.choice(attended)), int(rng.choice(others)))

    def _check_fitted(self) -> None:
        if not self.habits:
            raise RuntimeError(f"task {self.name} knows no site yet: call task.fit(dataset.split('train')) first")


def _distance(record: Record) -> str:
    """How far back the position lies that a record attends to most."""
    return distance_name(record.position - int(record.labels["attended_positions"][0]))
