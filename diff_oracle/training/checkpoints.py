"""Checkpoints of an unfinished training, which a killed run goes on from.

    RUN_DIR/checkpoints/settings.json     what the training was asked for: it goes on with the same settings alone
    RUN_DIR/checkpoints/checkpoint-200/   trained weights, optimiser, schedule, random state, log
    RUN_DIR/checkpoints/partial/          one that is being written, or removed

A folder that stands under a checkpoint's name is whole, whenever the process was killed: it is written and removed
under another name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SETTINGS = "settings.json"
_ABSENT = object()


class Checkpoints:
    """The folder of one training's checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def partial(self) -> Path:
        """Where the next checkpoint is written."""
        return self.folder / "partial"

    def path(self, step: int) -> Path:
        """The checkpoint of a step, or where it will be."""
        return self.folder / f"checkpoint-{step}"

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, in order."""
        return sorted(int(path.name.rpartition("-")[2]) for path in self.folder.glob("checkpoint-*"))

    def last(self) -> Path | None:
        """The latest whole checkpoint."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def settings(self) -> dict[str, Any]:
        """What the training was asked for; empty where none has claimed the folder."""
        file = self.folder / SETTINGS
        return json.loads(file.read_text()) if file.is_file() else {}

    def refuse_others(self, settings: dict[str, Any]) -> None:
        """Makes sure that no training with other settings is unfinished here.

        Args:
            settings: Nested; those of the first level that are not given are not compared.

        Raises:
            ValueError: There is one.
        """
        if self.last() is None:
            return
        if changed := changes(self.settings(), settings):
            raise ValueError(
                f"{self.folder.parent} holds an unfinished training with other settings: {changed}. Finish it with "
                f"its own settings, choose another run_dir=, or delete {self.folder}"
            )

    def claim(self, settings: dict[str, Any]) -> None:
        """Writes down the settings of the training that begins or goes on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")

    def tidy_up(self) -> None:
        """Removes what a killed process left half written or half removed."""
        for path in (self.partial, self._finished):
            shutil.rmtree(path, ignore_errors=True)

    def add(self, step: int) -> None:
        """Takes in the checkpoint that was written into `partial`, under its own name."""
        (self.partial / self.path(step).name).rename(self.path(step))

    def keep(self, steps: set[int]) -> None:
        """Removes all but these."""
        for step in set(self.steps()) - steps:
            removed = self.partial / "removed"
            shutil.rmtree(removed, ignore_errors=True)
            self.path(step).rename(removed)
            shutil.rmtree(removed)

    def delete(self) -> None:
        """Removes them all: the training is finished."""
        if self.folder.is_dir():
            self.folder.rename(self._finished)
        shutil.rmtree(self._finished, ignore_errors=True)

    @property
    def _finished(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.finished")


def changes(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """What settings differ in, as text: the first five, with both values. Empty where they are the same.

    Args:
        theirs: Nested, as read from JSON.
        ours: Nested; those of the first level that are not given are not compared.
    """
    old = dict(_flat({name: theirs[name] for name in ours if name in theirs}))
    new = dict(_flat(json.loads(json.dumps(ours))))
    changed = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    shown = ", ".join(f"{key} {old.get(key, 'absent')} (now {new.get(key, 'absent')})" for key in changed[:5])
    return f"{shown} and {len(changed) - 5} more" if len(changed) > 5 else shown


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
