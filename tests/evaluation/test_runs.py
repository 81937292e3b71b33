"""Runs are found and read from disk; what is none, or damaged, is said in one line."""

import json
from pathlib import Path

import pytest

from diff_oracle.evaluation.runs import load_runs
from tests.evaluation.made import GUESSED_ROWS, HISTORY, READ_ROWS, SELECTION, make_row, make_run


def test_a_run_is_what_its_files_say(tmp_path: Path) -> None:
    config = {"training": {"steps": 7, "layers": [1, 2]}, "seed": 0}
    ((run,), failed) = load_runs([make_run(tmp_path / "demo", config=config)])
    assert failed == []
    assert (run.name, run.about["commit"], run.rows) == ("demo", "0123456789abcdef", [*READ_ROWS, *GUESSED_ROWS])
    assert run.history == [*({"step": e["step"], "loss": e["loss"]} for e in HISTORY), {"step": 3, **SELECTION}]
    assert run.selection == SELECTION
    assert run.selection_score == 0.75 - 0.25
    settings = {"training.steps": 7, "training.layers": [1, 2], "seed": 0}
    assert run.settings == {"run_dir": str(tmp_path / "demo"), **settings}


def test_a_file_of_results_is_a_run_without_a_curve(tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps({"command": "x", "config": {"seed": 1}, "eval": READ_ROWS}))
    ((run,), _) = load_runs([tmp_path / "tiny.json"])
    assert (run.name, run.about, run.rows) == ("tiny.json", {"command": "x", "config": {"seed": 1}}, READ_ROWS)
    assert (run.history, run.selection_score) == ([], None)


def test_a_sweep_s_file_holds_several_runs(tmp_path: Path) -> None:
    entry = {"command": "x", "eval": READ_ROWS, "selection": SELECTION}
    entries = [entry | {"config": {"seed": seed}} for seed in range(2)]
    (tmp_path / "seeds.json").write_text(json.dumps({"command": "x", "runs": entries}))
    runs, failed = load_runs([tmp_path / "seeds.json"])
    assert [(run.name, run.settings, run.rows) for run in runs] == [
        ("0", {"seed": 0}, READ_ROWS),
        ("1", {"seed": 1}, READ_ROWS),
    ]
    assert [run.selection_score for run in runs] == [0.5, 0.5] and failed == []
    (tmp_path / "seeds.json").write_text(json.dumps({"runs": [entry, {"command": "x"}]}))
    with pytest.raises(ValueError, match="seeds.json/1 holds no scores"):
        load_runs([tmp_path / "seeds.json"])


def test_a_control_that_was_not_asked_has_no_value(tmp_path: Path) -> None:
    absent = make_row("wrong_site", 0.0, n=0) | dict.fromkeys(("value", "ci_low", "ci_high"))
    ((run,), _) = load_runs([make_run(tmp_path / "demo", [*READ_ROWS, absent])])
    assert run.rows[-1] == absent


def test_a_run_without_select_json_has_no_curve(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "evaluated")
    (folder / "select.json").unlink()
    ((run,), _) = load_runs([folder])
    assert (run.history, run.selection_score) == ([], None)


def test_a_sweep_is_read_by_number_and_its_failed_jobs_are_named(tmp_path: Path) -> None:
    for job in (10, 2, 0):
        make_run(tmp_path / str(job))
    (tmp_path / "multirun.yaml").touch()
    (tmp_path / "1").mkdir()  # killed before it had a result
    (tmp_path / "2" / "run.json").unlink()  # killed while it was evaluated
    runs, failed = load_runs([tmp_path])
    assert [run.name for run in runs] == ["0", "10"]
    assert [(job.name, job.reason) for job in failed] == [
        ("1", "it has no run.json and no eval.json"),
        ("2", "it has no run.json"),
        *((str(job), "it has no folder: it failed before any result") for job in range(3, 10)),
    ]


def test_numbered_folders_without_a_sweep_s_record_have_no_gaps(tmp_path: Path) -> None:
    for job in (2, 20260101):
        make_run(tmp_path / str(job))
    runs, failed = load_runs([tmp_path])
    assert [run.name for run in runs] == ["2", "20260101"]
    assert failed == []


def test_names_tell_runs_apart_and_a_run_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/0", "a/1", "b/0"):
        make_run(Path(name))
    assert [run.name for run in load_runs(["b/0", "a", tmp_path / "a/1"])[0]] == ["b/0", "a/0", "a/1"]
    assert [run.name for run in load_runs(["b/0", "a/1"])[0]] == ["0", "1"]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("eval.json", "[{", r"eval.json is damaged: Expecting"),
        ("run.json", "", r"run.json is damaged: Expecting"),
        ("run.json", "[]", r"run.json is damaged: expected an object, got list"),
        ("run.json", '{"config": 3}', r"'config' is damaged: expected dict, got 3"),
        ("run.json", '{"seconds": {"train": "long"}}', r"'seconds' is damaged: expected numbers"),
        ("eval.json", "[]", r"scores are damaged: expected a list of rows"),
        ("eval.json", "{}", r"scores are damaged: expected a list of rows"),
        ("eval.json", json.dumps([READ_ROWS[0], {"task": 3}]), r"row 1 of its scores is damaged"),
        ("eval.json", json.dumps([make_row("matched", float("nan"))]), r"row 0 of its scores is damaged"),
        ("eval.json", json.dumps([make_row("matched", 0.5, n=None)]), r"row 0 of its scores is damaged"),
        ("select.json", "{", r"select.json is damaged: Expecting"),
        ("select.json", '{"history": 3}', r"select.json is damaged: expected a list"),
        ("select.json", '{"history": [{"loss": 1.0}]}', r"select.json is damaged: expected a step"),
        ("select.json", '{"final": {"select/a/b/matched": "high"}}', r"select.json is damaged: expected a step"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: str, said: str) -> None:
    folder = make_run(tmp_path / "demo")
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=said) as error:
        load_runs([folder])
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_text_that_is_none_is_damaged(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo")
    (folder / "eval.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"eval.json is damaged: 'utf-8' codec"):
        load_runs([folder])


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run given: add runs=RUN_DIR"):
        load_runs([])
    with pytest.raises(ValueError, match="nowhere is not there"):
        load_runs([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"neither a finished run \(it has no run.json and no eval.json\) nor a sweep"):
        load_runs([tmp_path])
    (tmp_path / "0").mkdir()
    with pytest.raises(ValueError, match="none of 1 jobs has finished"):
        load_runs([tmp_path])
    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no scores: expected a run's JSON with the key 'eval'"):
        load_runs([tmp_path / "bench.json"])
