"""The ladder as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = ("fve", "fve_global", "cosine", "kl_recovered", "true_claims", "coverage")


def print_ladder(lines: Sequence[Mapping[str, Any]]) -> None:
    """Prints every rung over all sites, and the gains between rungs by kind of site."""
    by_rung: dict[str, dict[str, Mapping[str, Any]]] = {}
    groups = list(dict.fromkeys(line["site_group"] for line in lines))
    for line in lines:
        if line["site_group"] == "all" and line["metric"] != "fve_gain" and line["rung"] != "denominator":
            by_rung.setdefault(line["rung"], {})[line["metric"]] = line
    table = Table("rung", *COLUMNS, *(f"fve {group}" for group in groups if group != "all"), title="all sites, 95 % CI")
    fve = {(line["rung"], line["site_group"]): line for line in lines if line["metric"] == "fve"}
    for rung, of_rung in by_rung.items():
        by_group = [_shown(fve.get((rung, group))) for group in groups if group != "all"]
        table.add_row(rung, *(_shown(of_rung.get(metric)) for metric in COLUMNS), *by_group)
    gains = Table("gain in FVE", *groups)
    found = {(line["rung"], line["site_group"]): line for line in lines if line["metric"] == "fve_gain"}
    for rung in dict.fromkeys(rung for rung, _ in found):
        gains.add_row(rung, *(_shown(found.get((rung, group)), interval=True) for group in groups))
    console = Console()
    console.print(table)
    console.print(gains)


def _shown(line: Mapping[str, Any] | None, interval: bool = False) -> str:
    if line is None:
        return ""
    value = f"{line['value']:.3f}"
    return f"{value} [{line['ci_low']:.3f}, {line['ci_high']:.3f}]" if interval else value
