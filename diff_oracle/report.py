"""Makes one HTML page about finished runs: what each has shown, with plots and tables, and how they compare.

    python -m diff_oracle.report runs=runs/demo
    python -m diff_oracle.report runs=[runs/demo,results/tiny_logit_lens.json]
    python -m diff_oracle.report runs=multirun/train/2026-11-21_22-52-10
    python -m diff_oracle.report nla=[runs/nla,results/tiny_nla.json]           # ladders of diff-NLAs
    python -m diff_oracle.report nla=multirun/rl                                # arms of train_rl, and what each gained

The page needs nothing but itself: it opens from disk and can be sent. The same runs give the same page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diff_oracle.cli import entry_point
from diff_oracle.evaluation.page import render_page
from diff_oracle.evaluation.report import print_verdicts
from diff_oracle.evaluation.runs import load_runs
from diff_oracle.nla.arms import HELD_OUT_BEFORE, jobs_of, load_arms, markdown_arms, to_result
from diff_oracle.nla.page import render_ladders
from diff_oracle.nla.report import print_headlines
from diff_oracle.nla.saved import load_ladders


@dataclass
class ReportConfig:
    """What to report on."""

    runs: Any = field(default_factory=list)
    """One path or a list: run directories of `diff_oracle.train` or `diff_oracle.evaluate`, folders of sweeps, files of
    `results/`."""
    nla: Any = field(default_factory=list)
    """Or ladders, one path or a list: run directories of `diff_oracle.train_ar`, `train_rl` or `evaluate nla=...`,
    folders of sweeps, files of `results/`."""
    run_dir: str | None = None
    """Where report.html goes."""


def run(config: ReportConfig) -> None:
    """Reads, writes the page, prints what has been shown."""
    assert config.run_dir is not None  # the command sets it
    target = Path(config.run_dir)
    if (target / "run.json").exists():
        raise ValueError(f"run_dir={target} is a run's own folder: choose another one")
    runs, ladders = _paths(config.runs), _paths(config.nla)
    if runs and ladders:
        raise ValueError("give either runs= or nla=: they are pages of their own")
    html = _ladders(ladders) if ladders else _runs(runs)
    page = target / "report.html"
    page.write_text(html, encoding="utf-8")
    print(page)


def _runs(paths: list[str]) -> str:
    """The page about oracles; their verdicts are printed."""
    runs, failed = load_runs(paths)
    html = render_page(runs, failed)
    print_verdicts({run.name: run.rows for run in runs})
    for job in failed:
        print(f"failed: {job.name}: {job.reason}")
    return html


def _ladders(paths: list[str]) -> str:
    """The page about ladders; what they have shown is printed."""
    folders = [job for path in paths for job in jobs_of(Path(path))]
    ladders = load_ladders(folders)
    html = render_ladders(ladders)
    print_headlines(ladders)
    if arms := load_arms([folder for folder in folders if (folder / HELD_OUT_BEFORE).is_file()]):
        print(markdown_arms(to_result(arms)))
    return html


def _paths(given: Any) -> list[str]:
    return [str(path) for path in (given if isinstance(given, list) else [given])]


main = entry_point("report", ReportConfig, run)

if __name__ == "__main__":
    main()
