"""Measures a pair: every rung of the ladder, on the same rows of split `test`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diff_oracle.nla.bag import ClaimFeatures
from diff_oracle.nla.codebook import rotated_claims
from diff_oracle.nla.held_out import HeldOut
from diff_oracle.nla.ladder import Ladder, Line
from diff_oracle.nla.linear import SiteRidge
from diff_oracle.nla.metrics import Means, cosine
from diff_oracle.nla.pair import DiffNLA, explain, longest_explanation
from diff_oracle.nla.prompted import prompted_explanations
from diff_oracle.nla.reconstructor import Reconstructor
from diff_oracle.nla.rows import Claims, Rows, read_rows
from diff_oracle.nla.rungs import ALTERED, DIFF_BLIND, Rebuilt, blind_rungs, fit_before, gold_rungs, site_habit
from diff_oracle.oracle.model import Oracle
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import DiffDataset, Split
from diff_oracle.subject.model import Subject
from diff_oracle.tasks.claims import Claim, Parsed, parse, write
from diff_oracle.tasks.explanation import ExplanationConfig, reworded
from diff_oracle.tasks.text import Text, Vocabulary
from diff_oracle.tasks.truth import TruthConfig, measured

logger = logging.getLogger(__name__)

AR, SECOND_AR, CONTEXT_AR, CODE_AR = "AR", "AR of another seed", "AR of the context", "AR of a rotated codebook"
CODE_LIKE_AV, CODE_LIKE_AV_READ = (f"rotated_codebook, as many as AV: {reader}" for reader in ("bag", AR))
SPLICED = ("site mean", "token mean", "before", "gold: bag", "gold: AR", "AV: bag", "AV: AR", "rotated_codebook: bag")
GAINS = [
    ("gold: bag", "rotated_codebook: bag"),
    ("AV: bag", CODE_LIKE_AV),
    ("gold: AR", "rotated_codebook: AR"),
    ("AV: AR", CODE_LIKE_AV_READ),
    ("gold: bag, before", "before"),
    ("AV: bag, before", "before"),
    ("rotated_codebook: bag, before", "before"),
    ("gold: AR", "before"),
    ("gold: AR", "gold, empty: AR"),
    ("AV: AR", "AV, empty: AR"),
    ("gold: AR", "gold: bag"),
    ("AV: AR", "AV: bag"),
    ("AV: bag", "AV, false claims removed: bag"),
    ("AV: AR", "AV, reordered: AR"),
    ("AV: AR", "AV, paraphrased: AR"),
    ("AV: AR", "AV, quotes stripped: AR"),
    ("AV: AR", "AV, quotes only: AR"),
    ("AV: AR", "AV: AR of another seed"),
]
"""Of each the first rung less the second, where both are there; beside the AV's over each diff-blind rung that is the
best at some kind of site."""
SHARES = [
    ("AV, false claims removed: bag", "AV: bag"),
    ("AV, false claims removed: AR", "AV: AR"),
    ("AV: bag", "gold: bag"),
    ("AV: AR", "gold: AR"),
    (f"AV: {SECOND_AR}", f"gold: {SECOND_AR}"),
    ("AV: bag", "AV: AR"),
    (f"AV: {SECOND_AR}", "AV: AR"),
    ("AV, paraphrased: AR", "AV: AR"),
    ("AV, quotes stripped: AR", "AV: AR"),
    ("AV, quotes only: AR", "AV: AR"),
]
"""Of each what the first rung is of the second: what true claims carry, the oracle's claims of what measured ones do,
what is kept by readers that did not learn with this writer, and of claims in other words or with some left out."""

OTHER_READERS = (
    "AV: bag",
    f"AV: {SECOND_AR}",
    "AV, reordered: AR",
    "AV, paraphrased: AR",
    "AV, quotes only: AR",
    "AV, quotes stripped: AR",
)
"""Rungs whose errors are kept row by row: is what the pair gains a code of its two parts alone?"""


@dataclass
class LadderConfig:
    """How much is compared."""

    num_rows: int = 1200
    """Rows of split `test`."""
    train_rows: int | None = None
    """Training rows that readers learn from at most."""
    select_rows: int = 4000
    """Rows of split `select` that choose penalties at most; a transformer's best state is chosen on a tenth."""
    splice_rows: int = 400
    """Of the test rows, how many are spliced into the model."""
    shots: int = 3
    """Examples that the base model is shown, prompted to explain the text alone; 0 leaves this rung out."""
    resamples: int = 2000
    """Bootstrap resamples of the documents."""
    truth: TruthConfig = field(default_factory=TruthConfig)
    """Which claims are true."""

    def __post_init__(self) -> None:
        for name in ("num_rows", "select_rows", "splice_rows", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"ladder.{name} must be at least 1, got {getattr(self, name)}")
        if self.shots < 0:
            raise ValueError(f"ladder.shots must be at least 0, got {self.shots}")


