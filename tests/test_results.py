"""The README's numbers come from results/*.json and nowhere else."""

import json
from pathlib import Path

import pytest

from diff_oracle.evaluation.runs import load_runs
from diff_oracle.nla.saved import load_ladders
from scripts import results
from tests.nla.made_ladder import EXAMPLE, make_ladder, make_line, make_lines

README = """# Title

<!-- results/one.json -->
an old table
<!-- end -->

Between.

<!-- results/two.json -->
<!-- end -->
After.
"""
BENCHMARK = {
    "model": "tiny",
    "ours / plain": 1.2345,
    "seconds": {"ours": 1.0},
    "provenance": {
        "command": "python benchmarks/x.py",
        "commit": "0123456789abcdef",
        "machine": {"device": "cpu", "cores": 2},
    },
}


def row(control: str, value: float) -> dict[str, object]:
    return {
        "task": "logit_lens", "question": "promoted", "split": "test", "site_group": "all", "control": control,
        "metric": "precision", "value": value, "ci_low": 0.1, "ci_high": 0.9, "n": 60, "n_docs": 20,
    }  # fmt: skip


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with two runs, saved as results."""
    monkeypatch.setattr(results, "ROOT", tmp_path)
    for name, value in (("one", 0.111), ("two", 0.222)):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        about = {
            "command": f"python -m train run_dir={run} a/b=c",
            "config": {"run_dir": str(run)},
            "commit": "0123456789abcdef",
            "seconds": {"train": 61.4},
        }
        about |= {"machine": {"device": "cpu", "cores": 2}, "dataset": str(tmp_path / "data" / "tiny-pydoc-0")}
        (run / "run.json").write_text(json.dumps(about))
        (run / "eval.json").write_text(json.dumps([row("matched", value), row("shuffled", 0.05)]))
        (run / "learning_curve.png").write_bytes(name.encode())
        results.save(run, name)
        assert str(tmp_path) not in (tmp_path / "results" / f"{name}.json").read_text()
    return tmp_path


def test_save_keeps_scores_provenance_and_curve(root: Path) -> None:
    saved = json.loads((root / "results" / "two.json").read_text())
    assert saved["commit"] == "0123456789abcdef"
    assert saved["command"] == "python -m train run_dir=two a/b=c"
    assert saved["config"] == {"run_dir": "two"}
    assert saved["dataset"] == "tiny-pydoc-0"
    assert saved["eval"] == [row("matched", 0.222), row("shuffled", 0.05)]
    assert (root / "results" / "two.png").read_bytes() == b"two"


@pytest.mark.parametrize("commit", [None, "0123456789abcdef+dirty"])
def test_a_run_of_uncommitted_code_is_no_result(root: Path, commit: str | None) -> None:
    run = root / "runs" / "one"
    about = json.loads((run / "run.json").read_text()) | {"commit": commit}
    (run / "run.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="not made by committed code"):
        results.save(run, "three")
    assert not (root / "results" / "three.json").exists()


def test_a_sweep_is_one_table(root: Path) -> None:
    sweep = root / "multirun"
    absent = row("wrong_site", 0.0) | {"value": None, "ci_low": None, "ci_high": None, "n": 0, "n_docs": 0}
    for number, (steps, value) in enumerate(((100, 0.3), (200, 0.5), (200, 0.4))):
        folder = sweep / str(number)
        folder.mkdir(parents=True)
        about = json.loads((root / "runs" / "one" / "run.json").read_text())
        config = {"training": {"steps": steps}, "seed": number // 2, "run_dir": str(folder)}
        (folder / "run.json").write_text(json.dumps(about | {"config": config, "versions": {}}))
        rows = [row("matched", value), row("shuffled", 0.1), row("matched - shuffled", value - 0.1), absent]
        rows.append(row("matched", value) | {"site_group": "heads"})
        for name, score in (("matched", value), ("shuffled", 0.2), ("matched - shuffled", value - 0.2)):
            rows.append(row(name, score) | {"site_group": "held-out heads"})
            rows.append(row(name, score) | {"question": "promoted, held-out task", "site_group": "heads"})
        (folder / "eval.json").write_text(json.dumps(rows))
    results.save_sweep(sweep, "steps")
    saved = json.loads((root / "results" / "steps.json").read_text())
    assert [len(run["eval"]) for run in saved["runs"]] == [7, 7, 7]
    readme = results.update_page("<!-- results/steps.json -->\n<!-- end -->")
    assert (
        "| training.steps | seed | train (s) | logit_lens: promoted | logit_lens: promoted, held-out heads |" in readme
    )
    for steps, seed, matched, gap, held_out in ((200, 0, 0.5, 0.4, 0.3), (200, 1, 0.4, 0.3, 0.2)):
        scores = [
            f"{matched:.3f} [0.100, 0.900]<br>{above:.3f} [0.100, 0.900] to shuffled of 1: read from the diff"
            for above in (gap, held_out)
        ]
        assert f"| {steps} | {seed} | 61 | {' | '.join(scores)} |" in readme
    runs, _ = load_runs([root / "results" / "steps.json"])  # what `report` reads
    assert [run.settings["seed"] for run in runs] == [0, 0, 1]
    (sweep / "3").mkdir()
    with pytest.raises(ValueError, match="job 3 failed"):
        results.save_sweep(sweep, "steps")


def test_each_table_is_filled_from_its_own_file_and_the_rest_stays(root: Path) -> None:
    filled = results.update_page(README)
    assert "an old table" not in filled
    one, two = filled.split("Between.")
    assert "| 0.111 [0.100, 0.900] |" in one
    assert "0.222" not in one
    assert "| 0.222 [0.100, 0.900] |" in two
    assert "<details>" not in filled and "| matched |" not in filled  # what is folded away stands elsewhere, whole:
    assert "[In full](docs/results.md#two)" in two
    whole = results.all_results()
    assert "## two\n\n" in whole and "| matched | 0.222 [0.100, 0.900] |" in whole
    assert "`python -m train run_dir=two a/b=c` · commit 012345678 · cpu, 2 cores · train 61 s" in two
    assert filled.startswith("# Title\n\n<!-- results/one.json -->\n")
    assert filled.endswith("<!-- end -->\nAfter.\n")


def test_the_pages_of_this_checkout_are_those_that_its_results_write() -> None:
    docs = results.ROOT / "docs"
    for page in (results.ROOT / "README.md", *docs.glob("*.md")):
        text = page.read_text()
        assert results.update_page(text, *([] if page.parent == results.ROOT else ["results.md"])) == text, page
    assert (docs / "results.md").read_text() == results.all_results()


def test_filling_twice_gives_the_same_text(root: Path) -> None:
    once = results.update_page(README)
    assert results.update_page(once) == once


def test_the_command_writes_the_readme_and_the_pages(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "docs").mkdir()
    for page in ("README.md", "docs/more.md"):
        (root / page).write_text(README)
    monkeypatch.setattr("sys.argv", ["results.py", "readme"])
    results.main()
    assert (root / "docs" / "more.md").read_text() == results.update_page(README, "results.md")
    assert "[In full](results.md#two)" in (root / "docs" / "more.md").read_text()
    assert (root / "README.md").read_text() == results.update_page(README)
    assert (root / "docs" / "results.md").read_text() == results.all_results()


def test_a_benchmark_shows_what_stands_at_its_top(root: Path) -> None:
    (root / "results" / "bench_x.json").write_text(json.dumps(BENCHMARK))
    readme = results.update_page("<!-- results/bench_x.json -->\n<!-- end -->")
    assert "`python benchmarks/x.py` · commit 012345678 · cpu, 2 cores" in readme
    assert "| model | tiny |\n| ours / plain | 1.23 |\n<!-- end -->" in readme
    assert "seconds" not in readme


def test_a_ladder_and_its_explanations_are_kept_and_shown(root: Path) -> None:
    results.save(make_ladder(root / "runs" / "nla"), "pair")
    saved = json.loads((root / "results" / "pair.json").read_text())
    assert saved["ladder"] == make_lines() and saved["explanations"] == [EXAMPLE]
    assert str(root) not in (root / "results" / "pair.json").read_text()
    readme = results.update_page("<!-- results/pair.json -->\n<!-- end -->")
    assert "cpu, 2 cores · train 61 s, evaluate 7 s\n\n| rung [95 % CI] | FVE, all sites |" in readme
    assert "| AV: bag | 0.400 [0.380, 0.420] |" in readme
    (read,) = load_ladders([root / "results" / "pair.json"])  # what `report` reads
    assert read.of("fve", "AV: bag")["all"]["value"] == 0.4 and len(read.examples) == 1


def test_sites_are_kept_with_their_picture(root: Path) -> None:
    run = make_ladder(root / "runs" / "sites")
    (run / "ladder.json").unlink()
    about = json.loads((run / "run.json").read_text()) | {"seconds": 12.3}
    (run / "run.json").write_text(json.dumps(about))
    (run / "sites.json").write_text(json.dumps([{"site": "L0H1"} | make_line("gold: bag", "", 0.6)]))
    (run / "sites.png").write_bytes(b"picture")
    results.save(run, "heads")
    readme = results.update_page("<!-- results/heads.json -->\n<!-- end -->")
    assert "2 cores · in all 12 s" in readme and "| gold: bag | 0.600; 1, 0 of 1 |" in readme
    assert (root / "results" / "heads.png").read_bytes() == b"picture"


def test_a_run_that_has_not_finished_is_no_result(root: Path) -> None:
    run = root / "runs" / "one"
    (run / "learning_curve.png").unlink()
    with pytest.raises(ValueError, match="is no finished run: expected eval.json and learning_curve.png; ladder.json"):
        results.save(run, "three")
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"oracle": "runs/other"}))  # as evaluate has it
    results.save(run, "three")
    (run / "eval.json").unlink()
    with pytest.raises(ValueError, match="is no finished run: expected eval.json and learning_curve.png; eval.json"):
        results.save(run, "three")
