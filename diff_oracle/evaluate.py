"""Evaluates a trained oracle again, on the dataset that it was trained with.

    python -m diff_oracle.evaluate oracle=runs/demo

Reads the run directory that training wrote; the same settings give the same numbers.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

from diff_oracle.cli import entry_point
from diff_oracle.evaluation.metrics import EvaluationConfig, Evaluator
from diff_oracle.evaluation.report import print_table
from diff_oracle.evaluation.results import to_rows
from diff_oracle.oracle.model import Oracle
from diff_oracle.provenance import provenance
from diff_oracle.records import Split, open_dataset
from diff_oracle.subject.loading import pick_device
from diff_oracle.tasks import Task, make_tasks
from diff_oracle.training.holdout import HoldoutConfig


@dataclass
class EvaluateConfig:
    """What to evaluate."""

    oracle: str = "???"
    """A run directory that `diff_oracle.train` wrote."""
    data_dir: str | None = None
    """Where the dataset's folder lies now, if it is not where training found it."""
    split: str = "test"
    """Reports use `test`; choose between runs by `select`."""
    num_rows: int | None = None
    """Rows to ask; as in training if not given."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    run_dir: str | None = None
    """Where eval.json goes."""


def run(config: EvaluateConfig) -> None:
    """Loads, asks, prints, writes."""
    assert config.run_dir is not None  # the command sets it
    if config.split not in ("select", "test"):
        raise ValueError(f"split must be select or test, got {config.split!r}")
    source, device = Path(config.oracle), pick_device(config.device)
    if not (source / "run.json").is_file():
        raise ValueError(f"oracle={source} is no run directory of diff_oracle.train: it has no run.json")
    if Path(config.run_dir).resolve() == source.resolve():
        raise ValueError(f"run_dir={config.run_dir} is the oracle's own folder: choose another one")
    dataset_dir, tasks, settings, holdout, seed = _read_settings(source / "run.json")
    oracle = Oracle.from_pretrained(source / "oracle", device)
    if config.data_dir is not None:
        dataset_dir = Path(config.data_dir) / dataset_dir.name
    dataset = open_dataset(dataset_dir, oracle.identity.weights_hash, oracle.identity.tokenizer_hash)
    if config.num_rows is not None:
        settings = replace(settings, num_rows=config.num_rows)
    for task in tasks:
        task.fit(dataset.split("train"), oracle.vocabulary)
    rows = to_rows(Evaluator(oracle, dataset, tasks, settings, seed, holdout).evaluate(cast(Split, config.split)))
    (Path(config.run_dir) / "eval.json").write_text(json.dumps(rows, indent=2) + "\n")
    about = provenance(device) | {
        "oracle": str(source.resolve()),
        "dataset": str(dataset.path),
        "config": asdict(config),
    }
    (Path(config.run_dir) / "run.json").write_text(json.dumps(about, indent=2) + "\n")
    print_table(rows)


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
