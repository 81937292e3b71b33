"""Runs of reinforcement learning from one pair, side by side: what each made of it, and what it has over the others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from diff_oracle.evaluation.report import markdown, score_text
from diff_oracle.evaluation.verdict import Row
from diff_oracle.nla.evaluation import AR, CODE_LIKE_AV, CODE_LIKE_AV_READ, SECOND_AR
from diff_oracle.nla.health import Line
from diff_oracle.nla.held_out import HELD_OUT, MORE_THAN, OF_OTHER, HeldOut, gains

HELD_OUT_BEFORE = "held_out_before.json"
LADDER, LADDER_BEFORE = "ladder.json", "ladder_before.json"
BEGAN = "the pair as it began"
SHOWN = (
    ("FVE", "fve", f"AV: {AR}"),
    ("true claims", "true_claims", "AV: bag"),
    ("coverage", "coverage", "AV: bag"),
    ("claims", "claims", "AV: bag"),
    ("quotes", "quotes", "AV: bag"),
    ("no explanation, or cut off", "failed", "AV: bag"),
    ("with a line that is no claim", "with_other_lines", "AV: bag"),
    ("FVE of the true claims alone", "fve", f"AV, false claims removed: {AR}"),
    ("FVE, reordered", "fve", f"AV, reordered: {AR}"),
    ("FVE, paraphrased", "fve", f"AV, paraphrased: {AR}"),
    ("FVE, quotes only", "fve", f"AV, quotes only: {AR}"),
    ("FVE, quotes stripped", "fve", f"AV, quotes stripped: {AR}"),
    ("FVE, read by a bag of words that learned from gold alone", "fve", "AV: bag"),
    ("FVE, read by another seed's AR that learned from gold alone", "fve", f"AV: {SECOND_AR}"),
    ("FVE of gold claims", "fve", f"gold: {AR}"),
    ("FVE of gold claims, bag of words", "fve", "gold: bag"),
    ("FVE of a rotated codebook, bag of words", "fve", "rotated_codebook: bag"),
    ("FVE of a rotated codebook, as many claims as the oracle's", "fve", CODE_LIKE_AV),
    ("FVE of a rotated codebook, as many claims as the oracle's, AR", "fve", CODE_LIKE_AV_READ),
)
"""What is shown of each run: words, metric and rung of its ladder."""
GROUPS = ("all", "heads", "layers")
RESAMPLES = 2000


@dataclass(frozen=True)
class Arm:
    """A finished run of `diff_oracle.train_rl`."""

    name: str
    """`rl`, `frozen_av`, `sft_continued`; with `, truth_gated`, or `, priced 0.02` where only what is false costs, and
    with `, seed 1` and its folder where several have the same."""
    about: Mapping[str, Any]
    """run.json."""
    before: Sequence[Row]
    """The ladder of the pair as it began."""
    ladder: Sequence[Row]
    """The ladder behind the run."""
    held_out: tuple[HeldOut, HeldOut]
    """Before and after, row by row."""
    health: Mapping[str, Any]
    """health.json."""


def jobs_of(folder: Path) -> list[Path]:
    """The finished jobs of a sweep's folder, in their order; what is no such folder stays itself."""
    jobs = sorted((path.parent for path in folder.glob("*/run.json")), key=lambda job: (len(job.name), job.name))
    return [folder] if (folder / "run.json").is_file() or not jobs else jobs


def load_arms(folders: Sequence[Path]) -> list[Arm]:
    """Reads finished runs.

    Raises:
        ValueError: A folder holds no finished run of reinforcement learning, or they did not begin with one pair.
    """
    for folder in folders:
        if missing := [name for name in ("run.json", HELD_OUT, HELD_OUT_BEFORE) if not (folder / name).is_file()]:
            raise ValueError(f"{folder} is no finished run of diff_oracle.train_rl: it has no {', '.join(missing)}")
    arms = [_load(folder) for folder in folders]
    for arm, folder in zip(arms, folders, strict=True):
        if not arm.held_out[0].of_same_pair(arms[0].held_out[0]):
            raise ValueError(f"{folder} began with another pair than {folders[0]}: compare runs of one nla=RUN")
    names = [arm.name for arm in arms]
    return [
        replace(arm, name=f"{arm.name} ({folder.name})") if names.count(arm.name) > 1 else arm
        for arm, folder in zip(arms, folders, strict=True)
    ]


def _load(run_dir: Path) -> Arm:
    about, before, after, health = (
        json.loads((run_dir / name).read_text()) for name in ("run.json", LADDER_BEFORE, LADDER, "health.json")
    )
    rl = about["config"]["rl"]
    gated, price = rl["reward"]["truth_gated"], rl["reward"]["false_penalty"]
    name = rl["arm"] + (", truth_gated" if gated else f", priced {price:g}" if price else "")
    name += f", seed {rl['seed']}" if rl["seed"] else ""
    held_out = HeldOut.load(run_dir / HELD_OUT_BEFORE), HeldOut.load(run_dir / HELD_OUT)
    return Arm(name, about, before, after, held_out, health)


