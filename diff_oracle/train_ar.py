"""Trains the reconstructor of a diff-NLA, and measures what explanations carry: the ladder.

    python -m diff_oracle.train '+task=[logit_lens,attention,layer_skip,explanation]' run_dir=runs/explainer
    python -m diff_oracle.train_ar oracle=runs/explainer run_dir=runs/nla
    python -m diff_oracle.train_ar oracle=runs/explainer reader=bag_of_words        # closed form alone

The oracle must have been trained to explain. Into the run directory go the pair (`nla/`), `ladder.json`,
`explanations.json` (some rows with what was said of them), `held_out.json` (how the pair does row by row) and
`run.json`; with `rewriting=` also `wordings.json`, the words that were found. With `rotated_codebook=true` one more
reconstructor is trained, on words without meaning. Killed, the same command goes on.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from diff_oracle.cli import entry_point
from diff_oracle.nla.codebook import rotated_claims
from diff_oracle.nla.evaluation import AR, CODE_AR, CONTEXT_AR, SECOND_AR, LadderConfig, Splits, evaluate_pair
from diff_oracle.nla.held_out import HELD_OUT
from diff_oracle.nla.ladder import to_rows
from diff_oracle.nla.pair import DiffNLA
from diff_oracle.nla.reconstructor import Reconstructor, ReconstructorConfig
from diff_oracle.nla.report import print_ladder
from diff_oracle.nla.rewriting import RewritingConfig, more_wordings
from diff_oracle.nla.rows import Claims, Rows
from diff_oracle.nla.rungs import beyond, fit_before
from diff_oracle.nla.runs import FOLDERS, PAIR, oracle_of
from diff_oracle.nla.training import ReadingConfig, skipped_steps, train_reconstructor
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.storage import run_folder
from diff_oracle.provenance import provenance
from diff_oracle.records import open_dataset
from diff_oracle.subject.loading import load_hf_model, pick_device
from diff_oracle.subject.model import Subject
from diff_oracle.tasks.explanation import ExplanationConfig
from diff_oracle.training.checkpoints import Checkpoints
from diff_oracle.training.sft import CHECKPOINTS, TrainingConfig

logger = logging.getLogger(__name__)
READERS = ("transformer", "bag_of_words")


@dataclass
class TrainArConfig:
    """Everything that a reconstructor depends on."""

    oracle: str = "???"
    """A run directory of `diff_oracle.train`, with task `explanation`; or of a pair, whose oracle is read by another
    reconstructor; or `tiny`."""
    data_dir: str | None = None
    """Where the dataset's folder lies now, if it is not where training found it."""
    dataset: str | None = None
    """Folder of another dataset of the same model, to learn from and be measured on: readers want many rows of each
    site. A document is in the same split of every dataset."""
    reader: str = "transformer"
    """`transformer`, or `bag_of_words`: only what is fitted in closed form."""
    ar: ReconstructorConfig = field(default_factory=ReconstructorConfig)
    """The reconstructor."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    """How explanations are varied in its training."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How it is trained."""
    rewriting: RewritingConfig = field(default_factory=RewritingConfig)
    """Who finds more wordings for what it learns to read."""
    second_seed: bool = True
    """Whether another one is trained from another seed: what does a reader keep that is not this one?"""
    rotated_codebook: bool = False
    """Whether one more is trained, on words without meaning (`nla.codebook`): is what a text carries its meaning?"""
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
        if self.dataset is not None and self.data_dir is not None:
            raise ValueError("choose either dataset= or data_dir=, which says where the oracle's own dataset lies")


def run(config: TrainArConfig) -> float:
    """Trains, fits, compares, writes; returns the FVE of the oracle's own explanations."""
    assert config.run_dir is not None  # the command sets it
    started = time.monotonic()
    run_dir, device = Path(config.run_dir), pick_device(config.device)
    made_by = provenance(device)  # now: by the end, another commit may be checked out
    if (run_dir / "run.json").is_file():
        raise ValueError(f"{run_dir} holds a finished run: choose another run_dir=, or delete it")
    av, named, dataset_dir = _load(config, device)
    dataset = open_dataset(dataset_dir, av.identity.weights_hash, av.identity.tokenizer_hash)
    splits = Splits.read(dataset, config.ladder, named, av, config.seed)
    readers, skipped = _train_readers(config, splits, av, device) if config.reader == "transformer" else ({}, {})
    for name, reader in readers.items():
        if name == AR:
            DiffNLA(av, reader, named).save(run_dir / PAIR)
        else:
            reader.save(run_dir / FOLDERS[name])
    trained = time.monotonic()
    subject = Subject(load_hf_model(av.base, device))
    found = evaluate_pair(av, readers, named, splits, subject, config.ladder, config.seed)
    if found.held_out is not None:
        found.held_out.save(run_dir / HELD_OUT)
    lines = to_rows(found.lines)
    (run_dir / "ladder.json").write_text(json.dumps(lines, indent=2) + "\n")
    (run_dir / "explanations.json").write_text(json.dumps(found.examples, indent=2) + "\n")
    about = made_by | {
        "seconds": {"train": trained - started, "evaluate": time.monotonic() - trained},
        "oracle": str(run_folder(config.oracle).resolve()),
        "dataset": str(dataset_dir.resolve()),
        "rows": {name: len(rows) for name, rows in vars(splits).items()},
        "skipped_steps": skipped,
        "named": asdict(named),
        "config": asdict(config),
    }
    (run_dir / "run.json").write_text(json.dumps(about, indent=2) + "\n")
    for folder in FOLDERS.values():
        Checkpoints(run_dir / folder / CHECKPOINTS).delete()
    print_ladder(lines)
    for name, number in skipped.items():
        if number:
            print(f"{name}: {number} of {config.training.steps} training steps were left out, as they were not finite")
    return found.fve


