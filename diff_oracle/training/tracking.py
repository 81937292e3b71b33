"""Where the log goes beside the run directory: tensorboard or Weights & Biases, through accelerate's trackers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

TRACKERS = ("tensorboard", "wandb", "none")
PROJECT = "diff_oracle"


def check_tracker(name: str) -> None:
    """Makes sure that a tracker is known and installed.

    Raises:
        ValueError: It is not.
    """
    if name not in TRACKERS:
        raise ValueError(f"unknown training.tracker {name!r}: choose from {', '.join(TRACKERS)}")
    if name != "none" and find_spec(name) is None:
        raise ValueError(
            f"training.tracker={name} needs the package {name}: pip install 'diff-oracle[{name}]', or choose "
            "training.tracker=tensorboard or none"
        )


def open_tracker(name: str, run_dir: Path, settings: dict[str, Any], step: int) -> GeneralTracker | None:
    """A tracker, ready to log; None for `none`.

    Args:
        name: One of `TRACKERS`.
        run_dir: The run's folder: tensorboard's files go into `tensorboard/`, those of wandb into `wandb/`.
        settings: Shown by wandb beside the run.
        step: Behind which a run begins or goes on.
    """
    if name == "none":
        return None
    tracker: GeneralTracker
    if name == "tensorboard":
        # What a killed run wrote behind its last checkpoint is written again, and hidden where it stands.
        tracker = TensorBoardTracker("tensorboard", run_dir, purge_step=step + 1)
    else:
        tracker = WandBTracker(PROJECT, name=run_dir.name, group=run_dir.name, dir=str(run_dir), config=settings)
    tracker.start()
    return tracker


class Tracking(TrainerCallback):
    """Hands every line of the log to a tracker: `train/loss`, `train/learning_rate`, …, `select/…`.

    Args:
        name: One of `TRACKERS`.
        run_dir: The run's folder.
        settings: Shown by wandb beside the run.
    """

    def __init__(self, name: str, run_dir: Path, settings: dict[str, Any]) -> None:
        self._name, self._run_dir, self._settings = name, run_dir, settings
        self._tracker: GeneralTracker | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Opens the tracker, in the first of several processes."""
        if state.is_world_process_zero:
            self._tracker = open_tracker(self._name, self._run_dir, self._settings, state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        """Hands on a line."""
        if self._tracker is None:
            return
        lines = {name if "/" in name else f"train/{name}": value for name, value in logs.items()}
        self._tracker.log(lines, step=state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Closes the tracker."""
        if self._tracker is not None:
            self._tracker.finish()
