"""Which line of an explanation earned what: an advantage for each line, in place of one for the whole answer.

The value of a line is how much nearer the reconstruction comes to the diff with its claim than without,

    v = r(δ̂) − r(δ̂ − what the reconstructor's floor adds for the claim)

and 0 for a line that is no claim, repeats one, or is not read. It is compared with the same line of the other answers
of its group, in units of the group's standard deviation. The token that ends an answer, and no line, has the advantage
of the whole answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diff_oracle.nla.floor import Floor
from diff_oracle.nla.reward import Judged, nearness
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
    measure: str,
) -> list[Float[np.ndarray, "_"]]:
    """The value of each line of each answer.

    Args:
        lines: What the lines claim.
        judged: What of it is read.
        sites: Of the answers' diffs.
        rebuilt: What the reconstructor makes of each answer.
        target: The diffs.
        floor: What it adds to.
        measure: As in `RewardConfig`.
    """
    values = [np.zeros(len(of_answer)) for of_answer in lines]
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
    gains = nearness(rebuilt[rows], target[rows], measure) - nearness(without, target[rows], measure)
    for (i, k, _), gain in zip(places, gains, strict=True):
        values[i][k] = gain
    return values


def line_advantages(
    values: Sequence[Float[np.ndarray, "_"]],
    of_answer: Float[Tensor, "sample"],
    numbers: Int[Tensor, "sample token"],
    group_size: int,
    min_spread: float,
) -> Float[Tensor, "sample token"]:
    """The advantage of every token.

    Args:
        values: Of the lines of each answer; those of a group stand side by side.
        of_answer: The advantage of the whole answer.
        numbers: Which line each token belongs to.
        group_size: Answers of a group.
        min_spread: A group whose lines' values have no larger standard deviation has none.
    """
    width = max(len(of_lines) for of_lines in values)
    padded = np.full((len(values), width), np.nan)
    for row, of_lines in zip(padded, values, strict=True):
        row[: len(of_lines)] = of_lines
    groups = padded.reshape(-1, group_size, width)
    there: Bool[np.ndarray, "group sample line"] = ~np.isnan(groups)
    mean = np.where(there, groups, 0).sum(axis=1, keepdims=True) / np.maximum(1, there.sum(axis=1, keepdims=True))
    centred = np.where(there, groups - mean, 0)
    spread = np.sqrt((centred**2).sum(axis=(1, 2)) / there.sum(axis=(1, 2)))[:, None, None]
    scaled = np.where(spread > min_spread, centred / np.maximum(spread, 1e-12), 0).reshape(-1, width)
    by_line = torch.from_numpy(scaled).float().to(numbers.device)
    of_token = by_line.gather(1, numbers.clamp(min=0, max=width - 1))
    return torch.where(numbers < 0, of_answer[:, None].to(numbers.device), of_token)
