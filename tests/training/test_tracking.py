"""What stands in tensorboard's files, and that a tracker that is not there is asked for before anything is done."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diff_oracle.oracle.model import Oracle
from diff_oracle.training import tracking
from diff_oracle.training.sft import TrainingConfig
from tests.training.job import fresh_oracle, train


def test_tensorboard_gets_every_line_once_also_after_a_break(tmp_path: Path) -> None:
    settings = {"steps": 6, "evaluations": 2, "checkpoint_every": 1, "tracker": "tensorboard"}
    measured = []

    def measure(oracle: Oracle) -> dict[str, float]:
        measured.append(1)
        if len(measured) == 2:
            raise InterruptedError  # behind the line of step 6, before its checkpoint
        return {"select/some/matched": 0.25, "select/log_prob": 1.0}

    with pytest.raises(InterruptedError):
        train(fresh_oracle(), tmp_path, measure, **settings)
    history = train(fresh_oracle(), tmp_path, measure, **settings)
    scalars = EventAccumulator(str(tmp_path / "tensorboard"))
    scalars.Reload()
    losses = [(event.step, event.value) for event in scalars.Scalars("train/loss")]
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in history if "loss" in line]
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]
    assert [(event.step, event.value) for event in scalars.Scalars("select/some/matched")] == [(3, 0.25), (6, 0.25)]
    assert [event.value for event in scalars.Scalars("selection/metric")] == [1.0, 1.0]


def test_none_writes_nothing(tmp_path: Path) -> None:
    train(fresh_oracle(), tmp_path, steps=1, evaluations=1, tracker="none")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_wandb_gets_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb, run = MagicMock(__spec__=ModuleSpec("wandb", None)), MagicMock()
    wandb.init.return_value = run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train(fresh_oracle(), tmp_path, steps=2, evaluations=1, tracker="wandb")
    options = wandb.init.call_args.kwargs
    assert (options["project"], options["name"], options["dir"]) == ("diff_oracle", tmp_path.name, str(tmp_path))
    logged = [(call.kwargs["step"], call.args[0]) for call in run.log.call_args_list]
    assert [step for step, values in logged if "train/loss" in values] == [1, 2]
    assert [step for step, values in logged if "select/log_prob" in values] == [2]
    run.finish.assert_called_once()


def test_a_tracker_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"wandb needs the package wandb: pip install 'diff-oracle\[wandb\]'"):
        TrainingConfig(tracker="wandb")
    with pytest.raises(ValueError, match="unknown training.tracker 'paper': choose from tensorboard, wandb, none"):
        TrainingConfig(tracker="paper")
