"""Task `explanation`: all that was measured of a diff, in one answer of a fixed form, one claim a line (`claims`).

The claims come from the labels of the other tasks, those that the dataset has. `explain` wants them all, in the
canonical words and order; `reworded` in any of their words and any order; `brief` the first of each kind. Nothing is
known about −diff.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool

from diff_oracle.records import LABEL_COLUMNS, Record, RecordSet
from diff_oracle.tasks.attention import AttentionConfig
from diff_oracle.tasks.attention_label import token_shares
from diff_oracle.tasks.base import Phrasing, Question, check_askable, check_kind, label_rows
from diff_oracle.tasks.claims import KINDS as CLAIM_KINDS
from diff_oracle.tasks.claims import NO_CHANGE, ONLY_SINK, WORDINGS, Claim, ClaimKind, parse, write
from diff_oracle.tasks.layer_skip import LayerSkipConfig
from diff_oracle.tasks.text import Text, Vocabulary
from diff_oracle.tasks.usual import best_constant, draw_wording, overlap

PHRASINGS: dict[str, dict[Phrasing, tuple[str, ...]]] = {
    "explain": {
        "seen": ("Explain.", "What does it do?", "Does what?", "Explain it."),
        "heldout": ("What did it do?", "Explain what it does."),
    },
    "reworded": {
        "seen": ("Explain in other words.", "In other words?", "Otherwise said?"),
        "heldout": ("Explain it in other words.",),
    },
    "brief": {
        "seen": ("Explain briefly.", "Briefly?", "In short?"),
        "heldout": ("Explain it in short.",),
    },
}
# Shares of the training examples.
KINDS = {"explain": 0.6, "reworded": 0.2, "brief": 0.2}


@dataclass
class ExplanationConfig:
    """What an explanation names."""

    num_raised: int = 5
    """Tokens that the diff raises most."""
    num_lowered: int = 5
    """Tokens that it lowers most."""
    num_read: int = 3
    """Tokens attended to, at most."""
    min_share: float = AttentionConfig.min_share
    """Share of the weight that is not the sink's from which a token counts as attended."""
    sink_only: float = AttentionConfig.sink_only
    """Share of the sink from which it is the only claim."""
    small_kl: float = LayerSkipConfig.small_kl
    """KL(base || skipped) in nats below which a skip changes nothing."""

    def __post_init__(self) -> None:
        for name in ("num_raised", "num_lowered", "num_read"):
            if getattr(self, name) < 0:
                raise ValueError(f"tasks.explanation.{name} must be at least 0, got {getattr(self, name)}")
        for name in ("min_share", "sink_only"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"tasks.explanation.{name} must be 0…1, got {getattr(self, name)}")


