"""What people read of an evaluation in the terminal and as Markdown, and the learning curve's file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diff_oracle.evaluation.controls import LINEAR_PROBE, MATCHED
from diff_oracle.evaluation.plots import History, learning_curve
from diff_oracle.evaluation.verdict import NOT_SHOWN, READ, YARDSTICKS, Part, Row, judged, split_parts
from diff_oracle.tasks import TASKS

HEADER = ("question", "sites", "control", "score [95 % CI]", "matched - control [95 % CI]", "rows (documents)")
VERDICT_HEADER = ("question", "verdict", "matched [95 % CI]", "hardest control", "gap to it [95 % CI]")


def table_lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One line a score: the score and how far `matched` is above it, each with its interval.

    Every control for all sites together, then again the hardest one: what the diff adds is the gap to it. Yardsticks
    and controls that could not be asked come last. For single site groups only `matched` and `shuffled`.
    """
    lines: list[tuple[str, ...]] = []
    for part in split_parts(rows):
        shown = [(name, name) for name in (MATCHED, *part.controls) if name in part.scores]
        if part.overall and part.hardest is not None:
            shown.append((part.hardest, f"hardest: {part.hardest}"))
        shown += [(name, f"yardstick: {name}") for name in YARDSTICKS if name in part.scores]
        if not part.overall:
            shown = [line for line in shown if line[0] in (MATCHED, "shuffled")]
        for control, name in shown:
            row, gap = part.scores[control], part.gaps.get(control)
            size = f"{row['n']} ({row['n_docs']})"
            lines.append((part.name, part.site_group, name, score_text(row), score_text(gap), size))
        if part.overall:
            lines += [(part.name, part.site_group, name, "not asked", "", "0 (0)") for name in part.not_asked]
    return lines


def score_text(row: Row | None) -> str:
    """A score with its interval; empty where there is none."""
    return f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]" if row else ""


def print_table(rows: Sequence[Row]) -> None:
    """Prints the table; 130 columns wide where there is no terminal to ask."""
    _console().print(terminal_table(rows))


def terminal_table(rows: Sequence[Row]) -> Table:
    """The table for a terminal; a rule between questions, what repeats is left blank."""
    split = rows[0]["split"] if rows else "without rows"
    table = Table(title=f"split {split}: overlap of lists, accuracy of choices")
    for name in HEADER:
        table.add_column(name)
    previous: tuple[str, ...] = ("", "")
    for line in table_lines(rows):
        if line[:2] != previous:
            table.add_section()
        shown = ("" if line[0] == previous[0] else line[0], "" if line[:2] == previous else line[1])
        previous = line[:2]
        table.add_row(*map(escape, (*shown, *line[2:])))
    return table


def print_verdicts(runs: Mapping[str, Sequence[Row]]) -> None:
    """Prints what runs have shown, all sites together; 130 columns wide where there is no terminal to ask."""
    _console().print(verdict_table(*runs.values()) if len(runs) == 1 else runs_table(runs))


def verdict_table(rows: Sequence[Row]) -> Table:
    """For a terminal: what a run has shown, question by question."""
    table = Table(title="read from the diff: matched is above every control that was asked")
    for name in VERDICT_HEADER:
        table.add_column(name)
    for part in judged(split_parts(rows)):
        table.add_row(*map(escape, _verdict_line(part)))
    return table


def runs_table(runs: Mapping[str, Sequence[Row]]) -> Table:
    """For a terminal: which questions each run has read from the diff."""
    table = Table(title="read from the diff: matched is above every control that was asked")
    for name in ("run", READ, NOT_SHOWN):
        table.add_column(name)
    for run, rows in runs.items():
        parts = judged(split_parts(rows))
        not_shown = [part.name for part in parts if part.verdict == NOT_SHOWN]
        table.add_row(*map(escape, (run, f"{len(parts) - len(not_shown)} of {len(parts)}", "; ".join(not_shown))))
    return table


def _verdict_line(part: Part) -> tuple[str, ...]:
    hardest = f"{part.hardest} {part.scores[part.hardest]['value']:.3f}" if part.hardest else ""
    gap = part.gaps.get(part.hardest or "")
    return part.name, f"{part.verdict}: {part.reason}", score_text(part.scores[MATCHED]), hardest, score_text(gap)


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=130)


def markdown_table(rows: Sequence[Row]) -> str:
    """Every control for a README: all sites together, held-out wordings shortened; first lists by site group."""
    by_group = {f"{name}: {task.open_kinds[0]}" for name, (task, _) in TASKS.items()}

    def wanted(question: str, sites: str, control: str) -> bool:
        if "held-out" in question:
            return sites == "all" and control.split(":")[0] in (MATCHED, "shuffled", "hardest", "yardstick")
        return sites == "all" or question in by_group

    return markdown([HEADER, *(line for line in table_lines(rows) if wanted(*line[:3]))])


def markdown_verdicts(rows: Sequence[Row]) -> str:
    """What a run has shown, for a README, with the linear probe where one was fitted."""
    header = (*VERDICT_HEADER[:1], *VERDICT_HEADER[2:], LINEAR_PROBE, "verdict")
    lines = []
    for part in judged(split_parts(rows)):
        name, _, *scores = _verdict_line(part)
        verdict = f"**{READ}**" if part.verdict == READ else part.verdict
        lines.append((name, *scores, score_text(part.scores.get(LINEAR_PROBE)), f"{verdict}: {part.reason}"))
    return markdown([header, *lines])


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is its header."""
    header, *others = lines
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *others))


def draw_learning_curve(history: History, file: Path) -> None:
    """Training loss, and scores on split `select` for matched (solid) and shuffled (dotted) diffs, as a PNG."""
    learning_curve(history).savefig(file, dpi=120)
