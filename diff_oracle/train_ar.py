"""Trains the reconstructor of a diff-NLA, and measures what explanations carry: the ladder.

    python -m diff_oracle.train '+task=[logit_lens,attention,layer_skip,explanation]' run_dir=runs/explainer
    python -m diff_oracle.train_ar oracle=runs/explainer run_dir=runs/nla
    python -m diff_oracle.train_ar oracle=runs/explainer reader=bag_of_words        # closed form alone, in a minute

The oracle must have been trained to explain. Into the run directory go the pair (`nla/`), `ladder.json`,
`explanations.json` (some rows with what was said of them) and `run.json`. Killed, the same command goes on.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from diff_oracle.cli import entry_point
from diff_oracle.nla.bag import ClaimFeatures
from diff_oracle.nla.ladder import Ladder, to_rows
from diff_oracle.nla.metrics import Means
from diff_oracle.nla.pair import DiffNLA, explain, parsed_claims
from diff_oracle.nla.reconstructor import Reconstructor, ReconstructorConfig
from diff_oracle.nla.report import print_ladder
from diff_oracle.nla.rows import Claims, Rows, read_rows
from diff_oracle.nla.rungs import ALTERED, DIFF_BLIND, blind_rungs, gold_rungs
from diff_oracle.nla.training import ReadingConfig, train_reconstructor
from diff_oracle.oracle.model import Oracle
from diff_oracle.provenance import provenance
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import Split, open_dataset
from diff_oracle.subject.loading import load_hf_model, pick_device
from diff_oracle.subject.model import Subject
from diff_oracle.tasks.claims import write
from diff_oracle.tasks.explanation import ExplanationConfig, reworded
from diff_oracle.tasks.truth import TruthConfig, measured
from diff_oracle.training.checkpoints import Checkpoints
from diff_oracle.training.sft import CHECKPOINTS, TrainingConfig

logger = logging.getLogger(__name__)
Pair = tuple[Sequence[Claims], Sequence[Claims]]
READERS = ("transformer", "bag_of_words")
SPLICED = ("site mean", "token mean", "before", "gold: bag", "gold: AR", "AV: bag", "AV: AR", "rotated_codebook: bag")
GAINS = [
    ("gold: bag", "rotated_codebook: bag"),
    ("gold: bag, before", "before"),
    ("AV: bag, before", "before"),
    ("rotated_codebook: bag, before", "before"),
    ("AV: AR", "AV: bag"),
    ("AV: bag", "AV, false claims removed: bag"),
]
"""Of each the first rung less the second, where both are there; beside the oracle's over the best blind rung."""


@dataclass
class LadderConfig:
    """How much is compared."""

    num_rows: int = 1200
    """Rows of split `test`."""
    train_rows: int | None = None
    """Training rows that readers learn from at most."""
    select_rows: int = 4000
    """Rows of split `select` that choose penalties at most; the transformer's best state is chosen on a tenth."""
    splice_rows: int = 400
    """Of the test rows, how many are spliced into the model."""
    resamples: int = 2000
    """Bootstrap resamples of the documents."""
    truth: TruthConfig = field(default_factory=TruthConfig)
    """Which claims are true."""

    def __post_init__(self) -> None:
        for name in ("num_rows", "select_rows", "splice_rows", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"ladder.{name} must be at least 1, got {getattr(self, name)}")