@dataclass(frozen=True)
class Splits:
    """The rows that everything is fitted to, chosen on and compared on."""

    train: Rows
    select: Rows
    test: Rows

    @classmethod
    def read(
        cls, dataset: DiffDataset, config: LadderConfig, named: ExplanationConfig, av: Oracle, seed: int
    ) -> Splits:
        """From a dataset."""
        most: list[tuple[Split, int | None]] = [
            ("train", config.train_rows),
            ("select", config.select_rows),
            ("test", config.num_rows),
        ]
        train, select, test = (read_rows(dataset.split(s), named, av.vocabulary, n, seed) for s, n in most)
        return cls(train, select, test)


@dataclass(frozen=True)
class Evaluated:
    """A measured ladder."""

    lines: list[Line]
    examples: list[dict[str, Any]]
    """Some rows: what was said of them and what was measured."""
    fve: float
    """Of the AV's explanations, read by the bag-of-words reader."""
    held_out: HeldOut | None
    """How the pair does row by row; None where no transformer reads."""


def evaluate_pair(
    av: Oracle,
    readers: Mapping[str, Reconstructor],
    named: ExplanationConfig,
    splits: Splits,
    subject: Subject,
    config: LadderConfig,
    seed: int,
) -> Evaluated:
    """Explains the test rows and rebuilds them in every way.

    Args:
        av: Explains.
        readers: Transformers that read, by rung (`AR`, `SECOND_AR`, `CONTEXT_AR`, `CODE_AR`); none has to be there.
        named: What an explanation names.
        splits: The rows.
        subject: The model that was measured, on which claims are checked and reconstructions spliced.
        config: How much is compared.
        seed: Keys every draw.
    """
    train, test = splits.train, splits.test
    truth = measured(test.records, subject, av.vocabulary, config.truth)
    means = Means.of(train.sites, train.target)
    ladder = Ladder(test, means, truth, config.resamples, seed)
    logger.info("explaining %d rows", len(test))
    answers = explain(av, test.records, named)
    parsed = [parse(answer.text, av.vocabulary) for answer in answers]
    said: list[Claims] = [p.claims for p in parsed]
    blind = explain(av, test.records, named, from_text=True)
    from_text: list[Claims] = [parse(answer.text, av.vocabulary).claims for answer in blind]
    before = fit_before(train, splits.select)
    _closed_form(ladder, splits, before, subject, av, named, said, from_text, config.shots, seed)
    for name, reader in readers.items():
        known = before if reader.config.target == "residual" else None
        if name == CONTEXT_AR:
            ladder.add("text: AR", rebuilt_by(reader, test, [()] * len(test), known))
        elif name == CODE_AR:
            for rung, claims in (("rotated_codebook", test.gold), ("rotated_codebook, as many as AV", said)):
                codes = rotated_claims(test.records, claims, subject, av.vocabulary, seed)
                ladder.add(f"{rung}: AR", rebuilt_by(reader, test, [write(row) for row in codes], known))
        else:
            _read_by(ladder, name, reader, known, said, from_text, seed)
    ladder.health("AV: bag", [answer.num_tokens for answer in answers], parsed)
    ladder.splice(subject, config.splice_rows, SPLICED)
    over_blind = [(f"AV: {reader}", blind) for blind in ladder.best(DIFF_BLIND) for reader in ("bag", AR)]
    gains = ladder.gains([*over_blind, *GAINS])
    lines = [*ladder.lines(), *gains, *ladder.shares(SHARES)]
    held_out = None
    if AR in readers:
        residual = readers[AR].config.target == "residual"
        told = before.predict(test.sites, test.before) if residual else np.zeros_like(test.target)
        others = {rung: ladder.errors[rung].error for rung in OTHER_READERS if rung in ladder.errors}
        held_out = HeldOut.of(DiffNLA(av, readers[AR], named), test, answers, means, truth, told, others)
    return Evaluated(lines, row_examples(ladder, av.vocabulary, parsed), ladder.fve("AV: bag"), held_out)


