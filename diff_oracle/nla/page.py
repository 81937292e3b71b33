"""Ladders -> one self-contained HTML page: no network, no timestamp, the same bytes for the same ladders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from diff_oracle.evaluation.comparison import differing_settings
from diff_oracle.evaluation.page import facts
from diff_oracle.evaluation.plots import page_svg
from diff_oracle.evaluation.templates import render_template
from diff_oracle.evaluation.verdict import Row
from diff_oracle.nla.headlines import Headline, headlines
from diff_oracle.nla.naming import MEANINGS, RungName, grouped
from diff_oracle.nla.plots import MAX_RUNS, key_of_runs, ladder_forest
from diff_oracle.nla.saved import DENOMINATOR, GAIN, SHARE, SavedLadder

METRICS = {
    "fve": "FVE: 1 - mean square error / variance about the mean of the diff's own site in training",
    "fve_global": "the same with the variance about the mean of all sites in training",
    "fve_direction": "the same as fve with nmse in place of the error: the reconstruction at the diff's full size",
    "kl_recovered": "1 - KL / KL without the diff, of the output with the reconstruction in the diff's place",
    "kl": "that KL, from the unchanged output, in nats",
    "true_claims": "share of the claims that are true on the model",
    "coverage": "share of the labels' claims that are named",
    "claims": "number of claims",
    "quotes": "share of the claims that name a token of the text",
    "cosine": "cosine of the reconstruction and the diff",
    "centred_cosine": "the same, the site's mean taken from both",
    "nmse": "mean square error when both have full size, 2 (1 - cosine)",
    "norm_ratio": "size of the reconstruction, the diff's being 1",
    "length": "tokens of an explanation",
    "without_claims": "share of explanations without any claim",
    "with_other_lines": "share of explanations with a line that is no claim",
}
"""What stands in ladder.json, in the order of the table."""
DENOMINATORS = {
    "fve": "of fve and fve_direction: mean square of the diff, scaled to size 1, less its site's mean",
    "fve_global": "of fve_global: the same, less the mean of all sites",
    "kl": "of kl_recovered: KL of the output without the diff, nats",
}
SHOWN_EXAMPLES = 12


@dataclass(frozen=True)
class LadderView:
    """A ladder as the page shows it.

    Attributes:
        ladder: What was read.
        anchor: Its id on the page.
        facts: What it is and where it comes from, by name.
        headlines: Questions and answers.
        figures: Title -> figure.
        metrics: Those that it has.
        table: (rung, kind of sites, metric -> row), every one there is.
        denominators: Kind of sites -> denominator -> row.
        gains: Difference of two rungs -> kind of sites -> row.
        shares: What one rung's FVE is of another's -> kind of sites -> row.
    """

    ladder: SavedLadder
    anchor: str
    facts: dict[str, str]
    headlines: list[Headline]
    figures: dict[str, Markup]
    metrics: list[str]
    table: list[tuple[RungName, str, dict[str, Row]]]
    denominators: dict[str, dict[str, Row]]
    gains: dict[str, dict[str, Row]]
    shares: dict[str, dict[str, Row]]

    @property
    def config(self) -> str:
        """The full configuration, as JSON."""
        return json.dumps(self.ladder.run.about.get("config", {}), indent=2, ensure_ascii=False)


def render_ladders(ladders: Sequence[SavedLadder]) -> str:
    """The page about one ladder, or about several with a comparison first.

    Raises:
        ValueError: There are more than figures can tell apart.
    """
    if len(ladders) > MAX_RUNS:
        raise ValueError(f"nla= takes at most {MAX_RUNS} runs to stand side by side, got {len(ladders)}")
    views = [_view(ladder, f"run-{i}") for i, ladder in enumerate(ladders, start=1)]
    several = len(ladders) > 1
    return render_template(
        Path(__file__).parent,
        views=views,
        settings=differing_settings([ladder.run for ladder in ladders]) if several else {},
        compared=_compared(views) if several else [],
        key=key_of_runs([ladder.run.name for ladder in ladders]),
        figures=_figures("all-", ladders) if several else {},
        meanings=MEANINGS,
        METRICS=METRICS,
        DENOMINATORS=DENOMINATORS,
        SHOWN_EXAMPLES=SHOWN_EXAMPLES,
    )


def _view(ladder: SavedLadder, anchor: str) -> LadderView:
    rows: dict[tuple[str, str], dict[str, Row]] = {}
    for row in ladder.run.rows:
        rows.setdefault((str(row["rung"]), str(row["site_group"])), {})[str(row["metric"])] = row
    found = {metric for (rung, _), of in rows.items() if rung != DENOMINATOR for metric in of}
    rungs = [rung for group in grouped(ladder.rungs).values() for rung in group]
    return LadderView(
        ladder=ladder,
        anchor=anchor,
        facts=facts(ladder.run),
        headlines=headlines(ladder),
        figures=_figures(f"{anchor}-", [ladder]),
        metrics=[*(name for name in METRICS if name in found), *sorted(found - set(METRICS) - {GAIN, SHARE})],
        table=[
            (rung, group, rows[rung.name, group])
            for group in ladder.groups
            for rung in rungs
            if (rung.name, group) in rows
        ],
        denominators=_denominators(ladder),
        gains={name: ladder.of(GAIN, name) for name in ladder.gains},
        shares={name: ladder.of(SHARE, name) for name in ladder.shares},
    )


def _denominators(ladder: SavedLadder) -> dict[str, dict[str, Row]]:
    """Kind of sites -> metric of `DENOMINATORS` -> row."""
    of = {name: ladder.of(name, "no diff" if name == "kl" else DENOMINATOR) for name in DENOMINATORS}
    return {group: {name: rows[group] for name, rows in of.items() if group in rows} for group in ladder.groups}


def _figures(prefix: str, ladders: Sequence[SavedLadder]) -> dict[str, Markup]:
    """FVE at every kind of sites that all ladders have, and KL recovered; titles beside the figures."""
    names = dict.fromkeys(rung for ladder in ladders for rung in ladder.rungs)
    groups = [group for group in ladders[0].groups if all(group in ladder.groups for ladder in ladders)]
    wanted = [("fve", "FVE", group) for group in groups] + [("kl_recovered", "KL recovered", "all")]
    figures = {}
    for i, (metric, shown, group) in enumerate(wanted):
        values: dict[str, Mapping[str, Row]] = {
            ladder.run.name: {name: of[group] for name in names if group in (of := ladder.of(metric, name))}
            for ladder in ladders
        }
        there = [name for name in names if any(name in of for of in values.values())]
        if there:
            svg = page_svg(f"{prefix}{i}-", ladder_forest, grouped(there), values)
            figures[f"{shown}, {'all sites' if group == 'all' else group}"] = Markup(svg)
    return figures


def _compared(views: Sequence[LadderView]) -> list[tuple[str, str, list[Row | None]]]:
    """(question, what answers it, its row of all sites in each run; None where it has none)."""
    keys = dict.fromkeys((h.question, name) for view in views for h in view.headlines for name in h.lines)
    found = [
        {(h.question, name): of.get("all") for h in view.headlines for name, of in h.lines.items()} for view in views
    ]
    return [(question, name, [of.get((question, name)) for of in found]) for question, name in keys]