def gains_of(arms: Sequence[Arm], seed: int = 0, resamples: int = RESAMPLES) -> list[Row]:
    """What each has over how the pair began, and over each of the arms named before it, on the same held-out rows.

    Returns:
        Rows `{arm, over, metric, value, ci_low, ci_high, n, n_docs}`; metrics are those of `gains`, and the FVE of
        heads and of layers apart as `fve heads`, `fve layers`.
    """
    rows: list[Row] = []
    for i, arm in enumerate(arms):
        began, ours = arm.held_out
        for name, theirs in [(BEGAN, began), *((other.name, other.held_out[1]) for other in arms[:i])]:
            found = {"": gains(ours, theirs, resamples, seed)}
            kinds = [group for group in GROUPS[1:] if group in ours.groups]
            found |= {f" {kind}": gains(ours.where(kind), theirs.where(kind), resamples, seed) for kind in kinds}
            rows += [
                {"arm": arm.name, "over": name, "metric": metric + group, **asdict(estimate)}
                for group, of_group in found.items()
                for metric, estimate in of_group.items()
                if metric == "fve" or not group
            ]
    return rows


def to_result(arms: Sequence[Arm]) -> dict[str, Any]:
    """Everything that is kept of a comparison, as JSON holds it."""

    def kept(ladder: Sequence[Row], held_out: HeldOut) -> list[Row]:
        wanted = {(metric, rung) for _, metric, rung in SHOWN}
        failed = {
            "rung": "AV: bag",
            "site_group": "all",
            "metric": "failed",
            **asdict(held_out.failures(RESAMPLES, seed=0)),
        }
        rows = [row for row in ladder if (row["metric"], row["rung"]) in wanted and row["site_group"] in GROUPS]
        return [*rows, failed]

    return {
        "began": kept(arms[0].before, arms[0].held_out[0]),
        "arms": [
            {
                "name": arm.name,
                "commit": arm.about.get("commit"),
                "config": arm.about["config"],
                "seconds": arm.about["seconds"],
                "best_step": arm.health["best_step"],
                "stopped": arm.health["stopped"],
                "last_steps": _last(arm.health["lines"]),
                "ladder": kept(arm.ladder, arm.held_out[1]),
            }
            for arm in arms
        ],
        "gains": gains_of(arms),
    }


def _last(lines: Sequence[Line], window: int = 20) -> dict[str, float]:
    """Means over the last steps of what every step shows."""
    some = [line for line in lines if line["step"]][-window:]
    names = [name for name in some[-1] if name != "step" and not name.startswith("select/")]
    values = {name: [line[name] for line in some if name in line] for name in names}
    return {name: sum(of) / len(of) for name, of in values.items()}


def markdown_arms(result: Mapping[str, Any]) -> str:
    """Tables: what each arm's pair does on held-out rows, and what it has over the others there."""
    return "\n\n".join(map(markdown, _tables(result)))


def _tables(result: Mapping[str, Any]) -> list[list[list[str]]]:
    columns = {BEGAN: result["began"], **{arm["name"]: arm["ladder"] for arm in result["arms"]}}
    lines = [["held-out rows, all sites [95 % CI]", *columns]]
    for words, metric, rung in SHOWN:
        cells = [score_text(_of(ladder, metric, rung, "all")) for ladder in columns.values()]
        if any(cells):
            lines.append([words, *cells])
    for group in GROUPS[1:]:
        lines.append([f"FVE, {group}", *(score_text(_of(of, "fve", f"AV: {AR}", group)) for of in columns.values())])
    arms = {arm["name"]: arm for arm in result["arms"]}
    minutes = {name: f"{sum(arm['seconds'].values()) / 60:.0f}" for name, arm in arms.items()}
    lines.append(["minutes, measuring included", "", *minutes.values()])
    if any(commits := [str(arm.get("commit") or "")[:9] for arm in arms.values()]):
        lines.append(["commit", "", *commits])
    metrics = list(dict.fromkeys(str(row["metric"]) for row in result["gains"]))
    by_others, more = ([metric for metric in metrics if metric.startswith(x)] for x in (OF_OTHER, MORE_THAN))
    own = [metric for metric in metrics if metric not in (*by_others, *more)]
    return [lines, *(_gained(result["gains"], columns) for columns in (own, by_others, more) if columns)]


def _gained(rows: Sequence[Row], metrics: Sequence[str]) -> list[list[str]]:
    found = {(str(row["arm"]), str(row["over"]), row["metric"]): row for row in rows}
    pairs = dict.fromkeys((arm, over) for arm, over, metric in found if metric in metrics)
    shown = [[arm, over, *(score_text(found.get((arm, over, metric))) for metric in metrics)] for arm, over in pairs]
    return [["gain, paired, of", "over", *metrics], *shown]


def _of(ladder: Sequence[Row], metric: str, rung: str, group: str) -> Row | None:
    return next(
        (row for row in ladder if (row["metric"], row["rung"], row["site_group"]) == (metric, rung, group)), None
    )