def _closed_form(
    ladder: Ladder,
    splits: Splits,
    before: SiteRidge,
    subject: Subject,
    av: Oracle,
    named: ExplanationConfig,
    said: Sequence[Claims],
    from_text: Sequence[Claims],
    shots: int,
    seed: int,
) -> None:
    """The rungs that need no trained reconstructor."""
    train, select, test = splits.train, splits.select, splits.test
    for rung, rebuilt in blind_rungs(train, test, before).items():
        ladder.add(rung, rebuilt)
    features = ClaimFeatures(subject.W_U.T.float().cpu().numpy())
    gold, reader, with_before, codes = gold_rungs(train, select, test, features, subject, av.vocabulary, seed)
    for rung, rebuilt in gold.items():
        ladder.add(rung, rebuilt, test.gold if rung == "gold: bag" else None)
    ladder.add("text: explained", reader(test, from_text), from_text)
    if shots:  # the best examples are those from which most is rebuilt
        best = np.argsort(-cosine(reader(train, train.gold), train.target), kind="stable").tolist()
        prompted = prompted_explanations(av, train, best, test.records, shots, longest_explanation(named))
        ladder.add("text: prompted", reader(test, prompted), prompted)
    habit = site_habit(train, test)
    ladder.add("site habit: bag", reader(test, habit), habit)
    # The check of claims sees the diff: what it tells of claims that do not.
    ladder.add("site habit, false claims removed: bag", reader(test, ladder.true_claims(habit)))
    ladder.add("AV: bag", reader(test, said), said)
    ladder.add(CODE_LIKE_AV, codes(test, rotated_claims(test.records, said, subject, av.vocabulary, seed)))
    ladder.add("AV: bag, before", with_before(test, said))
    ladder.add("AV, false claims removed: bag", reader(test, ladder.true_claims(said)))
    for name, alter in ALTERED.items():
        ladder.add(f"AV, {name}: bag", reader(test, alter(test, said, seed)))


def rebuilt_by(reader: Reconstructor, rows: Rows, texts: Sequence[Text], known: SiteRidge | None) -> Rebuilt:
    """What a transformer rebuilds, on top of what the state before tells where that is `known`."""
    rebuilt = reader.reconstruct(rows.records, texts)
    return rebuilt if known is None else rebuilt + known.predict(rows.sites, rows.before)


def _read_by(
    ladder: Ladder,
    name: str,
    reader: Reconstructor,
    known: SiteRidge | None,
    said: Sequence[Claims],
    from_text: Sequence[Claims],
    seed: int,
) -> None:
    """The rungs of a transformer that reads."""
    rows = ladder.rows

    def read(texts: Sequence[Text]) -> Rebuilt:
        return rebuilt_by(reader, rows, texts, known)

    def paraphrased(claims: Sequence[Claims]) -> list[Text]:
        return [reworded(row, keyed_rng(seed, "paraphrase", i)) for i, row in enumerate(claims)]

    def reordered(claims: Sequence[Claims]) -> list[Text]:
        orders = [keyed_rng(seed, "order", i).permutation(len(row)) for i, row in enumerate(claims)]
        return [write([row[j] for j in order]) for row, order in zip(claims, orders, strict=True)]

    def written(claims: Sequence[Claims]) -> list[Text]:
        return [write(row) for row in claims]

    ladder.add(f"text: explained: {name}", read(written(from_text)))
    for writer, claims in (("gold", rows.gold), ("AV", said)):
        ladder.add(f"{writer}: {name}", read(written(claims)))
        ladder.add(f"{writer}, reordered: {name}", read(reordered(claims)))
        ladder.add(f"{writer}, paraphrased: {name}", read(paraphrased(claims)))
        for change, alter in ALTERED.items():
            ladder.add(f"{writer}, {change}: {name}", read(written(alter(rows, claims, seed))))
    ladder.add(f"AV, false claims removed: {name}", read(written(ladder.true_claims(said))))


def row_examples(
    ladder: Ladder, vocabulary: Vocabulary, parsed: Sequence[Parsed], most: int = 50
) -> list[dict[str, Any]]:
    """Some rows: what was said, each claim with whether it is true and whether the labels make it too; the labels."""

    def shown(claim: Claim) -> str:
        return vocabulary.show(write([claim]))

    return [
        {
            "site": record.site,
            "context": vocabulary.show(record.token_ids[-24:]),
            "said": [{"claim": shown(c), "true": truth.holds(c), "measured": c in gold} for c in said.claims],
            "other_lines": list(said.other_lines),
            "measured": [{"claim": shown(c), "said": c in said.claims} for c in gold],
            "cosine": float(cosine),
        }
        for record, said, gold, truth, cosine in zip(
            ladder.rows.records[:most],
            parsed[:most],
            ladder.rows.gold[:most],
            ladder.truth[:most],
            ladder.errors["AV: bag"].cosine[:most],
            strict=True,
        )
    ]
