"""Reads measured ladders back from disk: run directories and files of `results/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diff_oracle.evaluation.runs import Run, check_about, expect_object, is_numbers, read_json, short_names
from diff_oracle.evaluation.verdict import Row

_TEXT, _NUMBERS = ("rung", "site_group", "metric"), ("value", "ci_low", "ci_high", "n", "n_docs")
_EXAMPLE = {"site": str, "context": str, "said": list, "other_lines": list, "measured": list, "cosine": float}
GAIN, SHARE, DENOMINATOR = "fve_gain", "fve_share", "denominator"


@dataclass(frozen=True)
class SavedLadder:
    """A measured ladder.

    Attributes:
        run: Its name, its provenance, and ladder.json as its rows.
        examples: explanations.json; empty where none were kept.
    """

    run: Run
    examples: Sequence[Mapping[str, Any]]

    @property
    def groups(self) -> list[str]:
        """Kinds of sites, `all` first."""
        return list(dict.fromkeys(str(row["site_group"]) for row in self.run.rows))

    @property
    def rungs(self) -> list[str]:
        """In the order of the file; differences and shares of two are none."""
        others = (row["rung"] for row in self.run.rows if row["metric"] not in (GAIN, SHARE))
        return [rung for rung in dict.fromkeys(others) if rung != DENOMINATOR]

    @property
    def gains(self) -> list[str]:
        """Differences of two rungs, `a - b`."""
        return list(dict.fromkeys(row["rung"] for row in self.run.rows if row["metric"] == GAIN))

    @property
    def shares(self) -> list[str]:
        """What one rung's FVE is of another's, `a / b`; files of earlier versions have none."""
        return list(dict.fromkeys(row["rung"] for row in self.run.rows if row["metric"] == SHARE))

    @property
    def among(self) -> int | None:
        """Of how many tokens one must be that is said to be raised; None where the run does not say."""
        found = self.run.settings.get("ladder.truth.among")
        return None if found is None else int(found)

    def of(self, metric: str, rung: str) -> dict[str, Row]:
        """A rung's rows of a metric, by kind of sites; empty where it has none."""
        return {str(x["site_group"]): x for x in self.run.rows if x["metric"] == metric and x["rung"] == rung}


def load_ladders(paths: Sequence[str | Path]) -> list[SavedLadder]:
    """Reads ladders in the order given; one that is named twice is read once.

    Raises:
        ValueError: A path holds no ladder, or a file is damaged or of another version.
    """
    places = list(dict.fromkeys(Path(path).resolve() for path in paths))
    names = short_names(places) if places else {}
    return [_load(place, names[place]) for place in places]


def _load(place: Path, name: str) -> SavedLadder:
    if place.is_file():
        about = expect_object(place, read_json(place))
        lines, examples = about.pop("ladder", None), about.pop("explanations", [])
        if lines is None:
            raise ValueError(
                f"{place} holds no ladder: expected a result of diff_oracle.train_ar with the key 'ladder'"
            )
    else:
        missing = [file for file in ("run.json", "ladder.json") if not (place / file).is_file()]
        if missing:
            raise ValueError(
                f"nla={place} is no run directory of diff_oracle.train_ar or of evaluate nla=…: it has no "
                f"{' and no '.join(missing)}"
            )
        about = expect_object(place / "run.json", read_json(place / "run.json"))
        lines, kept = read_json(place / "ladder.json"), place / "explanations.json"
        examples = read_json(kept) if kept.is_file() else []
    check_about(place, about)
    _check_lines(place, lines)
    _check_examples(place, examples)
    return SavedLadder(Run(name, about, lines, [], {}), examples)


def _check_lines(place: Path, lines: Any) -> None:
    if not isinstance(lines, list) or not lines:
        raise ValueError(f"{place}: its ladder is damaged: expected a list of lines, got {str(lines)[:50]}")
    for number, line in enumerate(lines):
        whole = isinstance(line, dict) and all(isinstance(line.get(key), str) for key in _TEXT)
        if not whole or not is_numbers({key: line.get(key) for key in _NUMBERS}):
            raise ValueError(f"{place}: line {number} of its ladder is damaged: {str(line)[:80]}")


def _check_examples(place: Path, examples: Any) -> None:
    expected = f"expected a list of objects with {', '.join(_EXAMPLE)}: run evaluate nla={place.name} again"
    if not isinstance(examples, list):
        raise ValueError(f"{place}: its explanations are damaged; {expected}")
    for number, example in enumerate(examples):
        whole = isinstance(example, dict) and all(isinstance(example.get(k), kind) for k, kind in _EXAMPLE.items())
        if not whole or not all(_is_claim(x, "true") for x in example["said"]):
            raise ValueError(f"{place}: explanation {number} is damaged, or another version wrote it; {expected}")
        if not all(_is_claim(x, "said") for x in example["measured"]):
            raise ValueError(f"{place}: what was measured of explanation {number} is damaged; {expected}")


def _is_claim(content: Any, mark: str) -> bool:
    return isinstance(content, dict) and isinstance(content.get("claim"), str) and isinstance(content.get(mark), bool)
