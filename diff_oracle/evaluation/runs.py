"""Reads finished runs back from disk: run directories, folders of sweeps, files of `results/`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diff_oracle.evaluation.metrics import selection_metric

# What a row of eval.json must hold, and as what.
_TEXT = ("task", "question", "split", "site_group", "control", "metric")
_NUMBERS = ("value", "ci_low", "ci_high", "n", "n_docs")


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        name: What tells it from the others.
        about: run.json: command, commit, date, versions, machine, seconds, dataset, config.
        rows: eval.json.
        history: Losses and `select/...` scores by step, while training; empty where none were kept.
        selection: `select/...` scores after training; empty where none were kept.
    """

    name: str
    about: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    history: Sequence[Mapping[str, Any]]
    selection: Mapping[str, float]

    @property
    def selection_score(self) -> float | None:
        """What a sweep maximises; None where it was not kept."""
        return selection_metric(dict(self.selection)) if self.selection else None

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration, flat: `training.steps` -> 1700. Lists are values."""
        return dict(_flatten(self.about.get("config", {})))


@dataclass(frozen=True)
class FailedJob:
    """A job of a sweep that left no results."""

    name: str
    reason: str


def load_runs(paths: Sequence[str | Path]) -> tuple[list[Run], list[FailedJob]]:
    """Reads runs in the order given, a sweep's by number. A run that is named twice is read once.

    A sweep's folder holds run directories named 0, 1, ...; a number left out is a job that failed before it had any
    result, so that its folder was removed. Of such jobs behind the last folder nothing is known. In a sweep's file the
    runs are numbered in the same way.

    Raises:
        ValueError: A path is neither a run nor a sweep, nothing has finished, or a file is damaged.
    """
    if not paths:
        raise ValueError("no run given: add runs=RUN_DIR, runs=SWEEP_DIR or runs=[RUN_DIR,RUN_DIR]")
    found: dict[Path, str] = {}  # place -> why there is nothing to read; empty where there is
    for path in map(Path, paths):
        found |= {place.resolve(): reason for place, reason in _places(path)}
    if all(found.values()):
        raise ValueError(f"{', '.join(map(str, paths))}: none of {len(found)} jobs has finished, nothing to report")
    names = short_names(list(found))
    runs = [_load(place, names[place]) for place, reason in found.items() if not reason]
    return runs, [FailedJob(names[place], reason) for place, reason in found.items() if reason]


def short_names(places: Sequence[Path]) -> dict[Path, str]:
    """The ends of the paths, all of one length, the shortest that tells them apart."""
    for length in range(1, max(len(place.parts) for place in places) + 1):
        names = {place: "/".join(place.parts[-length:]) for place in places}
        if len(set(names.values())) == len(places):
            break
    return names


def _places(path: Path) -> Iterator[tuple[Path, str]]:
    """The runs at `path`, each with the reason why it cannot be read, empty for a finished one.

    Run i of a sweep's file F has the place F/i.
    """
    if path.is_file():
        runs = expect_object(path, read_json(path)).get("runs")
        yield from [(path / str(i), "") for i in range(len(runs))] if isinstance(runs, list) else [(path, "")]
        return
    if not path.is_dir():
        raise ValueError(f"{path} is not there: name a run directory, a sweep's folder or a file of results/")
    jobs = {int(folder.name): folder for folder in path.iterdir() if folder.is_dir() and folder.name.isdecimal()}
    if jobs and not (path / "run.json").exists():
        swept = (path / "multirun.yaml").is_file()  # by Hydra, not a folder that somebody filled with numbers
        for number in range(max(jobs) + 1) if swept else sorted(jobs):
            folder = jobs.get(number, path / str(number))
            yield folder, _missing(folder) if number in jobs else "it has no folder: it failed before any result"
    elif missing := _missing(path):
        raise ValueError(f"{path} is neither a finished run ({missing}) nor a sweep (no folders 0, 1, ...)")
    else:
        yield path, ""


def _missing(folder: Path) -> str:
    files = [name for name in ("run.json", "eval.json") if not (folder / name).is_file()]
    return f"it has no {' and no '.join(files)}" if files else ""


def _load(place: Path, name: str) -> Run:
    if place.is_file() or place.parent.is_file():
        content = read_json(place) if place.is_file() else read_json(place.parent)["runs"][int(place.name)]
        about = expect_object(place, content)
        if "eval" not in about:
            raise ValueError(f"{place} holds no scores: expected a run's JSON with the key 'eval'")
        kept, rows, selected = place, about.pop("eval"), {"final": about.pop("selection", {})}
    else:
        about, rows = expect_object(place / "run.json", read_json(place / "run.json")), read_json(place / "eval.json")
        kept = place / "select.json"
        selected = expect_object(kept, read_json(kept)) if kept.is_file() else {}
    check_about(place, about)
    _check_rows(place, rows)
    history, selection = selected.get("history", []), selected.get("final", {})
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in (*history, selection)):
        raise ValueError(f"{kept} is damaged: expected a list 'history' and an object 'final'")
    history, selection = [_curve_entry(entry) for entry in history], _curve_entry(selection)
    if not all(map(is_numbers, (*history, selection))) or not all("step" in entry for entry in history):
        raise ValueError(f"{kept} is damaged: expected a step and numbers in every entry")
    return Run(name, about, rows, history, selection)


def read_json(file: Path) -> Any:
    """A file's content.

    Raises:
        ValueError: It is damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def expect_object(file: Path, content: Any) -> dict[str, Any]:
    """The file's content.

    Raises:
        ValueError: It is no object.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: expected an object, got {type(content).__name__}")
    return content


def check_about(place: Path, about: Mapping[str, Any]) -> None:
    """Provenance may lack entries (older runs, other commands); what is there must have its form.

    Raises:
        ValueError: It has not.
    """
    for key, kind in (("command", str), ("dataset", str), ("config", dict), ("machine", dict), ("seconds", dict)):
        if not isinstance(about.get(key, kind()), kind):
            raise ValueError(f"{place}: {key!r} is damaged: expected {kind.__name__}, got {about[key]!r}")
    if not is_numbers(about.get("seconds", {})):
        raise ValueError(f"{place}: 'seconds' is damaged: expected numbers, got {about['seconds']!r}")


def _check_rows(place: Path, rows: Any) -> None:
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{place}: its scores are damaged: expected a list of rows, got {str(rows)[:50]}")
    for number, row in enumerate(rows):
        whole = isinstance(row, dict) and all(isinstance(row.get(key), str) for key in _TEXT)
        # A control that could be asked of no row has no value.
        if not whole or not (row.get("n") == 0 or is_numbers({key: row.get(key) for key in _NUMBERS})):
            raise ValueError(f"{place}: row {number} of its scores is damaged: {str(row)[:80]}")


def _curve_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a curve is drawn from; trainers log more beside it."""
    return {key: value for key, value in entry.items() if key in ("step", "loss") or key.startswith("select/")}


def is_numbers(content: Any) -> bool:
    """Whether it is an object of finite numbers."""
    return isinstance(content, dict) and all(
        isinstance(value, int | float) and math.isfinite(value) for value in content.values()
    )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
