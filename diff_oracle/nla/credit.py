"""Which line of an explanation earned what: an advantage for each line, in place of one for the whole answer.

The value of a line is how much nearer the reconstruction comes to the diff with its claim than without,

    v = r(δ̂) − r(δ̂ − what the reconstructor's floor adds for the claim)

and 0 for a line that is no claim, repeats one, or is not read; less `false_penalty` for a false claim. A line's tokens
have the advantage of its value over that of the same line of the other answers of its group. To go on or to end is a
choice by itself: a line break, and the token that ends an answer, have the advantage of all that comes behind them,
which is nothing behind an end. All are in units of the standard deviation of the group's lines.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diff_oracle.nla.floor import Floor
from diff_oracle.nla.reward import Judged, RewardConfig, nearness
from diff_oracle.tasks.claims import Claim, parse
from diff_oracle.tasks.text import Vocabulary


def line_numbers(ids: Int[Tensor, "sample token"], newline: int, eos: int) -> Int[Tensor, "sample token"]:
    """Which line each token belongs to: a line break to the line that it begins, what ends the answer to none (−1)."""
    return torch.where(ids == eos, -1, (ids == newline).cumsum(dim=1))


def claims_by_line(ids: Sequence[int], newline: int, vocabulary: Vocabulary) -> list[Claim | None]:
    """What each line claims; None for a line that is no claim, or repeats an earlier one."""
    lines: list[list[int]] = [[]]
    for token in ids:
        if token == newline:
            lines.append([])
        else:
            lines[-1].append(token)
    said: list[Claim | None] = []
    for line in lines:
        claims = parse(vocabulary.decode(line), vocabulary).claims
        said.append(claims[0] if len(claims) == 1 and claims[0] not in said else None)
    return said


def line_values(
    lines: Sequence[Sequence[Claim | None]],
    judged: Sequence[Judged],
    sites: Sequence[str],
    rebuilt: Float[np.ndarray, "sample d_model"],
    target: Float[np.ndarray, "sample d_model"],
    floor: Floor,
    config: RewardConfig,
) -> list[Float[np.ndarray, "_"]]:
    """The value of each line of each answer.

    Args:
        lines: What the lines claim.
        judged: What of it is read.
        sites: Of the answers' diffs.
        rebuilt: What the reconstructor makes of each answer.
        target: The diffs.
        floor: What it adds to.
        config: What is rewarded.
    """
    values = [
        np.array([-config.false_penalty * (claim in answer.false) for claim in of_answer], dtype=float)
        for of_answer, answer in zip(lines, judged, strict=True)
    ]
    places = [
        (i, k, claim)
        for i, (of_answer, answer) in enumerate(zip(lines, judged, strict=True))
        for k, claim in enumerate(of_answer)
        if claim is not None and claim in answer.read
    ]
    if not places:
        return values
    rows = [i for i, _, _ in places]
    of_rows = [sites[i] for i in rows]
    with torch.no_grad():
        added = floor(of_rows, [(claim,) for _, _, claim in places]) - floor(of_rows, [()] * len(rows))
    without = rebuilt[rows] - added.cpu().double().numpy()
    gains = nearness(rebuilt[rows], target[rows], config.measure) - nearness(without, target[rows], config.measure)
    for (i, k, _), gain in zip(places, gains, strict=True):
        values[i][k] += gain
    return values


def line_advantages(
    values: Sequence[Float[np.ndarray, "_"]],
    at_end: Float[np.ndarray, "sample"],
    numbers: Int[Tensor, "sample token"],
    breaks: Bool[Tensor, "sample token"],
    group_size: int,
    min_spread: float,
) -> Float[Tensor, "sample token"]:
    """The advantage of every token.

    Args:
        values: Of the lines of each answer; those of a group stand side by side.
        at_end: What each answer is worth beside its lines: what is taken off for its length, or because it failed.
        numbers: Which line each token belongs to.
        breaks: Which tokens are line breaks.
        group_size: Answers of a group.
        min_spread: A group whose lines' values have no larger standard deviation has none.
    """
    width = max(len(of_lines) for of_lines in values)
    own, to_go = np.full((len(values), width), np.nan), np.full((len(values), width + 1), np.nan)
    for i, (of_lines, end) in enumerate(zip(values, at_end, strict=True)):
        own[i, : len(of_lines)] = of_lines
        to_go[i, : len(of_lines) + 1] = np.append(np.cumsum(of_lines[::-1])[::-1], 0.0) + end
    own, to_go = (_centred(of_answers, group_size) for of_answers in (own, to_go))
    there = np.array([len(of_lines) for of_lines in values]).reshape(-1, group_size).sum(axis=1)
    spread = np.sqrt((own.reshape(len(there), -1) ** 2).sum(axis=1) / there).repeat(group_size)[:, None]
    device = numbers.device

    def scaled(centred: Float[np.ndarray, "sample place"]) -> Float[Tensor, "sample place"]:
        return (
            torch.from_numpy(np.where(spread > min_spread, centred / np.maximum(spread, 1e-12), 0)).float().to(device)
        )

    lengths = torch.tensor([len(of_lines) for of_lines in values], device=device)[:, None]
    begins = torch.where(numbers < 0, lengths, numbers)  # what ends an answer stands where a line more would begin
    of_line = scaled(own).gather(1, numbers.clamp(min=0))
    return torch.where(breaks | (numbers < 0), scaled(to_go).gather(1, begins), of_line)


def _centred(values: Float[np.ndarray, "sample place"], group_size: int) -> Float[np.ndarray, "sample place"]:
    """Less the mean of the group's answers at each place, of those that come so far; 0 where one does not."""
    groups = values.reshape(-1, group_size, values.shape[1])
    there = ~np.isnan(groups)
    mean = np.where(there, groups, 0).sum(axis=1, keepdims=True) / np.maximum(1, there.sum(axis=1, keepdims=True))
    return np.where(there, groups - mean, 0).reshape(values.shape)
