"""Which line of an explanation earned what: how much more is to be expected behind it than before it.

The lines of an answer are said one after the other. What the first k of them are worth,

    R_k = r(δ̂ − what the reconstructor's floor adds for the claims of the others)        r: `reward.worth`

is known for every k, for the floor is linear. What an answer will have earned in the end is expected from there,

    V_k = a_k + b_k R_k + c_k m        m: the mean reward of its group; V_0 = m

by least squares over all answers of the step that come so far: b_k is less than 1 where later lines tell the same. The
tokens of line k have the advantage V_{k+1} − V_k, the token that ends the answer reward − V_K; a cut-off answer's last
line has what is left. All in units of the standard deviation of the group's rewards. An answer's advantages thus sum to
that of plain GRPO, and each line has the part of it that became known with the line (Sutton & Barto 2018, section
6.1). A line break belongs to the line that it begins, so that to go on is credited with what comes of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diff_oracle.nla.floor import Floor
from diff_oracle.nla.reward import Judged, RewardConfig, worth
from diff_oracle.tasks.claims import Claim, parse
from diff_oracle.tasks.text import Vocabulary
from diff_oracle.training.processes import gathered, rank


def line_numbers(ids: Int[Tensor, "sample token"], newline: int, eos: int) -> Int[Tensor, "sample token"]:
    """Which line each token belongs to: a line break to the line that it begins, what ends the answer to none (−1)."""
    return torch.where(ids == eos, -1, (ids == newline).cumsum(dim=1))


def claims_by_line(ids: Sequence[int], newline: int, vocabulary: Vocabulary) -> list[Claim | None]:
    """What each line claims; None for a line that is no claim. There is no line where nothing is."""
    lines: list[list[int]] = [[]] if len(ids) else []
    for token in ids:
        if token == newline:
            lines.append([])
        else:
            lines[-1].append(token)
    said: list[Claim | None] = []
    for line in lines:
        parsed = parse(vocabulary.decode(line), vocabulary)
        said.append(parsed.claims[0] if len(parsed.claims) == 1 and not parsed.other_lines else None)
    return said


def line_worths(
    lines: Sequence[Sequence[Claim | None]],
    numbers: Int[Tensor, "sample token"],
    judged: Sequence[Judged],
    sites: Sequence[str],
    rebuilt: Float[np.ndarray, "sample d_model"],
    target: Float[np.ndarray, "sample d_model"],
    floor: Floor,
    config: RewardConfig,
    wrong: Float[np.ndarray, "sample d_model"] | None = None,
) -> list[Float[np.ndarray, "_"]]:
    """R_0 … R_K of each answer of K lines.

    Args:
        lines: What the lines claim.
        numbers: Which line each token belongs to.
        judged: What of it is read.
        sites: Of the answers' diffs.
        rebuilt: What the reconstructor makes of each answer.
        target: The diffs.
        floor: What it adds to.
        config: What is rewarded.
        wrong: Other diffs, for a contrastive reward.
    """
    places = [(i, k) for i, of_answer in enumerate(lines) for k in range(len(of_answer) + 1)]
    added = _added(lines, judged, sites, floor, rebuilt.shape[1])
    parts = np.stack([rebuilt[i] - added[i][k:].sum(axis=0) for i, k in places])
    so_far = [
        judged[i] if k == len(lines[i]) else judged[i].of(lines[i][:k], _num_tokens(numbers[i], k)) for i, k in places
    ]
    rows = [i for i, _ in places]
    values = worth(so_far, parts, target[rows], config, None if wrong is None else wrong[rows])
    return np.split(values, np.cumsum([len(of_answer) + 1 for of_answer in lines])[:-1])


def _num_tokens(numbers: Int[Tensor, "token"], k: int) -> int:
    """Tokens of the first k lines."""
    return int(((numbers >= 0) & (numbers < k)).sum())


def _added(
    lines: Sequence[Sequence[Claim | None]], judged: Sequence[Judged], sites: Sequence[str], floor: Floor, d_model: int
) -> list[Float[np.ndarray, "line d_model"]]:
    """What the floor adds for each line of each answer: nothing for one that is not read, or says nothing new."""
    added = [np.zeros((len(of_answer), d_model)) for of_answer in lines]
    read = [
        (i, k, claim)
        for i, (of_answer, answer) in enumerate(zip(lines, judged, strict=True))
        for k, claim in enumerate(of_answer)
        if claim is not None and claim in answer.read and claim not in of_answer[:k]
    ]
    if read:
        of_rows = [sites[i] for i, _, _ in read]
        with torch.no_grad():
            more = floor(of_rows, [(claim,) for _, _, claim in read]) - floor(of_rows, [()] * len(read))
        for (i, k, _), vector in zip(read, more.cpu().double().numpy(), strict=True):
            added[i][k] = vector
    return added


def line_advantages(
    worths: Sequence[Float[np.ndarray, "_"]],
    earned: Float[np.ndarray, "group member"],
    numbers: Int[Tensor, "sample token"],
    min_spread: float,
) -> Float[Tensor, "sample token"]:
    """The advantage of every token. What is expected is learned from the answers of all processes.

    Args:
        worths: R_0 … R_K of each answer of this process; those of a group stand side by side.
        earned: What each answer earned.
        numbers: Which line each token belongs to; −1 for what ends an answer.
        min_spread: A group whose rewards have no larger standard deviation has no advantages.
    """
    everywhere = _expectations(gathered(list(worths)), np.array(gathered(list(earned))))
    expected = everywhere[rank() * len(worths) :][: len(worths)]
    width, ends = max(len(of_answer) for of_answer in worths), (numbers < 0).any(dim=1).tolist()
    steps = np.zeros((len(worths), width + 1))  # a column a line, and one for the end
    for row, values, reward, end in zip(steps, expected, earned.flatten(), ends, strict=True):
        if not end:
            values[-1] = reward
        row[: len(values) - 1] = np.diff(values)
        row[width] = reward - values[-1]
    spread = earned.std(axis=1).repeat(earned.shape[1])[:, None]
    scaled = np.where(spread > min_spread, steps / np.maximum(spread, 1e-12), 0)
    return torch.from_numpy(scaled).float().to(numbers.device).gather(1, torch.where(numbers < 0, width, numbers))


def _expectations(
    worths: Sequence[Float[np.ndarray, "_"]], earned: Float[np.ndarray, "group member"]
) -> list[Float[np.ndarray, "_"]]:
    """V_0 … V_K of each answer."""
    mean, reward = earned.mean(axis=1).repeat(earned.shape[1]), earned.flatten()
    expected = [np.full(len(of_answer), m) for of_answer, m in zip(worths, mean, strict=True)]
    for k in range(1, max(len(of_answer) for of_answer in worths)):
        there = [i for i, of_answer in enumerate(worths) if len(of_answer) > k]
        known = np.stack([np.ones(len(there)), [worths[i][k] for i in there], mean[there]], axis=1)
        values = known @ np.linalg.lstsq(known, reward[there], rcond=1e-9)[0]
        for i, value in zip(there, values, strict=True):
            expected[i][k] = value
    return expected
