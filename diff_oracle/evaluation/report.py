"""What people read: the table of an evaluation, in the terminal and as Markdown, and the learning curve."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diff_oracle.evaluation.controls import CONTROLS, MATCHED
from diff_oracle.tasks import TASKS

Row = Mapping[str, Any]
HEADER = ("question", "sites", "control", "score [95 % CI]", "matched - control [95 % CI]", "rows (documents)")


def table_lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One line a score: the score and how far `matched` is above it, each with its interval.

    Every control for all sites together, and in a last line again the hardest one, which scores highest: what the
    diff adds is the gap to it. For single site groups only `matched` and `shuffled`.
    """
    parts: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        parts.setdefault((f"{row['task']}: {row['question']}", row["site_group"]), {})[row["control"]] = row
    lines: list[tuple[str, ...]] = []
    for part, by_control in parts.items():
        shown = [(c, c) for c in by_control if c in (CONTROLS if part[1] == "all" else (MATCHED, "shuffled"))]
        controls = [c for c, _ in shown if c != MATCHED]
        if part[1] == "all" and controls:
            hardest = max(controls, key=lambda c: by_control[c]["value"])
            shown.append((hardest, f"hardest: {hardest}"))
        for control, name in shown:
            row, gap = by_control[control], by_control.get(f"{MATCHED} - {control}")
            size = f"{row['n']} ({row['n_docs']})"
            lines.append((*part, name, _score(row), _score(gap) if gap else "", size))
    return lines


def _score(row: Row) -> str:
    return f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


def print_table(rows: Sequence[Row]) -> None:
    """Prints the table; 130 columns wide where there is no terminal to ask."""
    console = Console() if sys.stdout.isatty() else Console(width=130)
    console.print(terminal_table(rows))


def terminal_table(rows: Sequence[Row]) -> Table:
    """The table for a terminal; a rule between questions, what repeats is left blank."""
    table = Table(title=f"split {rows[0]['split']}: precision of open answers, accuracy of choices")
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


def markdown_table(rows: Sequence[Row]) -> str:
    """The table for a README: all sites together, held-out wordings shortened; each task's first list by site group."""
    by_group = {f"{name}: {task.open_kinds[0]}" for name, (task, _) in TASKS.items()}

    def wanted(question: str, sites: str, control: str) -> bool:
        if "held-out" in question:
            return sites == "all" and control.split(":")[0] in (MATCHED, "shuffled", "hardest")
        return sites == "all" or question in by_group

    lines = [line for line in table_lines(rows) if wanted(*line[:3])]
    text = [" | ".join(cells) for cells in (HEADER, ("---",) * len(HEADER), *lines)]
    return "\n".join(f"| {line} |" for line in text)


def draw_learning_curve(history: Sequence[Mapping[str, float]], file: Path) -> None:
    """Training loss, and scores on split `select` for matched (solid) and shuffled (dotted) diffs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    left.plot(*zip(*losses, strict=True))
    left.set(xlabel="step", ylabel="training loss (nats a token)", ylim=(0, None))
    measured = [entry for entry in history if any(name.startswith("select/") for name in entry)]
    names = [name for name in (measured[0] if measured else {}) if name.startswith("select/")]
    places = {question: i for i, question in enumerate(dict.fromkeys(n.rsplit("/", 1)[0] for n in names))}
    for name in names:
        question, control = name.rsplit("/", 1)
        style = (
            {"linestyle": "-", "label": question.removeprefix("select/")} if control == MATCHED else {"linestyle": ":"}
        )
        cycle, place = divmod(places[question], 10)  # there are ten colours
        style |= {"color": f"C{place}", "marker": ".xs"[cycle]}
        right.plot([e["step"] for e in measured], [e[name] for e in measured], **style)
    right.set(xlabel="step", ylabel="score on split select (dotted: shuffled)", ylim=(0, 1))
    if names:
        right.legend(fontsize="small")
    figure.savefig(file, dpi=120)
    plt.close(figure)
