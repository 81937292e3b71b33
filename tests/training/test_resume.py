"""A training that is killed and started again ends as one that never was, bit for bit."""

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from diff_oracle.oracle.model import Oracle
from diff_oracle.training.examples import ExampleDataset
from diff_oracle.training.sft import CHECKPOINTS
from diff_oracle.training.trainer import OracleTrainer, best_step, trained
from tests.training.job import fresh_oracle, live, train

ROOT = Path(__file__).parents[2]
SETTINGS = {"steps": 12, "evaluations": 3, "checkpoint_every": 5}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """As in the processes that are killed: sums over several threads come out otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(run_dir: Path, step: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.job", str(run_dir), json.dumps(SETTINGS), str(step)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill(process: subprocess.Popen[bytes]) -> None:
    errors = process.communicate(timeout=200)[1]
    assert process.returncode == -signal.SIGKILL, errors.decode()


def assert_same(run_dir: Path, expected: Path) -> None:
    for name in ("history.json", "oracle/injector.safetensors", "oracle/adapter/adapter_model.safetensors"):
        assert (run_dir / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    live(folder, SETTINGS)
    torch.set_num_threads(before)
    return folder


def test_a_killed_training_ends_as_a_whole_one(whole: Path, tmp_path: Path) -> None:
    # In the middle of a step; and while checkpoint 8, that of the best state so far, is written.
    deaths = {7: tmp_path / "in_step", -8: tmp_path / "in_checkpoint"}
    for process in [start(folder, step) for step, folder in deaths.items()]:
        kill(process)
    for folder in deaths.values():
        assert {path.name for path in (folder / CHECKPOINTS).glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-5"}
    assert (deaths[-8] / CHECKPOINTS / "partial" / "checkpoint-8" / "optimizer.pt").exists()
    for folder in deaths.values():
        live(folder, SETTINGS)
        assert_same(folder, whole)


def test_a_training_killed_in_any_step_ends_as_a_whole_one(whole: Path, tmp_path: Path) -> None:
    step = secrets.choice(range(1, 13))
    print(f"killed in step {step}")  # shown where the test fails
    kill(start(tmp_path / "run", step))
    live(tmp_path / "run", SETTINGS)
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_training_killed_again_and_again_ends_as_a_whole_one(whole: Path, tmp_path: Path) -> None:
    for step in (1, -4, 3, 5, 6, -8, 9, 12, -12):
        kill(start(tmp_path / "run", step))
    live(tmp_path / "run", SETTINGS)
    assert_same(tmp_path / "run", whole)


def test_what_was_read_is_not_read_again(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OracleTrainer, "_save_rng_state", lambda self, folder: stop_at(self, 8))
    with pytest.raises(InterruptedError):
        train(fresh_oracle(), tmp_path, **SETTINGS)
    monkeypatch.undo()
    read: list[int] = []
    get = ExampleDataset.__getitem__
    monkeypatch.setattr(ExampleDataset, "__getitem__", lambda self, index: (read.append(index), get(self, index))[1])
    train(fresh_oracle(), tmp_path, **SETTINGS)
    assert read == list(range(5 * 4, 12 * 4))


def stop_at(trainer: OracleTrainer, step: int) -> None:
    if trainer.state.global_step == step:
        raise InterruptedError


def test_only_what_is_trained_is_written(whole: Path) -> None:
    saved = [path.name for path in (whole / CHECKPOINTS / "checkpoint-12").iterdir()]
    files = {"trained.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert set(saved) == files
    oracle = fresh_oracle()
    of_trained = sum(parameter.numel() for parameter in trained(oracle).values())
    assert of_trained < 0.2 * sum(parameter.numel() for parameter in oracle.parameters())
    assert (whole / CHECKPOINTS / "checkpoint-12" / "trained.safetensors").stat().st_size < 4 * of_trained + 20_000


def test_two_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    values = iter([3.0, 1.0, 2.0, 1.0])
    history = fit(tmp_path, lambda oracle: next(values), evaluations=4)
    kept = {path.name for path in (tmp_path / CHECKPOINTS).glob("checkpoint-*")}
    assert kept == {"checkpoint-3", "checkpoint-10", "checkpoint-12"}
    assert best_step(history) == 3


def fit(run_dir: Path, measured: Any, oracle: Oracle | None = None, **settings: Any) -> list[dict[str, Any]]:
    """Trains with a measurement that is made up."""
    scored = {
        "measure": lambda oracle: {"select/value": measured(oracle)},
        "select": lambda scores: scores["select/value"],
    }
    return train(oracle or fresh_oracle(), run_dir, **{**SETTINGS, **settings}, **scored)


@pytest.mark.parametrize("patience", [None, 2])
def test_training_ends_in_its_best_state_and_when_nothing_gets_better(patience: int | None, tmp_path: Path) -> None:
    values, states = [1.0, 5.0, 3.0, 5.0, 4.0, 9.0], []

    def measured(oracle: Oracle) -> float:
        states.append({name: parameter.detach().clone() for name, parameter in trained(oracle).items()})
        return values[len(states) - 1]

    oracle = fresh_oracle()
    history = fit(tmp_path, measured, oracle, evaluations=6, patience=patience)
    steps = [line["step"] for line in history if "select/value" in line]
    # The fourth is as good as the best, but no better.
    assert steps == ([2, 4, 6, 8] if patience else [2, 4, 6, 8, 10, 12])
    assert max(line["step"] for line in history) == steps[-1]
    best = states[3 if patience else 5]
    assert all(torch.equal(parameter, best[name]) for name, parameter in trained(oracle).items())
    # Started again, behind its end: nothing is done, and the same comes out.
    oracle = fresh_oracle()
    again = fit(tmp_path, measured, oracle, evaluations=6, patience=patience)
    assert again == history and len(states) == len(steps)
    assert all(torch.equal(parameter, best[name]) for name, parameter in trained(oracle).items())


def test_a_lost_loss_keeps_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = OracleTrainer.training_step

    def lost_at(lost: int, part: str) -> None:
        def training_step(self: OracleTrainer, *arguments: Any) -> torch.Tensor:
            loss = step(self, *arguments)
            if self.state.global_step == lost - 1:
                if part == "gradient":
                    next(iter(trained(self._oracle).values())).grad.fill_(float("inf"))  # type: ignore[union-attr]
                else:
                    loss = loss * float("nan")
            return loss

        monkeypatch.setattr(OracleTrainer, "training_step", training_step)

    # The loss of step 10 is fine, its gradient is not: no checkpoint of what it made.
    for lost, part, said in ((7, "loss", "the loss is nan at step 7"), (10, "gradient", "not finite after step 10")):
        lost_at(lost, part)
        folder = tmp_path / part
        with pytest.raises(ValueError, match=said) as error:
            train(fresh_oracle(), folder, **SETTINGS)
        last = max(path.name for path in (folder / CHECKPOINTS).glob("checkpoint-*"))
        assert last == f"checkpoint-{5 if lost == 7 else 8}"
        assert f"keeps the checkpoint of step {last[11:]}" in str(error.value)
        assert "training.learning_rate, with another run_dir=" in str(error.value)
        monkeypatch.undo()
        assert train(fresh_oracle(), folder, **SETTINGS)[-1]["step"] == 12  # the fault gone, it goes on
