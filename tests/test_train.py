"""The whole way, as a person runs it: train, look, evaluate again."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from diff_oracle import evaluate, train
from diff_oracle.cli import compose
from diff_oracle.evaluation.metrics import selection_metric
from diff_oracle.oracle import storage
from diff_oracle.train import TrainConfig, _of_training, run

ROOT = Path(__file__).parents[1]


def command(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment.pop("HYDRA_FULL_ERROR", None)
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=280
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    done = command(folder, "diff_oracle.train", "+task=logit_lens", "+debug=smoke", "run_dir=run", "data_dir=data")
    assert done.returncode == 0, done.stderr
    assert "matched - control" in done.stdout
    return folder


def test_a_run_leaves_the_oracle_the_scores_and_the_picture(trained: Path) -> None:
    rows = json.loads((trained / "run" / "eval.json").read_text())
    keys = {"task", "question", "split", "site_group", "control", "metric", "value", "ci_low", "ci_high", "n", "n_docs"}
    assert all(set(row) == keys for row in rows)
    overall = [r for r in rows if r["site_group"] == "all" and r["question"] == "promoted"]
    controls = {"shuffled", "wrong_site", "same_document", "sign_flipped", "random", "none", "text_only", "site_prior"}
    assert {"matched"} | controls | {f"matched - {c}" for c in controls} <= {r["control"] for r in overall}
    partial = ("wrong_site", "same_document")  # asked where there is such a row; all others on the same rows
    assert len({(r["n"], r["n_docs"]) for r in overall if not r["control"].endswith(partial)}) == 1
    assert all(r["ci_low"] <= r["value"] <= r["ci_high"] and r["split"] == "test" for r in rows)
    about = json.loads((trained / "run" / "run.json").read_text())
    assert about["command"].startswith("python -m diff_oracle.train +task=logit_lens")
    assert (trained / "run" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (trained / "run" / "oracle" / "oracle.json").is_file()
    assert not (trained / "run" / "checkpoints").exists()


def test_a_finished_run_is_shown_again_and_never_replaced(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def again(*choice: str) -> float | None:
        places = [f"run_dir={trained / 'run'}", f"data_dir={trained / 'data'}"]
        return run(compose("train", TrainConfig, ["+task=logit_lens", "+debug=smoke", *places, *choice]))

    files = [file for file in (trained / "run").rglob("*") if file.is_file()]
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    selection = json.loads((trained / "run" / "select.json").read_text())["final"]
    assert again() == pytest.approx(selection_metric(selection))
    shown = capsys.readouterr().out
    assert "matched - control" in shown and "finished before" in shown
    refused = (
        r"holds a finished run that is not this one: it has other settings: config.seed 0 \(now 1\)\. Choose another"
    )
    with pytest.raises(ValueError, match=refused):
        again("seed=1")
    sidecar = trained / "run" / "oracle" / "oracle.json"
    sidecar.rename(trained / "oracle.json")
    with pytest.raises(ValueError, match="it has no oracle.json. Choose another run_dir=, or delete it"):
        again()
    (trained / "oracle.json").rename(sidecar)
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files} == before


def test_evaluating_again_gives_the_same_numbers(trained: Path) -> None:
    done = command(trained, "diff_oracle.evaluate", "oracle=run", "run_dir=again")
    assert done.returncode == 0, done.stderr
    assert (trained / "again" / "eval.json").read_text() == (trained / "run" / "eval.json").read_text()


def test_an_oracle_is_evaluated_again_with_other_controls(trained: Path) -> None:
    config = evaluate.EvaluateConfig(oracle=str(trained / "run"), controls=["site_prior", "none"])
    config.data_dir, config.run_dir = str(trained / "data"), str(trained / "fewer")
    Path(config.run_dir).mkdir()
    evaluate.run(config)
    found, before = (
        {(row["question"], row["control"]): row["value"] for row in json.loads((folder / "eval.json").read_text())
         if row["site_group"] == "all"} for folder in (trained / "fewer", trained / "run")
    )  # fmt: skip
    assert {control for _, control in found} == {
        "matched", "site_prior", "none", "matched - site_prior", "matched - none"
    }  # fmt: skip
    assert found.items() <= before.items()


def test_an_oracle_of_another_model_is_refused_in_one_line(trained: Path) -> None:
    sidecar = trained / "run" / "oracle" / "oracle.json"
    content = sidecar.read_text()
    changed = json.loads(content)
    changed["identity"]["weights_hash"] = "0" * 64
    changed.pop("sha256")
    sidecar.write_text(json.dumps(changed | {"sha256": storage._digest(changed)}))
    done = command(trained, "diff_oracle.evaluate", "oracle=run", "run_dir=refused")
    sidecar.write_text(content)
    assert done.returncode == 2
    assert "oracle of another model" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (trained / "refused").exists()


def test_a_folder_without_an_oracle_and_a_damaged_one_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def refused(source: str) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluate", f"oracle={source}", "run_dir=refused"])
        with pytest.raises(SystemExit) as ended:
            evaluate.main()
        assert ended.value.code == 2
        return capsys.readouterr().err

    assert refused("nowhere") == "error: oracle=nowhere is no run directory of diff_oracle.train: it has no run.json\n"
    Path("run").mkdir()
    for damaged, said in (('{"dataset": "x"', "JSONDecodeError"), ("{}", "KeyError: 'dataset'")):
        Path("run/run.json").write_text(damaged)
        assert refused("run").startswith("error: run/run.json cannot be read: " + said)
    assert not Path("refused").exists()


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (["injection=residual", "injection.block=99"], r"injection\.block=99, but the model has blocks"),
        (["lora=full", "lora.first_block=99"], r"lora\.first_block=99, but the model has blocks"),
        (["training.batch_size=8", "training.gradient_accumulation=3"], "batch_size=8 is not a multiple of 3"),
        (["training.tracker=paper"], "unknown training.tracker 'paper'"),
        (["sites=layers", "holdout.heads=[L1H2]"], r"holdout\.heads names L1H2, but no site of the dataset is of it"),
        (
            ["+mixture.tasks.logit_lens=2", "holdout.tasks=[logit_lens]"],
            r"mixture\.tasks\.logit_lens=2\.0 is for a task",
        ),
        (["training.base_dtype=int8"], "unknown training.base_dtype 'int8': choose from float32, bfloat16"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_dataset_is_built(
    choice: list[str], said: str, tmp_path: Path
) -> None:
    places = [f"run_dir={tmp_path / 'run'}", f"data_dir={tmp_path / 'data'}"]
    with pytest.raises(ValueError, match=said):
        run(compose("train", TrainConfig, ["+task=logit_lens", "+debug=smoke", *places, *choice]))
    assert not (tmp_path / "data").exists()


def test_a_training_with_other_settings_is_refused_before_the_dataset_is_built(tmp_path: Path) -> None:
    unfinished = tmp_path / "run" / "checkpoints" / "checkpoint-4"
    unfinished.mkdir(parents=True)
    (unfinished.parent / "settings.json").write_text(json.dumps({"config": {"seed": 1}, "dataset": "tiny"}))
    places = [f"run_dir={tmp_path / 'run'}", f"data_dir={tmp_path / 'data'}"]
    with pytest.raises(ValueError, match="holds an unfinished training with other settings: .*seed 1 .now 0."):
        run(compose("train", TrainConfig, ["+task=logit_lens", *places]))
    assert not (tmp_path / "data").exists() and unfinished.exists()


@pytest.mark.parametrize(
    ("changed", "another"),
    [
        (["evaluation.num_rows=7", "evaluation.controls=[shuffled]"], False),
        (["evaluation.curve_rows=7"], True),
        (["evaluation.batch_size=7"], True),  # of the learning curve, too
        (["training.steps=7"], True),
    ],
)
def test_only_what_is_asked_behind_the_training_may_change_when_it_goes_on(changed: list[str], another: bool) -> None:
    began, now = (asdict(compose("train", TrainConfig, ["+task=logit_lens", *more])) for more in ([], changed))
    assert (_of_training(began) != _of_training(now)) is another


def test_accelerate_that_started_one_process_of_several_is_noticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = compose("train", TrainConfig, ["+task=logit_lens", "device=cpu"])
    train._join_processes(config)
    assert not caplog.records
    for name, value in (("MASTER_PORT", "29500"), ("ACCELERATE_MIXED_PRECISION", "no")):  # what it leaves behind
        monkeypatch.setenv(name, value)
    train._join_processes(config)
    assert "on CPUs, several want `--multi_gpu`" in caplog.text


@pytest.mark.slow
def test_a_killed_command_started_again_ends_with_the_same_oracle(trained: Path) -> None:
    arguments = ["diff_oracle.train", "+task=logit_lens", "+debug=smoke", "data_dir=data", "training.steps=30"]
    arguments += ["training.checkpoint_every=2", "training.evaluations=2"]
    assert command(trained, *arguments, "run_dir=whole").returncode == 0
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", *arguments, "run_dir=killed"], cwd=trained, env=environment)
    while not list((trained / "killed").glob("checkpoints/checkpoint-*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (trained / "killed" / "run.json").exists()
    again = command(trained, *arguments, "run_dir=killed")
    assert again.returncode == 0, again.stderr
    assert "going on behind step" in again.stderr
    assert not (trained / "killed" / "checkpoints").exists()
    for name in ("oracle/injector.safetensors", "oracle/adapter/adapter_model.safetensors", "select.json", "eval.json"):
        assert (trained / "killed" / name).read_bytes() == (trained / "whole" / name).read_bytes(), name
