"""Trains and evaluates a diff oracle, from text to table.

    python -m diff_oracle.train +task=logit_lens
    python -m diff_oracle.train '+task=[logit_lens,attention,layer_skip]'
    python -m diff_oracle.train -m +task=logit_lens training.learning_rate=2e-3,4e-3
    python -m diff_oracle.train +task=logit_lens run_dir=runs/mine           # killed? the same command again goes on
    accelerate launch --multi_gpu --num_processes 2 -m diff_oracle.train +task=logit_lens    # GPUs, or without one CPUs

Builds the dataset if it is missing. Into the run directory go the oracle, `eval.json` (split `test`, every control),
`select.json` and `learning_curve.png` (split `select`), `run.json` (config, command, commit, machine, seconds), what
tensorboard reads, and `checkpoints/` until all that is written.
A sweep's job returns matched − shuffled on split `select`. The command of a finished run with its run_dir shows what it
found; so do the finished jobs of a sweep that was killed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState

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
from diff_oracle.evaluation.runs import Run, load_runs
from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.oracle.injection import InjectionConfig
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import PromptConfig
from diff_oracle.oracle.storage import OracleConfig, read_sidecar
from diff_oracle.provenance import provenance
from diff_oracle.records import open_dataset
from diff_oracle.subject.loading import pick_device
from diff_oracle.tasks import make_tasks
from diff_oracle.training.checkpoints import Checkpoints, changes
from diff_oracle.training.holdout import HoldoutConfig
from diff_oracle.training.mixture import MixtureConfig
from diff_oracle.training.precision import bf16_there
from diff_oracle.training.processes import join_processes, of_first
from diff_oracle.training.sft import CHECKPOINTS, TrainingConfig, train_oracle
from diff_oracle.training.trainer import best_step, load_trained

logger = logging.getLogger(__name__)

RESULTS = ("eval.json", "select.json", "learning_curve.png")


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
    tasks, asked = make_tasks(config.tasks), config.evaluation
    config = replace(config, holdout=config.holdout.with_weightless(config.mixture, tasks))
    processes, device = _join_processes(config)
    bf16 = bf16_there(config.training.bf16, device, "training.bf16")
    config = replace(config, training=replace(config.training, bf16=bf16))
    made_by = provenance(device)  # now: by the end, another commit may be checked out
    run_dir = Path(of_first(str(config.run_dir)))  # each process's own clock may have named another one
    checkpoints = Checkpoints(run_dir / CHECKPOINTS)
    settings: dict[str, Any] = {"config": _settings(asdict(config))}
    of_training: dict[str, Any] = {"config": _of_training(settings["config"])}
    finished = _finished(run_dir, settings)
    checkpoints.refuse_others(of_training)
    oracle = _fresh_oracle(config)
    config.holdout.check(oracle.identity.n_layers, oracle.identity.n_heads, list(config.tasks), config.sites.names)
    started = time.monotonic()
    dataset_dir = _build(config, processes)
    settings["dataset"] = of_training["dataset"] = dataset_dir.name
    if finished and (finished := _finished(run_dir, settings)):
        if processes.is_main_process:
            checkpoints.delete()  # where it was killed just before that
            print_table(finished.rows)
            print(f"finished before, on {dataset_dir}: to train anew, choose another run_dir= or delete {run_dir}")
        return finished.selection_score if processes.is_main_process else None
    built = time.monotonic()
    dataset = open_dataset(dataset_dir, oracle.identity.weights_hash, oracle.identity.tokenizer_hash)
    for task in tasks:
        task.fit(dataset.split("train"), oracle.vocabulary)
    for split in ("select", "test"):  # what evaluation needs must be there before time is spent on training
        asked_of = dataset.split(split)
        list(asked_rows(asked_of, tasks, 1, config.seed, config.holdout.trained(asked_of.sites)))
    checkpoints.refuse_others(of_training)
    processes.wait_for_everyone()
    if processes.is_main_process:
        _begin(run_dir, checkpoints, of_training, config.training.steps)
    train_rows = dataset.split("train")
    trained_tasks = [task for task in tasks if task.name not in config.holdout.tasks]

    def measure(oracle: Oracle, num_rows: int) -> dict[str, float]:
        return selection_scores(oracle, dataset, trained_tasks, num_rows, asked.batch_size, config.seed, config.holdout)

    history = train_oracle(
        oracle.to(device),
        train_rows.where(config.holdout.trained(train_rows.sites)),
        trained_tasks,
        config.training,
        config.mixture.of([task.name for task in trained_tasks]),
        config.seed,
        lambda oracle: measure(oracle, asked.curve_rows),
        mean_score,
        run_dir,
    )
    processes.wait_for_everyone()
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
    about = made_by | {
        "processes": processes.num_processes,
        "seconds": seconds,
        "dataset": str(dataset_dir.resolve()),
        "config": asdict(config),
    }
    partial = run_dir / "run.json.partial"
    partial.write_text(json.dumps(about, indent=2) + "\n")
    partial.rename(run_dir / "run.json")  # which says that the run is finished
    checkpoints.delete()
    print_table(rows)
    print(f"dataset {dataset_dir}\noracle, eval.json and learning_curve.png in {run_dir}")
    return selection_metric(selection)


def _fresh_oracle(config: TrainConfig) -> Oracle:
    """On the CPU, where there is room for it while a dataset is built."""
    torch.manual_seed(config.seed)  # the adapter's start; every other draw is keyed
    made_of = OracleConfig(config.lora, config.prompt, config.injection, config.training.base_dtype, config.tasks)
    return Oracle.create(config.model, made_of)


def _join_processes(config: TrainConfig) -> tuple[PartialState, str]:
    """What `accelerate launch` or `torchrun` started, one process where neither did, and this one's device.

    Raises:
        ValueError: The device is not there, or the batch cannot be split evenly over the processes.
    """
    shard_of_process(config.shard)  # makes the process's own GPU the one that "cuda" means
    device = pick_device(config.device)
    processes = join_processes(device)
    config.training.batch_size_of_process(processes.num_processes)
    return processes, device


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's results depend on."""
    places = ("run_dir", "data_dir", "device", "shard")
    return {name: value for name, value in config.items() if name not in places}


def _of_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a training must not change when it goes on: what is asked on split `test`, once it has ended, may change."""
    asked = {name: settings["evaluation"][name] for name in ("curve_rows", "selection_rows", "batch_size")}
    return {**settings, "evaluation": asked}


def _finished(run_dir: Path, settings: dict[str, Any]) -> Run | None:
    """The run that stands finished in a folder; None where none does.

    Raises:
        ValueError: It has other settings, or is not whole.
    """
    if not (run_dir / "run.json").is_file():
        return None
    try:
        (run,), _ = load_runs([run_dir])
        theirs = {"config": _settings(run.about.get("config", {})), "dataset": Path(run.about.get("dataset", "")).name}
        if changed := changes(theirs, settings):
            raise ValueError(f"it has other settings: {changed}")
        read_sidecar(run_dir / "oracle")
    except ValueError as error:
        raise ValueError(
            f"{run_dir} holds a finished run that is not this one: {error}. Choose another run_dir=, or delete it"
        ) from error
    return run


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
