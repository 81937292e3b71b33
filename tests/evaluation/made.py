"""Hand-made runs: rows of eval.json, and run directories on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def make_row(control: str, value: float, width: float = 0.1, **others: Any) -> dict[str, Any]:
    """A row with the interval value ± width / 2."""
    return {
        "task": "logit_lens", "question": "promoted", "split": "test", "site_group": "all", "control": control,
        "metric": "precision", "value": value, "ci_low": value - width / 2, "ci_high": value + width / 2,
        "n": 60, "n_docs": 20,
    } | others  # fmt: skip


def make_rows(scores: Mapping[str, float], width: float = 0.1, **others: Any) -> Rows:
    """A row for each score, and its gap to `matched` behind each but that."""
    rows = []
    for control, value in scores.items():
        rows.append(make_row(control, value, width, **others))
        if control != "matched":
            rows.append(make_row(f"matched - {control}", scores["matched"] - value, width, **others))
    return rows


READ_ROWS = make_rows({"matched": 0.8123, "shuffled": 0.3, "site_prior": 0.5517})
GUESSED_ROWS = make_rows({"matched": 0.6, "shuffled": 0.3, "site_prior": 0.58}, question="yes_no")
HISTORY = [{"step": step, "loss": 3.0 / step, "grad_norm": 1.0} for step in (1, 2, 3)]
SELECTION = {"select/logit_lens/promoted/matched": 0.75, "select/logit_lens/promoted/shuffled": 0.25}


def make_run(
    folder: Path,
    rows: Sequence[Mapping[str, Any]] = (*READ_ROWS, *GUESSED_ROWS),
    config: Mapping[str, Any] | None = None,
    command: str = "python -m diff_oracle.train",
) -> Path:
    """A run directory, as `diff_oracle.train` leaves it."""
    folder.mkdir(parents=True)
    about = {
        "command": command, "commit": "0123456789abcdef", "date": "2026-01-01T00:00:00+00:00",
        "machine": {"device": "cpu", "cores": 2}, "seconds": {"build": 1.0, "train": 61.4},
        "dataset": "/somewhere/tiny-pydoc-0", "config": {"run_dir": str(folder), **(config or {})},
    }  # fmt: skip
    curve = [*HISTORY, {"step": 3, **SELECTION}]
    contents = {"run": about, "eval": list(rows), "select": {"history": curve, "final": SELECTION}}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
