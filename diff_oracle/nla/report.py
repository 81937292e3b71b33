"""The ladder, and the sites that can be put into words, as tables for people: in the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from diff_oracle.evaluation.report import markdown, score_text
from diff_oracle.evaluation.verdict import Row
from diff_oracle.nla.evaluation import AR, CODE_LIKE_AV, CODE_LIKE_AV_READ, SECOND_AR
from diff_oracle.nla.headlines import headlines
from diff_oracle.nla.naming import grouped
from diff_oracle.nla.rungs import DIFF_BLIND
from diff_oracle.nla.saved import DENOMINATOR, GAIN, SHARE, SavedLadder
from diff_oracle.subject.sites import DiffSite

PAIRED = {GAIN: "gain in FVE, paired", SHARE: "share of FVE, paired"}
"""What a ladder says of two rungs on the same rows."""
COLUMNS = ("fve", "fve_global", "cosine", "kl_recovered", "true_claims", "coverage")
MAIN_RUNGS = (
    *DIFF_BLIND,
    "rotated_codebook: bag",
    CODE_LIKE_AV,
    f"rotated_codebook: {AR}",
    CODE_LIKE_AV_READ,
    "gold: bag",
    f"gold: {AR}",
    "AV: bag",
    f"AV: {AR}",
    f"AV: {SECOND_AR}",
    "AV, false claims removed: bag",
)
"""What a README shows; the site's mean is 0 by definition."""
MAIN_GROUPS = ("all", "heads", "layers", "spans")


def print_ladder(lines: Sequence[Mapping[str, Any]]) -> None:
    """Prints every rung over all sites, and what rungs gain over others, or are of others, by kind of site."""
    by_rung: dict[str, dict[str, Mapping[str, Any]]] = {}
    groups = list(dict.fromkeys(line["site_group"] for line in lines))
    for line in lines:
        if line["site_group"] == "all" and line["metric"] not in (GAIN, SHARE) and line["rung"] != DENOMINATOR:
            by_rung.setdefault(line["rung"], {})[line["metric"]] = line
    table = Table("rung", *COLUMNS, *(f"fve {group}" for group in groups if group != "all"), title="all sites, 95 % CI")
    fve = {(line["rung"], line["site_group"]): line for line in lines if line["metric"] == "fve"}
    for rung, of_rung in by_rung.items():
        by_group = [_shown(fve.get((rung, group))) for group in groups if group != "all"]
        table.add_row(rung, *(_shown(of_rung.get(metric)) for metric in COLUMNS), *by_group)
    console = Console()
    console.print(table)
    for metric, title in PAIRED.items():
        found = {(line["rung"], line["site_group"]): line for line in lines if line["metric"] == metric}
        paired = Table(title, *groups)
        for rung in dict.fromkeys(rung for rung, _ in found):
            paired.add_row(rung, *(_shown(found.get((rung, group)), interval=True) for group in groups))
        if found:
            console.print(paired)


def _shown(line: Mapping[str, Any] | None, interval: bool = False) -> str:
    if line is None:
        return ""
    value = f"{line['value']:.3f}"
    return f"{value} [{line['ci_low']:.3f}, {line['ci_high']:.3f}]" if interval else value


def print_headlines(ladders: Sequence[SavedLadder]) -> None:
    """Prints the questions and answers of each ladder."""
    for ladder in ladders:
        print(ladder.run.name)
        for headline in headlines(ladder):
            print(f"  {headline.question}\n    {headline.answer}")


def markdown_ladder(ladder: SavedLadder) -> str:
    """The main rungs, gains and shares for a README; folded away, every rung and kind of site."""
    main = [name for name in MAIN_RUNGS if name in ladder.rungs and name != "site mean"]
    groups = [group for group in MAIN_GROUPS if group in ladder.groups]
    columns = [("fve", group, f"FVE, {'all sites' if group == 'all' else group}") for group in groups]
    true = "true_claims" + (f", of the {ladder.among} most" if ladder.among else "")
    columns += [("true_claims", "all", true), *((name, "all", name) for name in ("coverage", "kl_recovered"))]
    paired = [
        [[PAIRED[metric], *groups]]
        + [[name, *(score_text(ladder.of(metric, name).get(group)) for group in groups)] for name in names]
        for metric, names in ((GAIN, ladder.gains), (SHARE, ladder.shares))
        if names
    ]
    every = [("fve", group, f"FVE, {group}") for group in ladder.groups]
    every += [(name, "all", name) for name in ("fve_global", "fve_direction", "cosine", "claims", "quotes")]
    every += [("kl_recovered", group, f"kl_recovered, {group}") for group in ladder.groups]
    all_rungs = [rung.name for rungs in grouped(ladder.rungs).values() for rung in rungs]
    return "\n\n".join(
        [
            markdown(_rung_lines(ladder, main, columns)),
            _denominators(ladder, groups),
            *map(markdown, paired),
            "<details><summary>Every rung and kind of site, with intervals</summary>",
            f"{markdown(_rung_lines(ladder, all_rungs, every))}\n\n</details>",
        ]
    )


def _rung_lines(ladder: SavedLadder, rungs: Sequence[str], columns: Sequence[tuple[str, str, str]]) -> list[list[str]]:
    """A heading and a line a rung; columns are (metric, kind of sites, heading), those that nobody fills left out."""
    cells = [[score_text(ladder.of(metric, rung).get(group)) for metric, group, _ in columns] for rung in rungs]
    filled = [i for i in range(len(columns)) if any(row[i] for row in cells)]
    heading = ["rung [95 % CI]", *(columns[i][2] for i in filled)]
    return [heading, *([rung, *(row[i] for i in filled)] for rung, row in zip(rungs, cells, strict=True))]


def _denominators(ladder: SavedLadder, groups: Sequence[str]) -> str:
    parts = {
        "FVE, about the site's mean": ladder.of("fve", DENOMINATOR),
        "fve_global, about the mean of all sites": ladder.of("fve_global", DENOMINATOR),
        "kl_recovered, the KL without the diff in nats": ladder.of("kl", "no diff"),
    }
    shown = [
        f"{name}: " + ", ".join(f"{group} {score_text(rows[group])}" for group in groups if group in rows)
        for name, rows in parts.items()
        if rows
    ]
    return f"Denominators. {'; '.join(shown)}."


def markdown_sites(lines: Sequence[Row]) -> str:
    """What the sites' lines say by kind of site: the mean over sites, and on how many the interval is off zero."""
    kinds = sorted({DiffSite.parse(str(line["site"])).group for line in lines})
    by_rung: dict[str, dict[str, list[Row]]] = {}
    for line in lines:
        by_rung.setdefault(str(line["rung"]), {}).setdefault(DiffSite.parse(str(line["site"])).group, []).append(line)
    shown = [["FVE of the site's mean: mean over sites; sites above zero, below zero, of all", *kinds]]
    shown += [[rung, *(_site_cell(of.get(kind, [])) for kind in kinds)] for rung, of in by_rung.items()]
    return markdown(shown)


def _site_cell(lines: Sequence[Row]) -> str:
    if not lines:
        return ""
    above, below = (sum(line[end] * side > 0 for line in lines) for end, side in (("ci_low", 1), ("ci_high", -1)))
    return f"{np.mean([line['value'] for line in lines]):.3f}; {above}, {below} of {len(lines)}"
