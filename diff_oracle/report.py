"""Makes one HTML page about finished runs: what each has shown, with plots and tables, and how they compare.

    python -m diff_oracle.report runs=runs/demo
    python -m diff_oracle.report runs=[runs/demo,results/tiny_logit_lens.json]
    python -m diff_oracle.report runs=multirun/train/2026-11-21_22-52-10

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


@dataclass
class ReportConfig:
    """What to report on."""

    runs: Any = field(default_factory=list)
    """One path or a list: run directories of `diff_oracle.train` or `diff_oracle.evaluate`, folders of sweeps, files of
    `results/`."""
    run_dir: str | None = None
    """Where report.html goes."""


def run(config: ReportConfig) -> None:
    """Reads, writes the page, prints the verdicts."""
    assert config.run_dir is not None  # the command sets it
    target = Path(config.run_dir)
    if (target / "run.json").exists():
        raise ValueError(f"run_dir={target} is a run's own folder: choose another one")
    runs, failed = load_runs([str(path) for path in (config.runs if isinstance(config.runs, list) else [config.runs])])
    page = target / "report.html"
    page.write_text(render_page(runs, failed), encoding="utf-8")
    print_verdicts({run.name: run.rows for run in runs})
    for job in failed:
        print(f"failed: {job.name}: {job.reason}")
    print(page)


main = entry_point("report", ReportConfig, run)

if __name__ == "__main__":
    main()
