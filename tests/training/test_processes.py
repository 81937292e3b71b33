"""Several processes train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.job import live

ROOT = Path(__file__).parents[2]
SETTINGS = {"steps": 8, "evaluations": 2, "checkpoint_every": 3, "batch_size": 8, "architecture": "llama"}

# accelerate has FSDP for GPUs alone.
AS_IF_ON_GPUS = """
import sys
from accelerate import DistributedType, PartialState
start = PartialState.__init__
def patched(self, *arguments, **options):
    start(self, *arguments, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU
PartialState.__init__ = patched
from tests.training import job
job.main(*sys.argv[1:])
"""


def launch(config: str, *command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    config_file = str(ROOT / "conf" / "accelerate" / config)
    return subprocess.run(
        [*accelerate, "--config_file", config_file, *command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


def history(run_dir: Path) -> list[dict[str, Any]]:
    return json.loads((run_dir / "history.json").read_text())


def assert_close(lines: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [line.keys() for line in lines] == [line.keys() for line in expected]
    for name, tolerance in (("loss", 1e-4), ("select/log_prob", 5e-4)):
        found, wanted = ([line[name] for line in log if name in line] for log in (lines, expected))
        assert found == pytest.approx(wanted, rel=tolerance)
    # Before Muon's roundings to bfloat16: the batch, its mean and its gradient.
    first = [(line["loss"], line["grad_norm"]) for line in (lines[0], expected[0])]
    assert first[0] == pytest.approx(first[1], rel=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("alone")
    live(folder, SETTINGS)
    return history(folder)


def test_two_processes_have_the_losses_of_one(alone: list[dict[str, Any]], tmp_path: Path) -> None:
    done = launch("ddp_cpu.yaml", "-m", "tests.training.job", str(tmp_path), json.dumps(SETTINGS))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoints" / "checkpoint-8" / "rng_state_1.pth").exists()  # there were two
    assert_close(history(tmp_path), alone)


@pytest.mark.slow
def test_fsdp_has_the_losses_of_one_process_and_goes_on_after_a_kill(
    alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    script = tmp_path / "as_if_on_gpus.py"
    script.write_text(AS_IF_ON_GPUS)
    for folder, step in (("whole", ""), ("killed", "5"), ("killed", "")):
        done = launch("fsdp.yaml", str(script), str(tmp_path / folder), json.dumps(SETTINGS), *filter(None, [step]))
        assert (done.returncode != 0) == bool(step), done.stderr
    assert_close(history(tmp_path / "whole"), alone)
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    weights = [tmp_path / f / "oracle" / "adapter" / "adapter_model.safetensors" for f in ("whole", "killed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    checkpoint = tmp_path / "whole" / "checkpoints" / "checkpoint-8"
    assert {path.name for path in checkpoint.iterdir() if path.is_dir()} == {"optimizer_0"}  # not the base's weights


@pytest.mark.slow
def test_a_sweep_trains_in_two_processes_and_knows_its_finished_jobs(tmp_path: Path) -> None:
    command = ["-m", "diff_oracle.train", "+task=logit_lens", "+debug=smoke", "data_dir=data", "device=cpu"]
    command += ["evaluation.num_rows=6", "evaluation.controls=[shuffled]"]
    sweep = [*command[:2], "-m", *command[2:], "training.learning_rate=5e-3,1e-3", "run_dir=two"]
    done = launch("ddp_cpu.yaml", *sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for job in ("two/0", "two/1"):
        assert done.stdout.count(f"oracle, eval.json and learning_curve.png in {job}\n") == 1
    one = subprocess.run(
        [sys.executable, *command, "run_dir=one"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True
    )
    assert one.returncode == 0
    losses = []
    for run_dir in ("one", "two/0", "two/1"):
        lines = json.loads((tmp_path / run_dir / "select.json").read_text())["history"]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) != losses[2]
    assert len(list((tmp_path / "data").iterdir())) == 1  # that two processes built
    done = launch("ddp_cpu.yaml", *sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before, on ") == 2
