"""The health of a reinforcement learning: what every step shows, and when it has gone wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from diff_oracle.nla.metrics import spread
from diff_oracle.nla.reward import Judged

PANELS = (
    ("reward",),
    ("fve", "select/fve", "select/shuffled"),
    ("kl",),
    ("entropy",),
    ("length",),
    ("failed", "cut_off", "with_other_lines", "dropped_groups"),
    ("spread",),
    ("distinct", "quotes", "true_claims"),
    ("grad_norm", "ar_grad_norm"),
    ("ar_loss", "sft_loss"),
    ("tokens_per_second",),
    ("share_sampling", "share_scoring", "share_updating"),
)
Line = dict[str, Any]


@dataclass
class StopConfig:
    """When a run has degenerated: a mean over the last steps passes a bound."""

    window: int = 5
    """Steps that are looked at together."""
    max_failed: float = 0.5
    """Share of answers that are no explanation."""
    max_kl: float = 2.0
    """KL to the policy at the start, in nats a token."""
    min_distinct: float = 0.05
    """Different explanations of a step, as a share of all its explanations."""
    max_dropped: float = 0.95
    """Share of groups whose samples are all worth the same."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"rl.stop.window must be at least 1, got {self.window}")


def explanation_health(judged: Sequence[Judged]) -> dict[str, float]:
    """Of one step's explanations: length, claims, quotes, and shares: failures, cut off, with junk, distinct ones."""
    claims = sum(len(j.claims) for j in judged)
    return {
        "length": float(np.mean([j.num_tokens for j in judged])),
        "failed": float(np.mean([j.failed for j in judged])),
        "cut_off": float(np.mean([j.cut_off for j in judged])),
        "with_other_lines": float(np.mean([j.other_lines > 0 for j in judged])),
        "distinct": len({tuple(j.claims) for j in judged}) / len(judged),
        "claims": claims / len(judged),
        "quotes": sum(len(j.quoted) for j in judged) / max(1, claims),
        "true_claims": sum(j.num_true for j in judged) / max(1, claims),
    }


def reward_health(rewards: Float[np.ndarray, "group sample"], min_spread: float) -> dict[str, float]:
    """The mean reward, the mean standard deviation of a group, and the share of groups that are dropped for theirs."""
    deviations = rewards.std(axis=1)
    return {
        "reward": float(rewards.mean()),
        "spread": float(deviations.mean()),
        "dropped_groups": float(np.mean(deviations <= min_spread)),
    }


def fve(
    rebuilt: Float[np.ndarray, "row d_model"],
    target: Float[np.ndarray, "row d_model"],
    mean: Float[np.ndarray, "row d_model"],
) -> float:
    """1 − error / spread around the means given, over all rows."""
    return float(1 - np.mean((rebuilt - target) ** 2, axis=1).sum() / spread(target, mean).sum())


def degenerate(lines: Sequence[Mapping[str, Any]], config: StopConfig) -> str | None:
    """Why a run is to stop; None where it may go on.

    Args:
        lines: Of its steps, the latest last.
        config: The bounds.
    """
    if len(lines) < config.window:
        return None
    some = lines[-config.window :]
    bounds = (
        ("failed", config.max_failed, 1, "of the answers are no explanation"),
        ("kl", config.max_kl, 1, "nats a token are between the policy and what it was"),
        ("dropped_groups", config.max_dropped, 1, "of the groups teach nothing: their samples are all worth the same"),
        ("distinct", config.min_distinct, -1, "of the explanations are different ones"),
    )
    for name, bound, sign, what in bounds:
        values = [line[name] for line in some if name in line]
        if values and sign * (found := float(np.mean(values))) > sign * bound:
            side = "at most" if sign > 0 else "at least"
            return f"{found:.3g} {what}, in the last {config.window} steps; wanted {side} {bound}"
    return None


def draw_health(lines: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """A panel for each group of measures that the run has, over its steps."""
    panels = [[name for name in panel if any(name in line for line in lines)] for panel in PANELS]
    panels = [panel for panel in panels if panel]
    columns = 4
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(3.2 * columns, 2.2 * rows), layout="constrained")
    for axes, names in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 20 else None, markersize=3, label=name)
        if len(names) > 1:
            axes.legend(fontsize=5)
        axes.set_title(", ".join(names), fontsize=7)
        axes.tick_params(labelsize=6)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=9)
    return figure