@dataclass
class Explanation:
    """The question for an explanation, and its score.

    Attributes:
        usual: Set by `fit`: the claims that explain each site's rows best; under None, all sites' rows.
    """

    config: ExplanationConfig = field(default_factory=ExplanationConfig)
    usual: dict[str | None, tuple[Claim, ...]] = field(default_factory=dict, init=False, repr=False)
    _vocabulary: Vocabulary = field(init=False, repr=False)
    name = "explanation"
    kinds = MappingProxyType(KINDS)
    open_kinds = ("explain",)
    signed = False

    def fit(self, records: RecordSet, vocabulary: Vocabulary) -> None:
        """Learns from the training rows what each site usually does.

        Raises:
            ValueError: No row has a label.
        """
        self._vocabulary = vocabulary
        rows: dict[str | None, list[list[Claim]]] = defaultdict(list)
        for site, claims in zip(records.sites, self._claims_of(records), strict=True):
            if claims:
                rows[site].append(claims)
                rows[None].append(claims)
        if not rows:
            raise ValueError(
                "the dataset has no label to explain: build it with +task=[logit_lens,attention,layer_skip,explanation]"
            )
        most = self.config.num_raised + self.config.num_lowered + self.config.num_read + 1
        self.usual = {site: best_constant(some, most) for site, some in rows.items()}

    def _claims_of(self, records: RecordSet) -> Iterator[list[Claim]]:
        """Every row's claims, read without the vectors."""
        measured = [task for task, columns in LABEL_COLUMNS.items() if records.column_names >= columns.keys()]
        for of_tasks in zip(*(label_rows(records, task) for task in measured), strict=True):
            yield gold_claims({n: v for columns in of_tasks for n, v in columns.items()}, self.config, self._vocabulary)

    def kinds_for(self, record: Record) -> Sequence[str]:
        """Every kind, unless no label says anything of the row."""
        self._check_fitted()
        return tuple(self.kinds) if gold_claims(record.labels, self.config, self._vocabulary) else ()

    def askable(self, records: RecordSet) -> Bool[np.ndarray, "row kind"]:
        """`kinds_for` of every row."""
        self._check_fitted()
        return np.array([[bool(claims)] * len(self.kinds) for claims in self._claims_of(records)])

    def top_answer(self, labels: Mapping[str, Any]) -> int | str | None:
        """None: it measures nothing of its own."""
        return None

    def targets(self, record: Record, kind: str) -> tuple[int | str, ...]:
        """None: a probe reads one label, not all of them."""
        return ()

    def question(
        self, record: Record, kind: str, rng: np.random.Generator, phrasing: Phrasing = "seen", sign: int = 1
    ) -> Question:
        """A question of a kind about the record's diff.

        Raises:
            ValueError: The kind is unknown, the record has no label, or the sign is negative.
            RuntimeError: `fit` was not called.
        """
        check_kind(kind, self.kinds)
        check_askable(self.name, record, kind, self.kinds_for(record), sign)
        wording = draw_wording(PHRASINGS[kind][phrasing], rng)
        claims = gold_claims(record.labels, self.config, self._vocabulary)
        answers = {"explain": write(claims), "reworded": reworded(claims, rng), "brief": write(brief(claims))}
        return Question(self.name, kind, phrasing, (wording,), answers[kind])

    def standard_questions(self, record: Record, vocabulary: Vocabulary) -> list[Question]:
        """The explanation, where there is a label."""
        claims, wording = gold_claims(record.labels, self.config, vocabulary), PHRASINGS["explain"]["seen"][0]
        return [Question(self.name, "explain", "seen", (wording,), write(claims))] if claims else []

    def score(self, question: Question, answer: str, vocabulary: Vocabulary) -> float:
        """The share of right claims among those made or wanted, whichever are more; a line that is none is wrong."""
        wanted = parse(vocabulary.show(question.answer), vocabulary).claims
        made = parse(answer, vocabulary)
        return overlap([*made.claims, *made.other_lines], wanted)

    def prior_answer(self, site: str, question: Question) -> Text:
        """The claims that explain the site's training rows best; of a site that no row has, those of all sites."""
        self._check_fitted()
        claims = self.usual.get(site, self.usual[None])
        return write(brief(claims) if question.kind == "brief" else claims)

    def recency_answer(self, record: Record, question: Question) -> Text | None:
        """None: it is not asked about places alone."""
        return None

    def _check_fitted(self) -> None:
        if not self.usual:
            raise RuntimeError(f"task {self.name} knows no site yet: call task.fit(dataset.split('train')) first")


def gold_claims(labels: Mapping[str, Any], config: ExplanationConfig, vocabulary: Vocabulary) -> list[Claim]:
    """What a row's labels say, in the canonical order: by kind, strongest first; empty where there is no label."""
    claims: list[Claim] = []
    if "promoted_ids" in labels:
        claims += [Claim("raises", int(i)) for i in labels["promoted_ids"][: config.num_raised]]
        claims += [Claim("lowers", int(i)) for i in labels["suppressed_ids"][: config.num_lowered]]
    if not np.isnan(sink := labels.get("sink_weight", np.nan)):
        shares = {} if sink >= config.sink_only else token_shares(labels)
        read = [t for t, share in shares.items() if share >= config.min_share and vocabulary.may_name(t)]
        claims += [Claim("reads", said) for said in (read if shares else [ONLY_SINK])[: config.num_read]]
    if not np.isnan(kl := labels.get("kl", np.nan)):
        skipped = NO_CHANGE if kl < config.small_kl else int(labels["skipped_ids"][0])
        claims.append(Claim("skipped", skipped))
    return claims


def brief(claims: Sequence[Claim]) -> list[Claim]:
    """The first claim of each kind."""
    first: dict[ClaimKind, Claim] = {}
    for claim in claims:
        first.setdefault(claim.kind, claim)
    return list(first.values())


def reworded(
    claims: Sequence[Claim],
    rng: np.random.Generator,
    wordings: Mapping[ClaimKind, tuple[str, ...]] = MappingProxyType(WORDINGS),
) -> Text:
    """The same claims in another order, each kind in one of its wordings."""
    order = [claims[i] for i in rng.permutation(len(claims))]
    if rng.random() < 0.5:  # kind by kind
        kinds = [CLAIM_KINDS[i] for i in rng.permutation(len(CLAIM_KINDS))]
        order.sort(key=lambda claim: kinds.index(claim.kind))
    return write(order, {kind: draw_wording(wordings[kind], rng) for kind in CLAIM_KINDS})