@dataclass
class TrainArConfig:
    """Everything that a reconstructor depends on."""

    oracle: str = "???"
    """A run directory of `diff_oracle.train`, with task `explanation`."""
    data_dir: str | None = None
    """Where the dataset's folder lies now, if it is not where training found it."""
    reader: str = "transformer"
    """`transformer`, or `bag_of_words`: only what is fitted in closed form."""
    ar: ReconstructorConfig = field(default_factory=ReconstructorConfig)
    """The reconstructor."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    """How explanations are varied in its training."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How it is trained."""
    ladder: LadderConfig = field(default_factory=LadderConfig)
    """What is compared."""
    seed: int = 0
    """Keys every draw."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    run_dir: str | None = None
    """Where everything goes."""

    def __post_init__(self) -> None:
        if self.reader not in READERS:
            raise ValueError(f"unknown reader {self.reader!r}: choose from {', '.join(READERS)}")


@dataclass(frozen=True)
class Splits:
    """The rows that everything is fitted to, chosen on and compared on."""

    train: Rows
    select: Rows
    test: Rows


def run(config: TrainArConfig) -> float:
    """Fits, trains, compares, writes; returns the FVE of the oracle's own explanations."""
    assert config.run_dir is not None  # the command sets it
    started = time.monotonic()
    run_dir, device = Path(config.run_dir), pick_device(config.device)
    av, named, dataset_dir = _load(config, device)
    dataset = open_dataset(dataset_dir, av.identity.weights_hash, av.identity.tokenizer_hash)
    limits: dict[Split, int | None] = {
        "train": config.ladder.train_rows,
        "select": config.ladder.select_rows,
        "test": config.ladder.num_rows,
    }
    train, select, test = (
        read_rows(dataset.split(name), named, av.vocabulary, most, config.seed) for name, most in limits.items()
    )
    splits = Splits(train, select, test)
    subject = Subject(load_hf_model(av.base, device))
    ladder = Ladder(
        splits.test,
        Means.of(splits.train.sites, splits.train.target),
        measured(splits.test.records, subject, av.vocabulary, config.ladder.truth),
        config.ladder.resamples,
        config.seed,
    )
    logger.info("explaining %d rows", len(splits.test))
    said = [parsed_claims(text, av) for text in explain(av, splits.test.records, named)]
    from_text = [parsed_claims(text, av) for text in explain(av, splits.test.records, named, from_text=True)]
    _closed_form(ladder, splits, subject, av, said, from_text, config.seed)
    if config.reader == "transformer":
        _transformers(config, ladder, splits, named, said, from_text, device)
    ladder.splice(subject, config.ladder.splice_rows, SPLICED)
    blind = max((rung for rung in DIFF_BLIND if rung in ladder.errors), key=ladder.fve)
    lines = to_rows([*ladder.lines(), *ladder.gains([("AV: bag", blind), *GAINS])])
    (run_dir / "ladder.json").write_text(json.dumps(lines, indent=2) + "\n")
    (run_dir / "explanations.json").write_text(json.dumps(_examples(splits.test, av, said), indent=2) + "\n")
    about = provenance(device) | {
        "seconds": time.monotonic() - started,
        "oracle": str(Path(config.oracle).resolve()),
        "dataset": str(dataset_dir.resolve()),
        "rows": {"train": len(splits.train), "select": len(splits.select), "test": len(splits.test)},
        "config": asdict(config),
    }
    (run_dir / "run.json").write_text(json.dumps(about, indent=2) + "\n")
    Checkpoints(run_dir / "ar" / CHECKPOINTS).delete()
    Checkpoints(run_dir / "context" / CHECKPOINTS).delete()
    print_ladder(lines)
    return ladder.fve("AV: bag")


def _load(config: TrainArConfig, device: str) -> tuple[Oracle, ExplanationConfig, Path]:
    """The oracle, what its explanations name, and its dataset.

    Raises:
        ValueError: The folder is no run of an oracle that was trained to explain.
    """
    source = Path(config.oracle)
    if not (source / "run.json").is_file():
        raise ValueError(f"oracle={source} is no run directory of diff_oracle.train: it has no run.json")
    about = json.loads((source / "run.json").read_text())
    if "explanation" not in about["config"]["tasks"]:
        raise ValueError(
            f"oracle={source} was not trained to explain: train one with "
            "'+task=[logit_lens,attention,layer_skip,explanation]'"
        )
    named = ExplanationConfig(**about["config"]["tasks"]["explanation"])
    dataset = Path(about["dataset"])
    if config.data_dir is not None:
        dataset = Path(config.data_dir) / dataset.name
    return Oracle.from_pretrained(source / "oracle", device), named, dataset