def _load(config: TrainArConfig, device: str) -> tuple[Oracle, ExplanationConfig, Path]:
    """The oracle, what its explanations name, and its dataset.

    Raises:
        ValueError: The folder is no run of an oracle that was trained to explain.
    """
    source = run_folder(config.oracle)
    if not (source / "run.json").is_file():
        raise ValueError(f"oracle={source} is no run directory of diff_oracle.train: it has no run.json")
    about = json.loads((source / "run.json").read_text())
    named = about.get("named", about["config"].get("tasks", {}).get("explanation"))  # of a pair, of an oracle
    if named is None:
        raise ValueError(
            f"oracle={source} was not trained to explain: train one with "
            "'+task=[logit_lens,attention,layer_skip,explanation]'"
        )
    dataset = Path(config.dataset or about["dataset"])
    if config.data_dir is not None:
        dataset = Path(config.data_dir) / dataset.name
    return Oracle.from_pretrained(oracle_of(source), device), ExplanationConfig(**named), dataset


def _train_readers(
    config: TrainArConfig, splits: Splits, av: Oracle, device: str
) -> tuple[dict[str, Reconstructor], dict[str, int]]:
    """The reconstructor, one of another seed, one that is shown the context's text, one of a code without meaning.

    Returns:
        Them, and how many training steps of each were left out.
    """
    train, select, few = splits.train, splits.select, max(1, len(splits.select) // 10)
    if config.ar.target == "residual":
        before = fit_before(train, select)
        train, select = beyond(train, before), beyond(select, before)
    penalties_on, select = select, Rows(*(values[:few] for values in vars(select).values()))
    gold: tuple[list[Claims], list[Claims]] = list(train.gold), list(penalties_on.gold)
    none: tuple[list[Claims], list[Claims]] = [()] * len(train), [()] * len(penalties_on)
    blind = replace(config.reading, context_only=True)
    shared: dict[str, Any] = {"base": av.identity.weights_hash, "train_rows": len(train), "select_rows": few}
    jobs = [(AR, config.ar, gold, config.reading, config.seed)]
    jobs += [(SECOND_AR, config.ar, gold, config.reading, config.seed + 1)] if config.second_seed else []
    # From no claims its floor tells each site's mean, as the others' does.
    context = replace(config.ar, before="text", floor=config.ar.show_site)
    jobs += [(CONTEXT_AR, context, none, blind, config.seed)]
    if config.rotated_codebook:
        subject = Subject(load_hf_model(av.base, device))
        codes = [rotated_claims(x.records, x.gold, subject, av.vocabulary, config.seed) for x in (train, penalties_on)]
        jobs += [(CODE_AR, config.ar, (codes[0], codes[1]), config.reading, config.seed)]
    rewriting, run_dir = config.rewriting, Path(config.run_dir or ".")
    wordings = more_wordings(rewriting, train.gold, av.vocabulary, config.seed, device)
    if rewriting.source != "none":
        shared["wordings"] = wordings
        (run_dir / "wordings.json").write_text(json.dumps(wordings, indent=2) + "\n")
    readers, skipped = {}, {}
    for name, kind, claims, reading, seed in jobs:
        logger.info("training: %s", name)
        torch.manual_seed(seed)  # the adapter's start; every other draw is keyed
        readers[name] = Reconstructor.create(av.base, kind, device)
        readers[name].wordings = wordings
        readers[name].fit_floor(train, penalties_on, claims, seed)
        folder = run_dir / FOLDERS[name]
        settings = {"reading": asdict(reading), "ar": asdict(kind), "training": asdict(config.training), "seed": seed}
        read = claims[0], claims[1][:few]
        history = train_reconstructor(
            readers[name], train, select, read, config.training, reading, seed, folder, shared | settings
        )
        skipped[name] = skipped_steps(history)
    return readers, skipped


main = entry_point("train_ar", TrainArConfig, run)

if __name__ == "__main__":
    main()
