"""Figures of a ladder: its rungs with their intervals, one run or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from diff_oracle.evaluation.plots import intervals, shortened, stacked_panels
from diff_oracle.evaluation.verdict import Row
from diff_oracle.nla.naming import RungName

# Told apart without colour too.
STYLES = [("tab:blue", "o"), ("tab:orange", "D"), ("tab:green", "s"), ("tab:purple", "^"), ("tab:red", "v")]
SIGNS = {"o": "●", "D": "◆", "s": "■", "^": "▲", "v": "▼"}
MAX_RUNS = len(STYLES)
_LONGEST_NAME = 36  # letters: more would leave the panels no room
_LINE, _SPREAD = 0.19, 0.6  # inches a rung and run; how much of a rung's height its runs share


def ladder_forest(groups: Mapping[str, Sequence[RungName]], runs: Mapping[str, Mapping[str, Row]]) -> Figure:
    """A panel a group of rungs, all on one axis with a line at zero.

    Args:
        groups: Title -> rungs.
        runs: Run -> rung -> its value with the interval; a run need not have every rung. At most `MAX_RUNS`.
    """
    names = [[shortened(rung.label, _LONGEST_NAME) for rung in rungs] for rungs in groups.values()]
    figure, panels = stacked_panels(names, line=_LINE * max(1, 0.75 * len(runs)))
    for (title, rungs), (axes,) in zip(groups.items(), panels, strict=True):
        axes.set_title(title)
        axes.axvline(0, color="black", linewidth=0.8)
        for i, ((_, values), style) in enumerate(zip(runs.items(), STYLES, strict=False)):
            offset = _SPREAD * ((i + 0.5) / len(runs) - 0.5)
            intervals(axes, [(y + offset, values[r.name]) for y, r in enumerate(rungs) if r.name in values], *style)
    return figure


def key_of_runs(runs: Sequence[str]) -> dict[str, tuple[str, str]]:
    """What marks each run in a figure: the page's colour, and the sign."""
    return {
        run: (colour.removeprefix("tab:"), SIGNS[marker]) for run, (colour, marker) in zip(runs, STYLES, strict=False)
    }
