"""Task `attention`: which tokens does a site read, when it writes this diff?

Four kinds of question. `attended` asks for the tokens that carry at least `min_share` of the weight that is not the
sink's (position 0), repeated tokens summed over the positions that were kept; where the sink has nearly all, the answer
is `ONLY_SINK`. `yes_no` and `choice` set such a token against one of the same context that carries little. Neither how
readily the site attends to a token nor where the token stands tells which is which (`propensity`): heads read what is
near, so most rows offer only pairs that a reader of the text would know, and these rows are seldom asked for one.
`distance` asks how far back the most attended position lies. Nothing is known about −diff. An MLP has no label and is
not asked.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from diff_oracle.randomness import keyed_rng
from diff_oracle.records import Record, RecordSet
from diff_oracle.tasks.attention_label import DISTANCES, Reader, Reading, token_shares
from diff_oracle.tasks.base import Phrasing, Question, check_askable, check_kind, label, label_rows
from diff_oracle.tasks.claims import ONLY_SINK
from diff_oracle.tasks.propensity import Propensity
from diff_oracle.tasks.recency import Recency, distances
from diff_oracle.tasks.text import Text, Vocabulary, token_list
from diff_oracle.tasks.usual import (
    NO,
    Usual,
    best_constant,
    draw_wording,
    pair_phrasings,
    pair_prior,
    pair_question,
    score_list,
)

# A row's chance to be asked for a pair is this many times the mean weight of its pairs. A larger number asks more rows,
# but where the chance is cut to 1, pairs that the text tells come too often.
PAIRS_ASKED = 4.0

# Short: every word of a question is paid for at every training step. {0} and {1} stand for tokens, set in quotes.
ATTENDED: dict[Phrasing, tuple[str, ...]] = {
    "seen": ("Attends to?", "Looks at?", "Reads what?", "Tokens attended to?", "Tokens read?"),
    "heldout": ("Attended tokens?", "What is looked at?"),
}
PHRASINGS: dict[str, dict[Phrasing, tuple[str, ...]]] = {
    "attended": ATTENDED,
    **pair_phrasings(ATTENDED),
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


@dataclass(frozen=True)
class Habit:
    """What the training rows of a site hold."""

    usual: Usual
    """Attended tokens, each with how often it is attended to where it is attended to or ignored."""
    answer: tuple[int, ...]
    """The best constant answer to an open question; empty for `ONLY_SINK`."""
    distance: str
    """The commonest distance."""
    recency: Recency
    """What distances alone answer best."""


@dataclass
class Attention:
    """Questions on attention, and their scores.

    Attributes:
        habits: Set by `fit`: each site's habit; under None, that of all sites together.
        propensity: Set by `fit`: how likely a site attends to a token at a place.
    """

    config: AttentionConfig = field(default_factory=AttentionConfig)
    habits: dict[str | None, Habit] = field(default_factory=dict, init=False, repr=False)
    propensity: Propensity = field(init=False, repr=False)
    _read: Reader = field(init=False, repr=False)
    name = "attention"
    kinds = MappingProxyType(KINDS)
    open_kinds = ("attended",)
    signed = False

    def fit(self, records: RecordSet, vocabulary: Vocabulary) -> None:
        """Learns from the training rows what each site usually does.

        Raises:
            ValueError: No row has a label.
        """
        self._read = self._reader(vocabulary)
        sites: list[str] = []
        rows: list[tuple[Reading, list[int]]] = []
        contexts = (context.tolist() for context in records.column("token_ids"))
        for site, labels, context in zip(records.sites, label_rows(records, self.name), contexts, strict=True):
            reading = self._read(labels, context)
            if reading:
                sites.append(site)
                rows.append((reading, self._nearest(context)))
        if not rows:
            raise ValueError(
                "no training row has an attention label: an MLP has none, so name sites with attention, e.g. "
                "sites.names=[layers]"
            )
        self.propensity = Propensity.fit(sites, [reading for reading, _ in rows])
        parts: dict[str | None, list[tuple[Reading, list[int]]]] = defaultdict(list, {None: rows})
        for site, row in zip(sites, rows, strict=True):
            parts[site].append(row)
        self.habits = {site: self._habit(part) for site, part in parts.items()}

    def _reader(self, vocabulary: Vocabulary) -> Reader:
        allowed, (no_id,) = vocabulary.allowed.cpu().numpy(), vocabulary.encode((NO,))
        return Reader(self.config.min_share, self.config.sink_only, allowed, no_id)

    def _habit(self, rows: Sequence[tuple[Reading, list[int]]]) -> Habit:
        asked, readings = self.config.num_asked, [reading for reading, _ in rows]
        answered = [(reading, nearest) for reading, nearest in rows if reading.only_sink or reading.attended]
        answers = [reading.attended[:asked] for reading, _ in answered]
        common = Counter(reading.distance for reading in readings if reading.distance).most_common(1)
        return Habit(
            Usual.within([r.tokens[: len(r.attended)] for r in readings], [r.tokens for r in readings]),
            best_constant(answers, asked) if answers else (),
            common[0][0] if common else DISTANCES[0][0],
            Recency.fit(
                np.concatenate([r.distances[: len(r.attended)] for r in readings]),
                np.concatenate([r.distances[len(r.attended) :] for r in readings]),
                [nearest for _, nearest in answered],
                answers,
            ),
        )

    def kinds_for(self, record: Record) -> Sequence[str]:
        """None where there is no label, the open one where the sink has all, one where no token has its share.

        Whether a row is asked for a pair is drawn by its document, site and position, so the same in every run.

        Raises:
            ValueError: The record was not measured for this task.
            RuntimeError: `fit` was not called.
        """
        label(record.labels, self.name, "sink_weight")
        return self._kinds_for((record.doc_id, record.site, record.position), record.token_ids, record.labels)

    def askable(self, records: RecordSet) -> Bool[np.ndarray, "row kind"]:
        """`kinds_for` of every row, in the order of `kinds`."""
        keys = zip(records.doc_ids, records.sites, map(int, records.column("position")), strict=True)
        rows = zip(keys, records.column("token_ids"), label_rows(records, self.name), strict=True)
        possible = [self._kinds_for(key, context.tolist(), labels) for key, context, labels in rows]
        return np.array([[kind in kinds for kind in self.kinds] for kinds in possible]).reshape(-1, len(self.kinds))

    def _kinds_for(self, key: tuple[str, str, int], context: Sequence[int], labels: Mapping[str, Any]) -> Sequence[str]:
        self._check_fitted()
        reading = self._read(labels, context)
        if reading is None:
            return ()
        if reading.only_sink:
            return ("attended",)
        if not reading.attended:
            return ("distance",)
        weights = self._pair_weights(key[1], reading)
        asked = weights.size and keyed_rng(0, "pair", *key).random() < PAIRS_ASKED * weights.mean()
        return tuple(self.kinds) if asked else ("attended", "distance")

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
            return (str(self._reading(record).distance),) if kind in possible else ()
        if "attended" not in possible:
            return ()
        return tuple(self._reading(record).attended) or (ONLY_SINK,)

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
        wording, reading = draw_wording(PHRASINGS[kind][phrasing], rng), self._reading(record)
        if kind in ("attended", "distance"):
            return self._plain_question(reading, kind, phrasing, wording)
        weights = self._pair_weights(record.site, reading)
        drawn = int(rng.choice(weights.size, p=weights.ravel() / weights.sum()))
        right, wrong = divmod(drawn, len(reading.ignored))
        pair = reading.attended[right], reading.ignored[wrong]
        return pair_question(self.name, kind, phrasing, wording, pair, rng)

    def standard_questions(self, record: Record, vocabulary: Vocabulary) -> list[Question]:
        """The tokens and the distance, where the label has them; nothing of an MLP.

        Raises:
            ValueError: The record was not measured for this task.
        """
        label(record.labels, self.name, "sink_weight")
        reading = self._reader(vocabulary)(record.labels, record.token_ids)
        if reading is None:
            return []
        kinds = ["attended"] if reading.only_sink or reading.attended else []
        kinds += ["distance"] if reading.distance else []
        return [self._plain_question(reading, kind, "seen", PHRASINGS[kind]["seen"][0]) for kind in kinds]

    def _plain_question(self, reading: Reading, kind: str, phrasing: Phrasing, wording: str) -> Question:
        """A question that the row's own label makes."""
        if kind == "distance":
            choices = tuple((name,) for name, _ in DISTANCES)
            return Question(self.name, kind, phrasing, (wording,), (str(reading.distance),), choices)
        named = reading.attended[: self.config.num_asked]
        return Question(self.name, kind, phrasing, (wording,), token_list(named) if named else (ONLY_SINK,))

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

    def recency_answer(self, record: Record, question: Question) -> Text | None:
        """What the context and the site's training rows answer if only the places of tokens are known.

        Of two tokens the nearer one; of one, whether it stands within the distance that parts attended from ignored
        tokens best; where all are asked for, the nearest ones, as many as score best. None on `distance`: its prior is
        that answer. A token's place is its nearest; one that the context lacks is the farthest.

        Raises:
            RuntimeError: `fit` was not called.
        """
        self._check_fitted()
        recency, back = self.habits.get(record.site, self.habits[None]).recency, distances(record.token_ids)
        if question.kind == "distance":
            return None
        if question.kind == "attended":
            return token_list(self._nearest(record.token_ids)[: recency.number])
        tokens = [piece for piece in question.text if isinstance(piece, int)]
        if question.kind == "yes_no":
            return (tokens[0] if back.get(tokens[0], np.inf) <= recency.within else NO,)
        return (min(tokens, key=lambda token: back.get(token, np.inf)),)

    def _nearest(self, context: Sequence[int]) -> list[int]:
        """The nearest nameable tokens, as many as are asked for."""
        return [token for token in distances(context) if self._read.allowed[token]][: self.config.num_asked]

    def _pair_weights(self, site: str, reading: Reading) -> Float[np.ndarray, "attended ignored"]:
        """How often each pair may be asked; the word "no", which is an answer, never."""
        nameable = np.array(reading.attended, dtype=np.int64) != self._read.no_id
        return self.propensity.pair_weights(site, reading) * nameable[:, None]

    def _reading(self, record: Record) -> Reading:
        reading = self._read(record.labels, record.token_ids)
        assert reading is not None  # a record without a label is asked nothing
        return reading

    def _check_fitted(self) -> None:
        if not self.habits:
            raise RuntimeError(f"task {self.name} knows no site yet: call task.fit(dataset.split('train')) first")
