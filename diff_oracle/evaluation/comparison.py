"""Several runs side by side: the settings in which they differ, and their scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diff_oracle.evaluation.controls import MATCHED
from diff_oracle.evaluation.runs import Run
from diff_oracle.evaluation.verdict import Part, judged, split_parts


@dataclass(frozen=True)
class Cell:
    """A number of a run.

    Attributes:
        value: None for a blank: the run does not have it.
        interval: Its interval and what else is to be said.
        best: Whether no other run has a higher one, and some a lower one.
    """

    value: float | None = None
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Comparison:
    """What stands in the tables of several runs.

    Attributes:
        settings: Setting -> its value in each run, as text, empty where a run has no such setting.
        selection: What a sweep maximises, of each run.
        seconds: Training time of each run.
        questions: Question -> its scores in each run, None where the run did not ask.
    """

    settings: dict[str, list[str]]
    selection: list[Cell]
    seconds: list[Cell]
    questions: dict[str, list[Part | None]]

    @property
    def tasks(self) -> dict[str, list[str]]:
        """Task -> its questions."""
        tasks: dict[str, list[str]] = {}
        for question, parts in self.questions.items():
            tasks.setdefault(next(part.task for part in parts if part), []).append(question)
        return tasks

    def matched(self, question: str) -> list[Cell]:
        """The score of the right diff in each run."""
        rows = [part and part.scores[MATCHED] for part in self.questions[question]]
        return _column([(float(row["value"]), _interval(row)) if row else None for row in rows])

    def gap(self, question: str) -> list[Cell]:
        """How far that is above the hardest control in each run, with the verdict and how many controls decide it."""
        cells: list[tuple[float, str] | None] = []
        for part in self.questions[question]:
            gap = part.gaps.get(part.hardest or "") if part else None
            shown = ""
            if part and gap:
                shown = f"{_interval(gap)} to {part.hardest} of {len(part.deciding)}: {part.verdict}"
            cells.append((float(gap["value"]), shown) if gap else None)
        return _column(cells)


def compare(runs: Sequence[Run]) -> Comparison:
    """What differs between runs, in settings and in scores; all sites together and held-out ones, no new wordings."""
    asked = [
        {_label(part): part for part in judged(split_parts(run.rows)) if "wording" not in part.question} for run in runs
    ]
    questions = dict.fromkeys(name for parts in asked for name in parts)
    seconds = [run.about.get("seconds", {}).get("train") for run in runs]
    return Comparison(
        settings=differing_settings(runs),
        selection=_column([None if run.selection_score is None else (run.selection_score, "") for run in runs]),
        seconds=[Cell() if value is None else Cell(float(value)) for value in seconds],
        questions={name: [parts.get(name) for parts in asked] for name in questions},
    )


def differing_settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Setting -> its value in each run, where these differ. The code's commit is one, the run's folder is none."""
    flat = [run.settings | {"commit": str(run.about.get("commit"))[:9]} for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings if key != "run_dir")
    columns = {key: [_text(settings[key]) if key in settings else "" for settings in flat] for key in keys}
    return {key: column for key, column in columns.items() if len(set(column)) > 1}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _label(part: Part) -> str:
    return part.name if part.split == "test" else f"{part.name} (split {part.split})"


def _interval(row: Any) -> str:
    return f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


def _column(cells: Sequence[tuple[float, str] | None]) -> list[Cell]:
    values = [cell[0] for cell in cells if cell]
    best = max(values) if values and max(values) > min(values) else None
    return [Cell(*cell, best=cell[0] == best) if cell else Cell() for cell in cells]
