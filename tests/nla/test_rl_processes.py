"""Several processes learn as one does.

python -m tests.nla.test_rl_processes FOLDER        each arm; under `accelerate launch`, or alone
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from diff_oracle.nla.steps import RlConfig
from diff_oracle.nla.training import ReadingConfig
from diff_oracle.nla.updates import UpdateConfig
from diff_oracle.training.processes import count, gathered, join_processes, of_first, rank, summed
from tests.nla.test_rl import made, weights, without_times
from tests.training.test_processes import launch

ARMS = ("rl", "sft_continued")
EXACT = ReadingConfig(reworded=0.0, shortened=0.0)  # what is read is varied by each process for itself


def learn(folder: Path) -> None:
    """Runs each arm; writes the lines and the sizes of the weights of this process."""
    join_processes("cpu")
    torch.set_num_threads(1)
    assert summed([1.0, float(rank())], torch.device("cpu")) == [count(), sum(range(count()))]
    assert gathered([rank()]) == list(range(count()))
    assert of_first(rank()) == 0
    for arm in ARMS:
        run, pair = made(folder / arm, arm=arm, reading=EXACT, steps=2, updates=UpdateConfig(learning_rate=1e-2))
        run.fit()
        found = {"lines": run.lines, "weights": {name: float(w.double().sum()) for name, w in weights(pair).items()}}
        (folder / f"{arm}_{rank()}_of_{count()}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each process wrote, by the name of its file."""
    folder = tmp_path_factory.mktemp("processes")
    for name in ("alone", "two"):
        (folder / name).mkdir()
    learn(folder / "alone")
    done = launch("ddp_cpu.yaml", "-m", "tests.nla.test_rl_processes", str(folder / "two"))
    assert done.returncode == 0, done.stderr
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*/*.json")}


@pytest.mark.parametrize("arm", ARMS)
def test_all_processes_hold_the_same(found: dict[str, dict[str, Any]], arm: str) -> None:
    one, other = found[f"{arm}_0_of_2"], found[f"{arm}_1_of_2"]
    assert one["weights"] == other["weights"]
    assert without_times(one["lines"]) == without_times(other["lines"])


def test_two_processes_have_the_losses_of_one(found: dict[str, dict[str, Any]]) -> None:
    two, alone = (without_times(found[f"sft_continued_{name}"]["lines"]) for name in ("0_of_2", "0_of_1"))
    assert [line.keys() for line in two] == [line.keys() for line in alone]
    assert len(two) == 3
    for line, expected in zip(two, alone, strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert two[1]["sft_loss"] == pytest.approx(alone[1]["sft_loss"], rel=1e-5)
    assert two[1]["grad_norm"] == pytest.approx(alone[1]["grad_norm"], rel=1e-4)


def test_a_step_that_cannot_be_split_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("diff_oracle.nla.steps.count", lambda: 3)
    assert RlConfig(diffs=2).diffs == 2
    with pytest.raises(ValueError, match=r"rl\.diffs=2 cannot be split evenly over 3 processes"):
        made(tmp_path)


if __name__ == "__main__":
    learn(Path(sys.argv[1]))
