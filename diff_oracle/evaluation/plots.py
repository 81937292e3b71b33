"""Figures of an evaluation, and how one becomes a part of a page: SVG in the page's own colours, light or dark."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from diff_oracle.evaluation.controls import MATCHED
from diff_oracle.evaluation.verdict import YARDSTICKS, Part, Row

History = Sequence[Mapping[str, float | int]]
_Line = tuple[float | int, Row]  # height in a panel, and what is drawn there

# (colour, marker): told apart without colour too.
_MATCHED, _CONTROL, _HARDEST = ("tab:blue", "o"), ("tab:gray", "|"), ("tab:orange", "D")
_YARDSTICK = ("tab:purple", "s")
# Inches. A figure fits a phone.
_WIDTH, _LINE, _TITLE, _AXIS, _LETTER = 5.2, 0.18, 0.36, 0.35, 0.078
_LONGEST_NAME = 24  # letters: more would leave the panels no room
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched and copied
    "svg.hashsalt": "diff_oracle",  # the same figure has the same ids
    "text.parse_math": False,  # names are data, a dollar sign is none of TeX's
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "legend.frameon": False,
}
# matplotlib's colours -> the page's variables, which are other ones in light and dark.
_VARIABLES = {"#000000": "--ink", "#ffffff": "--paper", "#b0b0b0": "--rule"}
_VARIABLES |= {to_hex(f"tab:{name}"): f"--{name}" for name in (
    "blue", "orange", "green", "red", "purple", "brown", "pink", "gray", "olive", "cyan"
)}  # fmt: skip


def forest(parts: Sequence[Part]) -> Figure:
    """A panel a question: every control's score on the left, the gap of `matched` to it on the right."""
    names = [[MATCHED, *part.controls, *(name for name in YARDSTICKS if name in part.scores)] for part in parts]
    figure, panels = _panels(names, "matched - control")
    for part, lines, (scores, gaps) in zip(parts, names, panels, strict=True):
        scores.set_title(part.question)
        drawn = list(enumerate(part.scores[name] for name in lines))
        first_yardstick = 1 + len(part.controls)
        intervals(scores, drawn[1:first_yardstick], *_CONTROL)
        if part.hardest is not None:
            intervals(scores, [drawn[lines.index(part.hardest)]], *_HARDEST)
        intervals(scores, drawn[first_yardstick:], *_YARDSTICK)
        intervals(scores, drawn[:1], *_MATCHED)
        _gaps(gaps, [(y, part.gaps[name]) for y, name in enumerate(lines) if name in part.gaps])
    return figure


def side_by_side(name: str, parts: Mapping[str, Part | None]) -> Figure:
    """One question in several runs: `matched` and the hardest control on the left, the gap on the right.

    Args:
        name: The question.
        parts: Run -> its scores, None where the run did not ask.
    """
    figure, ((scores, gaps),) = _panels([list(parts)], "matched - hardest")
    scores.set_title(name)
    asked = [(y, part) for y, part in enumerate(parts.values()) if part is not None]
    beaten = [(y, part, part.hardest) for y, part in asked if part.hardest is not None]
    intervals(scores, [(y + 0.15, part.scores[hardest]) for y, part, hardest in beaten], *_HARDEST)
    intervals(scores, [(y - 0.15, part.scores[MATCHED]) for y, part in asked], *_MATCHED)
    _gaps(gaps, [(y, part.gaps[hardest]) for y, part, hardest in beaten if hardest in part.gaps])
    return figure


def _panels(names: Sequence[Sequence[str]], gap_title: str) -> tuple[Figure, list[tuple[Any, Any]]]:
    """Two columns of panels, for scores and gaps."""
    figure, panels = stacked_panels([[shortened(name) for name in lines] for lines in names], (0.57, 0.37))
    for scores, gaps in panels:
        scores.set_xlim(-0.02, 1.02)
        gaps.spines.left.set_visible(False)
        gaps.axvline(0, color="black", linewidth=0.8)
    panels[0][1].set_title(gap_title)
    return figure, [(scores, gaps) for scores, gaps in panels]


