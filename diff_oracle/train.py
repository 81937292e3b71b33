"""Trains and evaluates a diff oracle, from text to table.

    python -m diff_oracle.train +task=logit_lens
    python -m diff_oracle.train '+task=[logit_lens,attention,layer_skip]'
    python -m diff_oracle.train -m +task=logit_lens training.learning_rate=2e-3,4e-3

Builds the dataset if it is missing. Into the run directory go the oracle, `eval.json` (split `test`, every control),
`select.json` and `learning_curve.png` (split `select`), and `run.json` (config, command, commit, machine, seconds).
A sweep's job returns matched − shuffled on split `select`.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from data_gen.build import BuildConfig, build
from diff_oracle.cli import entry_point
from diff_oracle.evaluation.metrics import (
    EvaluationConfig,
    Evaluator,
    asked_rows,
    selection_metric,
    selection_scores,
)
from diff_oracle.evaluation.report import draw_learning_curve, print_table
from diff_oracle.evaluation.results import to_rows
from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.oracle.injection import InjectionConfig
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import PromptConfig
from diff_oracle.oracle.storage import OracleConfig
from diff_oracle.provenance import provenance
from diff_oracle.records import open_dataset
from diff_oracle.subject.loading import pick_device
from diff_oracle.tasks import make_tasks
from diff_oracle.training.holdout import HoldoutConfig
from diff_oracle.training.mixture import MixtureConfig
from diff_oracle.training.sft import TrainingConfig, train_oracle

RESULTS = ("run.json", "eval.json", "select.json", "learning_curve.png")


@dataclass
class TrainConfig(BuildConfig):
    """Everything that a run depends on: the dataset's part first."""

    injection: InjectionConfig = field(default_factory=InjectionConfig)
    """How diffs are put into the oracle."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """What the oracle is told beside the diff."""
    lora: LoraOptions = field(default_factory=LoraOptions)
    """The adapter."""
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    """What training asks."""
    holdout: HoldoutConfig = field(default_factory=HoldoutConfig)
    """What training never sees."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How it is trained."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How much is asked afterwards."""


def run(config: TrainConfig) -> float:
    """Builds, trains, evaluates, writes; returns the selection metric."""
    assert config.run_dir is not None  # the command sets it
    run_dir, device = Path(config.run_dir), pick_device(config.device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("training runs in one process so far: start it with python, not with torchrun or accelerate")
    tasks, asked = make_tasks(config.tasks), config.evaluation
    started = time.monotonic()
    dataset_dir = build(config)
    built = time.monotonic()
    torch.manual_seed(config.seed)  # the adapter's start; every other draw is keyed
    oracle = Oracle.create(config.model, OracleConfig(config.lora, config.prompt, config.injection), device)
    config.holdout.check(oracle.identity.n_layers, oracle.identity.n_heads, list(config.tasks))
    dataset = open_dataset(dataset_dir, oracle.identity.weights_hash, oracle.identity.tokenizer_hash)
    for task in tasks:
        task.fit(dataset.split("train"), oracle.vocabulary)
    for split in ("select", "test"):  # what evaluation needs must be there before time is spent on training
        list(asked_rows(dataset.split(split), tasks, 1, config.seed))
    for name in RESULTS:  # of an earlier run in this folder, so that none stands beside the new oracle
        (run_dir / name).unlink(missing_ok=True)
    train_rows = dataset.split("train")
    history = train_oracle(
        oracle,
        train_rows.where(config.holdout.trained(train_rows.sites)),
        tasks,
        config.training,
        config.mixture,
        config.seed,
        measure=lambda o: selection_scores(
            o, dataset, tasks, asked.curve_rows, asked.batch_size, config.seed, config.holdout
        ),
    )
    oracle.save(run_dir / "oracle")
    draw_learning_curve(history, run_dir / "learning_curve.png")
    trained = time.monotonic()
    selection = selection_scores(
        oracle, dataset, tasks, asked.selection_rows, asked.batch_size, config.seed, config.holdout
    )
    (run_dir / "select.json").write_text(json.dumps({"history": history, "final": selection}, indent=2) + "\n")
    rows = to_rows(Evaluator(oracle, dataset, tasks, asked, config.seed, config.holdout).evaluate("test"))
    (run_dir / "eval.json").write_text(json.dumps(rows, indent=2) + "\n")
    seconds = {"build": built - started, "train": trained - built, "evaluate": time.monotonic() - trained}
    about = provenance(device) | {"seconds": seconds, "dataset": str(dataset_dir.resolve()), "config": asdict(config)}
    (run_dir / "run.json").write_text(json.dumps(about, indent=2) + "\n")
    print_table(rows)
    print(f"dataset {dataset_dir}\noracle, eval.json and learning_curve.png in {run_dir}")
    return selection_metric(selection)


main = entry_point("train", TrainConfig, run)

if __name__ == "__main__":
    main()
