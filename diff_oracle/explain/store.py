"""What is explained so far, on disk: a line of JSON each, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diff_oracle.explain.explanations import Explanation, explanation_from_dict

FILE = "explained.jsonl"
Key = tuple[int, int, str]
"""Text, position, site."""


class Store:
    """A file of explanations made with the same settings; its first line says with which.

    Attributes:
        file: Where it is.
        finished: The explanations that it holds.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Opens a folder's store, or begins one. A last line that was cut off is dropped.

        Raises:
            ValueError: The store was made with other settings, or is damaged.
        """
        self.file = folder / FILE
        self.finished: dict[Key, Explanation] = {}
        folder.mkdir(parents=True, exist_ok=True)
        content = self.file.read_bytes() if self.file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.file, len(whole))
        lines = whole.splitlines()
        ours = json.loads(json.dumps(dict(settings)))  # as they are read: without tuples
        if not lines:
            self._write([ours])
            return
        try:
            theirs = json.loads(lines[0])
            self.finished = {_key(item): item for item in map(_explanation, lines[1:])}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.file} is damaged ({type(error).__name__}: {error}): delete it") from error
        if other := [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]:
            raise ValueError(
                f"{folder} holds explanations with another {', '.join(other)}: choose another run_dir, or delete "
                f"{self.file}"
            )

    def add(self, items: Iterable[Explanation]) -> None:
        """Writes finished explanations; once this returns, a kill cannot lose them."""
        found = list(items)
        self._write(found)
        self.finished |= {_key(item): item for item in found}

    def _write(self, rows: Iterable[Mapping[str, Any] | Explanation]) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, default=vars, ensure_ascii=False) + "\n" for row in rows)
            stream.flush()
            os.fsync(stream.fileno())


def _key(item: Explanation) -> Key:
    return item.text, item.position, item.site


def _explanation(line: bytes) -> Explanation:
    return explanation_from_dict(json.loads(line))
