"""Evaluates a trained oracle, or the pair of a diff-NLA, again, on the dataset that it was trained with.

    python -m diff_oracle.evaluate oracle=runs/demo
    python -m diff_oracle.evaluate nla=runs/nla

Reads the run directory that training wrote; the same settings give the same numbers.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from diff_oracle.cli import entry_point
from diff_oracle.evaluation.metrics import EvaluationConfig, Evaluator
from diff_oracle.evaluation.report import print_table
from diff_oracle.evaluation.results import to_rows
from diff_oracle.nla.evaluation import Splits, evaluate_pair
from diff_oracle.nla.ladder import to_rows as ladder_rows
from diff_oracle.nla.report import print_ladder
from diff_oracle.nla.runs import load_pair_run
from diff_oracle.oracle.model import Oracle
from diff_oracle.provenance import provenance
from diff_oracle.records import DiffDataset, Split, open_dataset
from diff_oracle.subject.loading import load_hf_model, pick_device
from diff_oracle.subject.model import Subject
from diff_oracle.tasks import Task, make_tasks
from diff_oracle.training.holdout import HoldoutConfig


@dataclass
class EvaluateConfig:
    """What to evaluate."""

    oracle: str | None = None
    """A run directory that `diff_oracle.train` wrote."""
    nla: str | None = None
    """Or one that `diff_oracle.train_ar` wrote."""
    data_dir: str | None = None
    """Where the dataset's folder lies now, if it is not where training found it."""
    split: str = "test"
    """Reports use `test`; choose between runs by `select`."""
    num_rows: int | None = None
    """Rows to ask; as in training if not given."""
    controls: list[str] | None = None
    """What an oracle is asked with beside the right diffs; as in training if not given."""
    tasks: list[str] | None = None
    """Which of the run's tasks an oracle is asked about; all if not given."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    run_dir: str | None = None
    """Where eval.json goes."""


def run(config: EvaluateConfig) -> None:
    """Loads, asks, prints, writes."""
    assert config.run_dir is not None  # the command sets it
    if config.split not in ("select", "test"):
        raise ValueError(f"split must be select or test, got {config.split!r}")
    if (config.oracle is None) == (config.nla is None):
        raise ValueError("give either oracle=RUN, of diff_oracle.train, or nla=RUN, of diff_oracle.train_ar")
    source = Path(config.oracle or config.nla or "")
    if Path(config.run_dir).resolve() == source.resolve():
        raise ValueError(f"run_dir={config.run_dir} is the run's own folder: choose another one")
    (_evaluate_oracle if config.oracle else _evaluate_pair)(config, source, pick_device(config.device))


def _evaluate_oracle(config: EvaluateConfig, source: Path, device: str) -> None:
    if not (source / "run.json").is_file():
        raise ValueError(f"oracle={source} is no run directory of diff_oracle.train: it has no run.json")
    dataset_dir, tasks, settings, holdout, seed = _read_settings(source / "run.json")
    if config.tasks is not None:
        tasks = _choose(config.tasks, tasks)
    oracle = Oracle.from_pretrained(source / "oracle", device)
    dataset = _open(config, dataset_dir, oracle)
    if config.num_rows is not None:
        settings = replace(settings, num_rows=config.num_rows)
    if config.controls is not None:
        settings = replace(settings, controls=config.controls)
    for task in tasks:
        task.fit(dataset.split("train"), oracle.vocabulary)
    rows = to_rows(Evaluator(oracle, dataset, tasks, settings, seed, holdout).evaluate(cast(Split, config.split)))
    _write(config, device, dataset, {"eval.json": rows})
    print_table(rows)


def _choose(names: list[str], tasks: list[Task]) -> list[Task]:
    """The tasks of these names."""
    known = {task.name: task for task in tasks}
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise ValueError(f"the run has no task {', '.join(wrong) or '(none named)'}: choose from {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def _evaluate_pair(config: EvaluateConfig, source: Path, device: str) -> None:
    if config.controls is not None:
        raise ValueError("controls are asked of an oracle; a pair has its ladder")
    if config.tasks is not None:
        raise ValueError("tasks are asked of an oracle; a pair has its ladder")
    if config.split != "test":
        raise ValueError("a pair is measured on split=test: what it reads with is chosen on select")
    pair = load_pair_run(source, device)
    dataset = _open(config, pair.dataset, pair.av)
    settings = pair.ladder if config.num_rows is None else replace(pair.ladder, num_rows=config.num_rows)
    splits = Splits.read(dataset, settings, pair.named, pair.av, pair.seed)
    subject = Subject(load_hf_model(pair.av.base, device))
    found = evaluate_pair(pair.av, pair.readers, pair.named, splits, subject, settings, pair.seed)
    lines = ladder_rows(found.lines)
    about = {"named": asdict(pair.named), "ladder": asdict(settings)}
    _write(config, device, dataset, {"ladder.json": lines, "explanations.json": found.examples}, about)
    print_ladder(lines)


def _open(config: EvaluateConfig, path: Path, oracle: Oracle) -> DiffDataset:
    path = path if config.data_dir is None else Path(config.data_dir) / path.name
    return open_dataset(path, oracle.identity.weights_hash, oracle.identity.tokenizer_hash)


def _write(
    config: EvaluateConfig,
    device: str,
    dataset: DiffDataset,
    results: dict[str, Any],
    more: dict[str, Any] | None = None,
) -> None:
    """Results, and where they come from."""
    run_dir = Path(config.run_dir or ".")
    about = {"dataset": str(dataset.path), "config": asdict(config) | (more or {})}
    if config.oracle:
        about["oracle"] = str(Path(config.oracle).resolve())
    for name, content in (results | {"run.json": provenance(device) | about}).items():
        (run_dir / name).write_text(json.dumps(content, indent=2) + "\n")


def _read_settings(file: Path) -> tuple[Path, list[Task], EvaluationConfig, HoldoutConfig, int]:
    """A run's dataset, tasks, settings, what it held out, and its seed."""
    try:
        about = json.loads(file.read_text())
        dataset_dir, config = Path(about["dataset"]), about["config"]
        tasks, settings = make_tasks(config["tasks"]), EvaluationConfig(**config["evaluation"])
        return dataset_dir, tasks, settings, HoldoutConfig(**config["holdout"]), config["seed"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} cannot be read: {type(error).__name__}: {error}; it is damaged, or another version of diff_oracle "
            "wrote it: evaluate with that version, or train again"
        ) from error


main = entry_point("evaluate", EvaluateConfig, run)

if __name__ == "__main__":
    main()
