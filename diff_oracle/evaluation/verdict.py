"""What an evaluation has shown: is `matched` above every control, and which one stands in the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diff_oracle.evaluation.controls import LINEAR_PROBE, MATCHED
from diff_oracle.evaluation.results import MIN_DOCS
from diff_oracle.tasks import TASKS

Row = Mapping[str, Any]
YARDSTICKS = (LINEAR_PROBE,)
"""Not controls but readers of the same vector, shown apart: an oracle may well be below them."""
READ, NOT_SHOWN = "read from the diff", "not shown"
_GAP = f"{MATCHED} - "


@dataclass(frozen=True)
class Part:
    """All scores of one question at one group of sites.

    Attributes:
        task, question, site_group, split: As in eval.json.
        scores: Row of `matched` and of each control and yardstick, in the order of eval.json.
        gaps: Control -> row of matched - control.
        not_asked: Controls that no row could be asked with.
    """

    task: str
    question: str
    site_group: str
    split: str
    scores: dict[str, Row] = field(default_factory=dict)
    gaps: dict[str, Row] = field(default_factory=dict)
    not_asked: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Task and question, and the sites where they were held out of training."""
        sites = f", {self.site_group}" if "held-out" in self.site_group else ""
        return f"{self.task}: {self.question}{sites}"

    @property
    def overall(self) -> bool:
        """Whether all kinds of sites are in it."""
        return self.site_group == "all"

    @property
    def held_out(self) -> bool:
        """Whether training had nothing like it."""
        return "held-out" in self.question or "held-out" in self.site_group

    @property
    def controls(self) -> list[str]:
        """What matched is compared with.

        `sign_flipped` only where −diff has another answer: elsewhere a reader may be blind to the sign, and right.
        """
        task = TASKS.get(self.task)
        unsigned = ("sign_flipped",) if task and not task[0].signed else ()
        return [name for name in self.scores if name not in (MATCHED, *YARDSTICKS, *unsigned)]

    @property
    def deciding(self) -> list[str]:
        """The controls that were asked of at least `MIN_DOCS` documents: what matched has to beat."""
        return [name for name in self.controls if self.gaps.get(name, self.scores[name])["n_docs"] >= MIN_DOCS]

    @property
    def hardest(self) -> str | None:
        """The deciding control that matched is least above: on the same rows, the one that scores highest."""

        def distance(control: str) -> float:
            if control in self.gaps:  # paired: not every row can be asked with every control
                return self.gaps[control]["value"]
            return self.scores[MATCHED]["value"] - self.scores[control]["value"]

        return min(self.deciding, key=distance, default=None) if MATCHED in self.scores else None

    @property
    def unbeaten(self) -> list[str]:
        """Controls that matched is not shown to be above: the gap's interval reaches zero, or was not measured."""
        return [name for name in self.deciding if name not in self.gaps or self.gaps[name]["ci_low"] <= 0]

    @property
    def verdict(self) -> str:
        """`READ` where matched is above every deciding control."""
        return READ if self.deciding and not self.unbeaten else NOT_SHOWN

    @property
    def reason(self) -> str:
        """What the verdict stands on: how many controls decide, which are not beaten, and which could not decide."""
        few = [name for name in self.controls if name not in self.deciding]
        notes = {"not asked": self.not_asked, f"asked of fewer than {MIN_DOCS} documents": few}
        return "; ".join([self._compared(), *(f"{note}: {', '.join(names)}" for note, names in notes.items() if names)])

    def _compared(self) -> str:
        names, number = self.unbeaten, len(self.deciding)
        if number == 0:
            return "no control to decide by"
        if number == 1:
            return f"{'not ' if names else ''}above {self.deciding[0]} alone"
        if len(names) in (0, number):
            return f"above {'none of' if names else 'all'} {number} controls"
        return f"not above {', '.join(names)} ({len(names)} of {number} controls)"


def split_parts(rows: Sequence[Row]) -> list[Part]:
    """The rows of eval.json by question and site group, in the order of first appearance."""
    parts: dict[tuple[str, ...], Part] = {}
    for row in rows:
        key = (row["task"], row["question"], row["site_group"], row["split"])
        part, control = parts.setdefault(key, Part(*key)), row["control"]
        if not row["n"]:
            part.not_asked.append(control)
        elif control.startswith(_GAP):
            part.gaps[control.removeprefix(_GAP)] = row
        else:
            part.scores[control] = row
    return list(parts.values())


def judged(parts: Sequence[Part]) -> list[Part]:
    """Those that a verdict is given on: all sites together, and sites held out of training; `matched` was asked."""
    shown = [part for part in parts if part.overall or "held-out" in part.site_group]
    return [part for part in shown if MATCHED in part.scores]