def _closed_form(
    ladder: Ladder,
    splits: Splits,
    subject: Subject,
    av: Oracle,
    said: Sequence[Claims],
    from_text: Sequence[Claims],
    seed: int,
) -> None:
    """The rungs that need no training."""
    train, select, test = splits.train, splits.select, splits.test
    blind, before = blind_rungs(train, select, test)
    for rung, rebuilt in blind.items():
        ladder.add(rung, rebuilt)
    features = ClaimFeatures(subject.W_U.T.float().cpu().numpy())
    gold, reader, with_before = gold_rungs(train, select, test, before, features, subject, av.vocabulary, seed)
    for rung, rebuilt in gold.items():
        ladder.add(rung, rebuilt, test.gold if rung == "gold: bag" else None)
    ladder.add("text: explained", reader(test, from_text), from_text)
    ladder.add("AV: bag", reader(test, said), said)
    ladder.add("AV: bag, before", with_before(test, said))
    true = ladder.true_claims(said)
    ladder.add("AV, false claims removed: bag", reader(test, true))
    for name, alter in ALTERED.items():
        ladder.add(f"AV, {name}: bag", reader(test, alter(test, said, seed)))


def _transformers(
    config: TrainArConfig,
    ladder: Ladder,
    splits: Splits,
    pair_config: ExplanationConfig,
    said: Sequence[Claims],
    from_text: Sequence[Claims],
    device: str,
) -> None:
    """Trains the reconstructor, and one of the context's text alone; saves the pair; adds their rungs."""
    run_dir, test, seed = Path(config.run_dir or "."), splits.test, config.seed
    few = max(1, len(splits.select) // 10)
    select = Rows(*(values[:few] for values in (vars(splits.select).values())))
    torch.manual_seed(seed)  # the adapters' start; every other draw is keyed
    gold: Pair = splits.train.gold, select.gold
    none: Pair = [[]] * len(splits.train), [[]] * few
    av = Oracle.from_pretrained(Path(config.oracle) / "oracle", device)
    blind = Reconstructor.create(av.base, replace(config.ar, before="text"), device)
    context = replace(config.reading, context_only=True)
    train_reconstructor(blind, splits.train, select, none, config.training, context, seed, run_dir / "context")
    ladder.add("text: AR", blind.reconstruct(test.records, [()] * len(test)))
    ar = Reconstructor.create(av.base, config.ar, device)
    train_reconstructor(ar, splits.train, select, gold, config.training, config.reading, seed, run_dir / "ar")
    DiffNLA(av, ar, pair_config).save(run_dir / "nla")

    def read(claims: Sequence[Claims]):  # type: ignore[no-untyped-def]
        return ar.reconstruct(test.records, [write(row) for row in claims])

    ladder.add("gold: AR", read(test.gold))
    others = [reworded(row, keyed_rng(seed, "paraphrase", i)) for i, row in enumerate(test.gold)]
    ladder.add("gold, paraphrased: AR", ar.reconstruct(test.records, others))
    ladder.add("text: explained: AR", read(from_text))
    ladder.add("AV: AR", read(said))
    others = [reworded(row, keyed_rng(seed, "paraphrase", i)) for i, row in enumerate(said)]
    ladder.add("AV, paraphrased: AR", ar.reconstruct(test.records, others))
    ladder.add("AV, false claims removed: AR", read(ladder.true_claims(said)))
    for name, alter in ALTERED.items():
        ladder.add(f"gold, {name}: AR", read(alter(test, test.gold, seed)))
        ladder.add(f"AV, {name}: AR", read(alter(test, said, seed)))


def _examples(rows: Rows, av: Oracle, said: Sequence[Claims], most: int = 50) -> list[dict[str, Any]]:
    """Some rows, what was said of them and what was measured."""
    show = av.vocabulary.show
    return [
        {
            "site": record.site,
            "context": show(record.token_ids[-24:]),
            "said": show(write(claims)),
            "measured": show(write(gold)),
        }
        for record, claims, gold in list(zip(rows.records, said, rows.gold, strict=True))[:most]
    ]


main = entry_point("train_ar", TrainArConfig, run)

if __name__ == "__main__":
    main()
