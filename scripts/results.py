"""Keeps results and the README's tables in step.

    python scripts/results.py save runs/demo tiny_logit_lens            # run directory -> results/tiny_logit_lens.json
    python scripts/results.py save runs/nla tiny_nla                    # also of train_ar, evaluate nla=… and verbalise
    python scripts/results.py sweep multirun/train/2026-11-22 inputs    # a sweep's folder -> results/inputs.json
    python scripts/results.py rl multirun/rl tiny_rl                    # runs of train_rl -> results/tiny_rl.json
    python scripts/results.py readme                                    # results/*.json -> README.md, docs/*.md

A table stands in the README or a page of docs between `<!-- results/NAME.json -->` and `<!-- end -->`; no number is
written by hand. What is folded away in a table stands in docs/results.md alone, which holds all results, whole.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diff_oracle.evaluation.comparison import compare
from diff_oracle.evaluation.report import markdown, markdown_table, markdown_verdicts
from diff_oracle.evaluation.runs import Run, load_runs
from diff_oracle.evaluation.verdict import judged, split_parts
from diff_oracle.nla.arms import jobs_of, load_arms, markdown_arms, to_result
from diff_oracle.nla.report import markdown_ladder, markdown_sites
from diff_oracle.nla.saved import SavedLadder

ROOT = Path(__file__).parents[1]
KEPT = (
    ("eval.json", "learning_curve.png"),
    ("eval.json",),
    ("ladder.json", "explanations.json"),
    ("sites.json", "sites.png"),
)
"""What is kept of a run of train, of evaluate oracle=..., of train_ar or evaluate nla=..., of verbalise; what is in
NAME.json under `NAME`."""


def save(run_dir: Path, name: str) -> None:
    """Writes one JSON with the run's provenance and its scores, and its picture beside it.

    Raises:
        ValueError: The run was not made by committed code, or has not finished.
    """
    about = about_run(json.loads((run_dir / "run.json").read_text()), run_dir)
    # A run of train has a curve, too; only `evaluate` says which oracle it asked.
    possible = [files for files in KEPT if files != ("eval.json",) or "oracle" in about]
    files = next((files for files in possible if all((run_dir / file).is_file() for file in files)), None)
    if files is None:
        known = "; ".join(" and ".join(files) for files in possible)
        raise ValueError(f"{run_dir} is no finished run: expected {known}")
    content = {Path(file).stem: json.loads((run_dir / file).read_text()) for file in files if file.endswith(".json")}
    _write(name, about | content)
    for file in files:
        if file.endswith(".png"):
            shutil.copy(run_dir / file, ROOT / "results" / f"{name}.png")


def save_sweep(folder: Path, name: str) -> None:
    """Writes one JSON with every run of a sweep: where it differs, and its scores over all sites and held-out ones.

    Raises:
        ValueError: A job failed, or was not made by committed code.
    """
    runs, failed = load_runs([folder])
    if failed:
        raise ValueError(f"{folder}: job {failed[0].name} failed: {failed[0].reason}")
    content = []
    for run in runs:
        shown = {(part.question, part.site_group) for part in judged(split_parts(run.rows))}
        kept = [row for row in run.rows if (row["question"], row["site_group"]) in shown]
        content.append(about_run(run.about, folder) | {"selection": run.selection, "eval": kept})
    first = content[0]
    _write(name, {key: first[key] for key in ("command", "commit", "machine", "versions")} | {"runs": content})


def save_rl(folder: Path, name: str) -> None:
    """Writes one JSON with what reinforcement learning and its arms made of one pair, and their pictures beside it."""
    arms = load_arms(jobs_of(folder))
    first = about_run(arms[0].about, folder)
    content = {key: first[key] for key in ("command", "commit", "machine", "versions")} | to_result(arms)
    for arm, kept in zip(arms, content["arms"], strict=True):
        kept["config"] = about_run(arm.about, folder)["config"]
    _write(name, content)
    for arm, run_dir in zip(arms, jobs_of(folder), strict=True):
        if arm.about["config"]["rl"]["arm"] == "rl":
            file = f"{name}_{arm.name.replace(',', '').replace(' ', '_')}.png"
            shutil.copy(run_dir / "health.png", ROOT / "results" / file)


def about_run(about: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """A run's provenance. Absolute paths are cut to their last part: where things lay is nobody's business."""
    if about["commit"] is None or about["commit"].endswith("+dirty"):
        raise ValueError(f"{place} was not made by committed code (commit {about['commit']}): commit and run it again")
    text = re.sub(r'(?<=[\s"=])/[^\s",]+', lambda path: Path(path[0]).name, json.dumps(about))
    return dict(json.loads(text))


def _write(name: str, content: Mapping[str, Any]) -> None:
    (ROOT / "results").mkdir(exist_ok=True)
    (ROOT / "results" / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def update_page(text: str, whole: str = "docs/results.md") -> str:
    """The README, or another page, with every table written anew, without what is folded away: it is in `whole`."""

    def table(match: re.Match[str]) -> str:
        shown = _show(json.loads((ROOT / match[1]).read_text()))
        short = re.sub(r"\n*<details>.*?</details>", "", shown, flags=re.DOTALL)
        name = Path(match[1]).stem
        more = f"\n\n[In full]({whole}#{name})" if short != shown else ""
        return f"<!-- {match[1]} -->\n{short}{more}\n<!-- end -->"

    return re.sub(r"<!-- (results/\S+\.json) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def update_pages() -> None:
    """Writes the README and the pages of docs anew."""
    docs = ROOT / "docs"
    docs.mkdir(exist_ok=True)
    for page in (ROOT / "README.md", *docs.glob("*.md")):
        page.write_text(update_page(page.read_text(), *([] if page.parent == ROOT else ["results.md"])))
    (docs / "results.md").write_text(all_results())


def all_results() -> str:
    """Every result, whole, as Markdown."""
    files = sorted((ROOT / "results").glob("*.json"))
    parts = [f"## {file.stem}\n\n{_show(json.loads(file.read_text()))}" for file in files]
    head = "# Results\n\nWritten by `python scripts/results.py readme` from `results/`: every table in full."
    return "\n\n".join([head, *parts]) + "\n"


def _show(result: dict[str, Any]) -> str:
    if "runs" in result:
        return _show_sweep(result)
    if "arms" in result:
        return f"{_origin(result)}\n\n{markdown_arms(result)}"
    if "ladder" in result:
        ladder = SavedLadder(Run("", result, result["ladder"], [], {}), result["explanations"])
        return f"{_origin(result)}{_times(result)}\n\n{markdown_ladder(ladder)}"
    if "sites" in result:
        return f"{_origin(result)}{_times(result)}\n\n{markdown_sites(result['sites'])}"
    return _show_run(result) if "eval" in result else _show_benchmark(result)


def _show_benchmark(result: dict[str, Any]) -> str:
    """What stands at the top of a benchmark's JSON: its setting, ratios and sizes."""
    lines = [
        (name, f"{value:.3g}" if isinstance(value, float) else str(value))
        for name, value in result.items()
        if not isinstance(value, dict)
    ]
    return f"{_origin(result['provenance'])}\n\n{markdown([('', ''), *lines])}"


