"""Trains and evaluates a diff oracle, from text to table.

    python -m diff_oracle.train +task=logit_lens
    python -m diff_oracle.train '+task=[logit_lens,attention,layer_skip]'
    python -m diff_oracle.train -m +task=logit_lens training.learning_rate=2e-3,4e-3
    python -m diff_oracle.train +task=logit_lens run_dir=runs/mine           # killed? the same command again goes on
    accelerate launch --multi_gpu --num_processes 2 -m diff_oracle.train +task=logit_lens    # GPUs, or without one CPUs

Builds the dataset if it is missing. Into the run directory go the oracle, `eval.json` (split `test`, every control),
`select.json` and `learning_curve.png` (split `select`), `run.json` (config, command, commit, machine, seconds), what
tensorboard reads, and `checkpoints/` until all that is written.
A sweep's job returns matched − shuffled on split `select`.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import broadcast_object_list

from data_gen.build import BuildConfig, build, build_shard
from data_gen.shards import shard_of_process
from diff_oracle.cli import entry_point
from diff_oracle.evaluation.metrics import (
    EvaluationConfig,
    Evaluator,
    asked_rows,
    mean_score,
    selection_metric,
    selection_scores,
)
from diff_oracle.evaluation.report import draw_learning_curve, markdown_verdicts, print_table
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
from diff_oracle.training.checkpoints import Checkpoints
from diff_oracle.training.holdout import HoldoutConfig
from diff_oracle.training.mixture import MixtureConfig
from diff_oracle.training.sft import CHECKPOINTS, TrainingConfig, train_oracle
from diff_oracle.training.trainer import best_step, load_trained

logger = logging.getLogger(__name__)

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


def run(config: TrainConfig) -> float | None:
    """Builds, trains, evaluates, writes; returns the selection metric, in the first of several processes."""
    assert config.run_dir is not None  # the command sets it
    processes, device = _join_processes(config)
    run_dir = Path(broadcast_object_list([config.run_dir])[0])  # each process's own clock may have named another one
    checkpoints = Checkpoints(run_dir / CHECKPOINTS)
    settings: dict[str, Any] = {"config": _settings(config)}
    checkpoints.refuse_others(settings)
    tasks, asked = make_tasks(config.tasks), config.evaluation
    oracle = _fresh_oracle(config)
    config.holdout.check(oracle.identity.n_layers, oracle.identity.n_heads, list(config.tasks))
    started = time.monotonic()
    dataset_dir = _build(config, processes)
    built = time.monotonic()
    dataset = open_dataset(dataset_dir, oracle.identity.weights_hash, oracle.identity.tokenizer_hash)
    for task in tasks:
        task.fit(dataset.split("train"), oracle.vocabulary)
    for split in ("select", "test"):  # what evaluation needs must be there before time is spent on training
        asked_of = dataset.split(split)
        list(asked_rows(asked_of, tasks, 1, config.seed, config.holdout.trained(asked_of.sites)))
    settings["dataset"] = dataset_dir.name
    checkpoints.refuse_others(settings)
    processes.wait_for_everyone()
    if processes.is_main_process:
        _begin(run_dir, checkpoints, settings, config.training.steps)
    train_rows = dataset.split("train")
    trained_tasks = [task for task in tasks if task.name not in config.holdout.tasks]

    def measure(oracle: Oracle, num_rows: int) -> dict[str, float]:
        return selection_scores(oracle, dataset, trained_tasks, num_rows, asked.batch_size, config.seed, config.holdout)

    history = train_oracle(
        oracle.to(device),
        train_rows.where(config.holdout.trained(train_rows.sites)),
        trained_tasks,
        config.training,
        config.mixture,
        config.seed,
        lambda oracle: measure(oracle, asked.curve_rows),
        mean_score,
        run_dir,
    )
    processes.wait_for_everyone()
    processes.destroy_process_group()
    if not processes.is_main_process:
        return None
    if processes.distributed_type == DistributedType.FSDP:  # each process has a piece of what was trained
        oracle = _fresh_oracle(config).to(device).eval()
        load_trained(oracle, checkpoints.path(best_step(history) or config.training.steps))
    oracle.save(run_dir / "oracle")
    draw_learning_curve(history, run_dir / "learning_curve.png")
    trained = time.monotonic()
    selection = measure(oracle, asked.selection_rows)
    (run_dir / "select.json").write_text(json.dumps({"history": history, "final": selection}, indent=2) + "\n")
    rows = to_rows(Evaluator(oracle, dataset, tasks, asked, config.seed, config.holdout).evaluate("test"))
    (run_dir / "eval.json").write_text(json.dumps(rows, indent=2) + "\n")
    oracle.save(run_dir / "oracle", scores=markdown_verdicts(rows))  # again, now that its card can say what it can do
    seconds = {"build": built - started, "train": trained - built, "evaluate": time.monotonic() - trained}
    about = provenance(device) | {
        "processes": processes.num_processes,
        "seconds": seconds,
        "dataset": str(dataset_dir.resolve()),
        "config": asdict(config),
    }
    (run_dir / "run.json").write_text(json.dumps(about, indent=2) + "\n")
    checkpoints.delete()
    print_table(rows)
    print(f"dataset {dataset_dir}\noracle, eval.json and learning_curve.png in {run_dir}")
    return selection_metric(selection)


def _fresh_oracle(config: TrainConfig) -> Oracle:
    """On the CPU, where there is room for it while a dataset is built."""
    torch.manual_seed(config.seed)  # the adapter's start; every other draw is keyed
    base = replace(config.model, dtype=config.training.base_dtype or config.model.dtype)
    return Oracle.create(base, OracleConfig(config.lora, config.prompt, config.injection))


def _join_processes(config: TrainConfig) -> tuple[PartialState, str]:
    """What `accelerate launch` or `torchrun` started, one process where neither did, and this one's device.

    Raises:
        ValueError: The device is not there, or the batch cannot be split evenly over the processes.
    """
    shard_of_process(config.shard)  # makes the process's own GPU the one that "cuda" means
    device = pick_device(config.device)
    # One waits for another as long as a share of the dataset takes.
    processes = PartialState(cpu=device == "cpu", timeout=timedelta(days=1))
    config.training.batch_size_of_process(processes.num_processes)
    if not processes.is_main_process:
        for name in ("diff_oracle", "data_gen"):
            logging.getLogger(name).setLevel(logging.WARNING)
    # How accelerate starts one process where it was asked for several that it knows no GPUs for.
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        logger.warning(
            "accelerate has started a single process: on CPUs, several want `--multi_gpu` beside `--num_processes`, or "
            "`--config_file conf/accelerate/ddp_cpu.yaml`"
        )
    return processes, device


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What a training must not change when it goes on."""
    places = ("run_dir", "data_dir", "device", "shard")
    return {name: value for name, value in asdict(config).items() if name not in places}


def _build(config: TrainConfig, processes: PartialState) -> Path:
    """The dataset's directory; several processes build a share each."""
    if processes.num_processes == 1:
        return build(config)
    path, _ = build_shard(replace(config, shard=shard_of_process(config.shard)))
    processes.wait_for_everyone()
    return path


def _begin(run_dir: Path, checkpoints: Checkpoints, settings: dict[str, Any], steps: int) -> None:
    """Says whether a training begins or goes on, and clears away what an earlier one left in the folder."""
    step = max(checkpoints.steps(), default=0)
    logger.info("training in %s: %s %d of %d", run_dir, "going on behind step" if step else "from step", step, steps)
    logger.info("if it is killed, the same command with run_dir=%s goes on from its last checkpoint", run_dir)
    checkpoints.claim(settings)
    for name in RESULTS:  # so that none stands beside the new oracle
        (run_dir / name).unlink(missing_ok=True)


main = entry_point("train", TrainConfig, run)

if __name__ == "__main__":
    # By its name: a cluster's job imports what it runs, and its own __main__ is another.
    from diff_oracle import train as this_module

    this_module.main()
