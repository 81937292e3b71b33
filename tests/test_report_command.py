"""The command that makes the page, as a person runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diff_oracle import report
from diff_oracle.evaluation.page import render_page
from diff_oracle.evaluation.runs import load_runs
from tests.evaluation.made import make_run

ROOT = Path(__file__).parents[1]


def test_the_page_is_written_and_the_verdicts_are_printed(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "demo")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "diff_oracle.report", "runs=[runs/demo]", "run_dir=out"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "not above site_prior" in " ".join(done.stdout.split())
    assert done.stdout.endswith("\nout/report.html\n")
    # Another process draws the same bytes.
    written = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert written == render_page(*load_runs([tmp_path / "runs" / "demo"]))


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    for job in (0, 1):
        make_run(Path("sweep") / str(job))
    Path("sweep/2").mkdir()
    return Path("sweep")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    report.main()


def test_a_sweep_is_one_page(sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    call(monkeypatch, f"runs=[{sweep}]", "run_dir=out")
    assert Path("out/report.html").read_text(encoding="utf-8") == render_page(*load_runs([sweep]))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("│")[1:4] for line in lines if "1 of 2" in line] == [
        [f" {job}   ", " 1 of 2             ", " logit_lens: yes_no "] for job in (0, 1)
    ]
    assert lines[-2:] == ["failed: 2: it has no run.json and no eval.json", "out/report.html"]


def test_a_single_run_needs_no_brackets(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, "runs=sweep/0", "run_dir=out")
    assert Path("out/report.html").read_text(encoding="utf-8") == render_page(*load_runs(["sweep/0"]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs=[nowhere]", "run_dir=out"], "nowhere is not there"),
        (["runs=[sweep/2]", "run_dir=out"], "sweep/2 is neither a finished run"),
        (["run_dir=out"], "no run given: add runs=RUN_DIR"),
        (["runs=nowhere", "run_dir=out"], "nowhere is not there"),
        (["runs=[damaged.json]", "run_dir=out"], "damaged.json is damaged"),
        (["runs=[sweep]", "run_dir=sweep/0"], "run_dir=sweep/0 is a run's own folder"),
        (["run=[sweep]", "run_dir=out"], "did you mean 'runs'?"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(
    sweep: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    Path("damaged.json").write_text("{")
    before = json.loads(Path("sweep/0/run.json").read_text())
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, *arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in error and error.startswith("error: ") and error.count("\n") == 1
    assert not Path("out").exists()
    assert json.loads(Path("sweep/0/run.json").read_text()) == before
