"""The whole way, as a person runs it: train, look, evaluate again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    controls = {"shuffled", "random", "none", "text_only", "site_prior"}
    assert {r["control"] for r in overall} == {"matched"} | controls | {f"matched - {c}" for c in controls}
    assert len({(r["n"], r["n_docs"]) for r in overall}) == 1  # every control on the same rows
    assert all(r["ci_low"] <= r["value"] <= r["ci_high"] and r["split"] == "test" for r in rows)
    about = json.loads((trained / "run" / "run.json").read_text())
    assert about["command"].startswith("python -m diff_oracle.train +task=logit_lens")
    assert (trained / "run" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (trained / "run" / "oracle" / "oracle.json").is_file()
    assert not (trained / "run" / "checkpoints").exists()


def test_evaluating_again_gives_the_same_numbers(trained: Path) -> None:
    done = command(trained, "diff_oracle.evaluate", "oracle=run", "run_dir=again")
    assert done.returncode == 0, done.stderr
    assert (trained / "again" / "eval.json").read_text() == (trained / "run" / "eval.json").read_text()


def test_an_oracle_of_another_model_and_a_folder_without_one_are_refused(trained: Path) -> None:
    sidecar = trained / "run" / "oracle" / "oracle.json"
    content = sidecar.read_text()
    changed = json.loads(content)
    changed["identity"]["weights_hash"] = "0" * 64
    sidecar.write_text(json.dumps(changed))
    done = command(trained, "diff_oracle.evaluate", "oracle=run", "run_dir=refused")
    sidecar.write_text(content)
    assert done.returncode == 2
    assert "oracle of another model" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = command(trained, "diff_oracle.evaluate", "oracle=nowhere", "run_dir=refused")
    assert (done.returncode, done.stderr) == (
        2, "error: oracle=nowhere is no run directory of diff_oracle.train: it has no run.json\n"
    )  # fmt: skip
    about = trained / "run" / "run.json"
    content = about.read_text()
    for damaged, said in ((content[:-40], "JSONDecodeError"), ("{}", "KeyError: 'dataset'")):
        about.write_text(damaged)
        done = command(trained, "diff_oracle.evaluate", "oracle=run", "run_dir=refused")
        assert done.returncode == 2
        assert done.stderr.startswith("error: run/run.json cannot be read: " + said)
    about.write_text(content)
    assert not (trained / "refused").exists()