def stacked_panels(
    names: Sequence[Sequence[str]], columns: Sequence[float] = (1.0,), line: float = _LINE
) -> tuple[Figure, list[tuple[Any, ...]]]:
    """A figure of panels one above the other; the names of a row's lines stand at y = 0, 1, ...

    Everything has its place in inches: a layout engine would draw each figure twice.

    Args:
        names: Of the lines of each row of panels.
        columns: Each column's share of the width that the names leave. Panels of a column share their axis.
        line: Height of a line in inches.
    """
    heights = [line * (len(lines) + 1) for lines in names]
    total, bottom = sum(heights) + _TITLE * len(names) + _AXIS, _AXIS
    left = _LETTER * max(len(name) for lines in names for name in lines) + 0.1
    width = _WIDTH - left - 0.1
    space = (1 - sum(columns)) / max(1, len(columns) - 1)
    starts = [sum(columns[:i]) + i * space for i in range(len(columns))]
    figure = Figure(figsize=(_WIDTH, total))
    panels: list[tuple[Any, ...]] = []
    for lines, height in zip(reversed(names), reversed(heights), strict=True):
        share = panels[0] if panels else (None,) * len(columns)
        row = tuple(
            figure.add_axes(
                ((left + start * width) / _WIDTH, bottom / total, part * width / _WIDTH, height / total), sharex=shared
            )
            for start, part, shared in zip(starts, columns, share, strict=True)
        )
        bottom += height + _TITLE
        for axes in row:
            axes.set_yticks(range(len(lines)), lines if axes is row[0] else [])
            axes.set_ylim(len(lines) - 0.4, -0.6)
            axes.grid(axis="x", color="#b0b0b0", linewidth=0.5)
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", labelbottom=not panels)
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        panels.append(row)
    return figure, panels[::-1]


def intervals(axes: Any, lines: Sequence[_Line], colour: str, marker: str, fill: str | None = None) -> None:
    """Draws values with their intervals, each at its height."""
    heights, rows = [y for y, _ in lines], [row for _, row in lines]
    axes.hlines(heights, [row["ci_low"] for row in rows], [row["ci_high"] for row in rows], color=colour, linewidth=1.5)
    values = [row["value"] for row in rows]
    axes.plot(values, heights, marker, color=colour, markersize=5, markerfacecolor=fill or colour)


def _gaps(axes: Any, lines: Sequence[_Line]) -> None:
    """Filled where the interval is above zero, hollow where it is not."""
    intervals(axes, [line for line in lines if line[1]["ci_low"] > 0], "black", "o")
    intervals(axes, [line for line in lines if line[1]["ci_low"] <= 0], "black", "o", fill="white")


def shortened(name: str, most: int = _LONGEST_NAME) -> str:
    """The end of a long path, which is what tells runs apart."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def learning_curve(history: History, stacked: bool = False) -> Figure:
    """Training loss, and scores on split `select` for matched (solid) and shuffled (dotted) diffs.

    Args:
        history: Entries with `step`, and `loss` or `select/...` scores.
        stacked: One above the other, in the width of a page's figures, instead of side by side.
    """
    figure = Figure(figsize=(_WIDTH, 6.5) if stacked else (11, 4), layout="constrained")
    left, right = figure.subplots(2, 1) if stacked else figure.subplots(1, 2)
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
    if names and stacked:
        figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    elif names:
        right.legend(fontsize="small")
    return figure


def page_svg(prefix: str, draw: Callable[..., Figure], *arguments: Any) -> str:
    """A figure as an `<svg>` element to stand inside a page.

    Args:
        prefix: Begins each id, so that ids are unique on a page where every figure has its own prefix.
        draw: Makes the figure. It is called with `arguments`, in the page's style.
        arguments: What is drawn.
    """
    text = StringIO()
    with matplotlib.rc_context(_STYLE):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        draw(*arguments).savefig(text, format="svg", metadata=metadata)
    root = ElementTree.fromstring(text.getvalue())
    for element in root.iter():
        element.tag = _local(element.tag)  # in HTML, svg's elements need no namespace
        if element.tag == "g":
            element.attrib.pop("id", None)  # nothing refers to it
        element.attrib = {_local(key): _own(_local(key), value, prefix) for key, value in element.attrib.items()}
    root.remove(root[0])  # a style sheet, which would hold for the whole page
    root.set("width", f"{_WIDTH * 96:.0f}")  # pixels of CSS; the height follows
    del root.attrib["height"]
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _own(key: str, value: str, prefix: str) -> str:
    """The value of an attribute with this page's ids and colours, and no more digits than can be seen."""
    if key == "id":
        return prefix + value
    if key == "style":
        return re.sub(r"#[0-9a-f]{6}\b", lambda colour: _themed(colour[0]), value)
    if key in ("href", "clip-path"):
        return value.replace("#", f"#{prefix}")
    return re.sub(r"(\.\d\d)\d+", r"\1", value) if key in ("d", "x", "y", "transform") else value


def _themed(colour: str) -> str:
    return f"var({_VARIABLES[colour]})" if colour in _VARIABLES else colour