def _show_run(result: dict[str, Any]) -> str:
    """What it has shown, and folded away every control."""
    verdicts, table = markdown_verdicts(result["eval"]), markdown_table(result["eval"])
    folded = f"<details><summary>Every control, with intervals</summary>\n\n{table}\n\n</details>"
    return f"{_origin(result)}{_times(result)}\n\n{verdicts}\n\n{folded}"


def _show_sweep(result: dict[str, Any]) -> str:
    """One line a run: where it differs, its training time, and what each question has shown."""
    runs = [Run(str(i), about, about["eval"], [], about["selection"]) for i, about in enumerate(result["runs"])]
    comparison = compare(runs)
    questions = list(comparison.questions)
    lines = [[*comparison.settings, "train (s)", *questions]]
    for i, seconds in enumerate(comparison.seconds):
        cells = [(comparison.matched(name)[i], comparison.gap(name)[i]) for name in questions]
        shown = ["<br>".join(f"{c.value:.3f} {c.interval}" for c in pair if c.value is not None) for pair in cells]
        lines.append([*(values[i] for values in comparison.settings.values()), f"{seconds.value or 0:.0f}", *shown])
    if len(questions) > len(runs):  # a long table is easier to read than a wide one
        lines = [list(column) for column in zip(*lines, strict=True)]
    caption = "The score of the right diff; below it the gap to the hardest control, of how many. With 95 % intervals:"
    return f"{_origin(result)}\n\n{caption}\n\n{markdown(lines)}"


def _origin(about: Mapping[str, Any]) -> str:
    machine = about["machine"]
    return f"`{about['command']}` · commit {about['commit'][:9]} · {machine['device']}, {machine['cores']} cores"


def _times(result: Mapping[str, Any]) -> str:
    """How long its parts took, where the run says; a command of one part gives one number."""
    seconds = result.get("seconds", {})
    parts = seconds.items() if isinstance(seconds, dict) else [("in all", seconds)]
    return "".join(f"{', ' if i else ' · '}{name} {value:.0f} s" for i, (name, value) in enumerate(parts))


def main() -> None:
    match sys.argv[1:]:
        case ["save", run_dir, name]:
            save(Path(run_dir), name)
        case ["sweep", folder, name]:
            save_sweep(Path(folder), name)
        case ["rl", folder, name]:
            save_rl(Path(folder), name)
        case ["readme"]:
            update_pages()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
