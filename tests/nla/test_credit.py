"""Lines are worth what is rebuilt by them, computed one by one; and what they are credited with teaches."""

import numpy as np
import pytest
import torch

from diff_oracle.nla import credit
from diff_oracle.nla.bag import ClaimFeatures
from diff_oracle.nla.credit import claims_by_line, line_advantages, line_numbers, line_worths
from diff_oracle.nla.floor import Floor
from diff_oracle.nla.linear import POOLED
from diff_oracle.nla.reward import Judged, RewardConfig, nearness, worth
from diff_oracle.tasks.claims import Claim, write
from tests.tasks.made import VOCABULARY

NEWLINE = VOCABULARY.newline[-1]
A, B, C = Claim("raises", 500), Claim("lowers", 501), Claim("raises", 502)


def test_a_line_break_belongs_to_the_line_that_it_begins_and_the_end_to_none() -> None:
    ids = torch.tensor([[7, 8, 3, 9, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2, 2]])
    expected = [[0, 0, 1, 1, 2, 3, -1, -1], [0, -1, -1, -1, -1, -1, -1, -1]]
    assert line_numbers(ids, newline=3, eos=2).tolist() == expected


def test_lines_are_read_one_by_one() -> None:
    ids = VOCABULARY.encode((*write([A, B]), "\nnonsense", *("\n",), *write([A]), "\n", *write([C])))
    assert claims_by_line(ids, NEWLINE, VOCABULARY) == [A, B, None, A, C]
    assert claims_by_line(VOCABULARY.encode(write([A, C])), NEWLINE, VOCABULARY) == [A, C]
    assert claims_by_line([], NEWLINE, VOCABULARY) == []
    assert claims_by_line([NEWLINE], NEWLINE, VOCABULARY) == [None, None]
    more = next(i for i, text in enumerate(VOCABULARY.texts) if text.startswith("\n") and len(text) > 1)
    assert claims_by_line([*VOCABULARY.encode(write([A])), more], NEWLINE, VOCABULARY) == [None]  # two lines in one


@pytest.mark.parametrize("measure", ["nmse", "log_nmse"])
def test_worths_are_those_of_the_first_lines_alone(measure: str) -> None:
    rng = np.random.default_rng(0)
    features = ClaimFeatures(rng.standard_normal((600, 8)))
    maps = torch.from_numpy(rng.standard_normal((2, features([()]).shape[1], 8))).float()
    floor = Floor(features, ["L0", POOLED], maps, torch.from_numpy(rng.standard_normal((2, 8))).float())
    lines = [[A, None, B, A], [C]]  # the second A says nothing new
    judged = [Judged((A, B), (A, B), (B,), (A,), 9, False, 1), Judged((C,), (), (C,), (), 4, True)]  # C is not read
    numbers = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 3, -1], [0, 0, 0, 0, -1, -1, -1, -1, -1]])
    sites, (target, wrong, transformer) = ["L0", "L5"], rng.standard_normal((3, 2, 8))
    rebuilt = floor(sites, [(A, B), ()]).numpy() + transformer
    penalties = {"length_penalty": 0.1, "false_penalty": 0.25, "quote_penalty": 0.5, "contrastive": 0.3}
    config = RewardConfig(measure=measure, **penalties)
    found = line_worths(lines, numbers, judged, sites, rebuilt, target, floor, config, wrong)

    def by_hand(i: int, said: tuple[Claim, ...], tokens: int, num_priced: int, quoted: float) -> float:
        part = floor([sites[i]], [said]).numpy() + transformer[i : i + 1]
        near = nearness(part, target[i : i + 1], measure) - 0.3 * nearness(part, wrong[i : i + 1], measure)
        return float(near[0]) - 0.1 * tokens - 0.25 * num_priced - 0.5 * quoted

    first = [
        by_hand(0, (), 0, 0, 0),
        by_hand(0, (A,), 2, 0, 1),
        by_hand(0, (A,), 4, 1, 1),
        by_hand(0, (A, B), 7, 2, 0.5),
        by_hand(0, (A, B), 9, 2, 0.5),
    ]
    np.testing.assert_allclose(found[0], first, atol=1e-5)
    np.testing.assert_allclose(found[1], [by_hand(1, (), 0, 0, 0), by_hand(1, (), 4, 1, 0)], atol=1e-5)
    whole = worth(judged, rebuilt, target, config, wrong)  # all lines are worth what the answer is
    np.testing.assert_allclose([values[-1] for values in found], whole, atol=1e-5)


def test_advantages_are_what_is_expected_more_behind_a_line() -> None:
    # Two groups of two answers: of two lines, of one, of none, and of one that is cut off.
    worths = [np.array([0.0, 3.0, 4.0]), np.array([0.0, 1.0]), np.array([0.0]), np.array([0.0, 2.0])]
    earned = np.array([[4.0, 1.0], [-1.0, -2.0]])
    numbers = torch.tensor([[0, 0, 1, 1, -1], [0, -1, -1, -1, -1], [-1, -1, -1, -1, -1], [0, 0, 0, 0, 0]])
    found = line_advantages(worths, earned, numbers, min_spread=1e-3)
    # V_0 is the group's mean. Three answers come to the first line's end and their regression has three unknowns, one
    # to the second's: both are exact.
    mean = [2.5, -1.5]
    first, second = (4 - mean[0]) / 1.5, (1 - mean[0]) / 1.5  # known behind the first line
    np.testing.assert_allclose(found[0].numpy(), [first, first, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found[1, :2].numpy(), [second, 0], atol=1e-6)
    np.testing.assert_allclose(found[2].numpy(), [(-1 - mean[1]) / 0.5] * 5, rtol=1e-6)  # laid to the end
    np.testing.assert_allclose(found[3].numpy(), [(-2 - mean[1]) / 0.5] * 5, rtol=1e-6)  # cut off: to the last line
    assert not line_advantages(worths, earned, numbers, min_spread=9.0).any()


def test_lines_are_credited_by_the_answers_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    worths = [rng.standard_normal(1 + length) for length in rng.integers(1, 4, 12)]
    earned = rng.standard_normal((4, 3))
    numbers = torch.zeros(12, 1, dtype=torch.long)  # of each answer the first line
    alone = line_advantages(worths, earned, numbers, 1e-3)
    for process in range(2):
        mine = slice(6 * process, 6 * process + 6)
        everyone = iter([worths, list(earned)])
        monkeypatch.setattr(credit, "gathered", lambda values, everyone=everyone: next(everyone))
        monkeypatch.setattr(credit, "rank", lambda process=process: process)
        found = line_advantages(worths[mine], earned[2 * process : 2 * process + 2], numbers[mine], 1e-3)
        torch.testing.assert_close(found, alone[mine])


def test_an_answers_advantages_sum_to_plain_grpos() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 6, 24)
    worths = [rng.standard_normal(length + 1) for length in lengths]
    earned = np.array([of[-1] for of in worths]).reshape(4, 6)
    numbers = torch.full((24, 6), -1)
    for row, length in enumerate(lengths):
        numbers[row, :length] = torch.arange(length)
    found = line_advantages(worths, earned, numbers, min_spread=1e-3)
    sums = [float(row[: length + 1].sum()) for row, length in zip(found, lengths, strict=True)]
    expected = (earned - earned.mean(axis=1, keepdims=True)) / earned.std(axis=1, keepdims=True)
    np.testing.assert_allclose(np.reshape(sums, (4, 6)), expected, rtol=1e-5)


def test_a_first_line_that_lets_the_next_be_worth_more_is_learned() -> None:
    """The first line is worth 0.2 and the next 0, or 0.1 and the next 1: a line's own worth alone would mislead."""
    logits, rng = torch.zeros(2), np.random.default_rng(0)
    numbers = torch.tensor([[0, 1, -1]] * 32)
    for _ in range(60):
        chosen = rng.random(32) < float(logits.softmax(-1)[1])
        worths = [np.array([0.0, 0.1, 1.1]) if second else np.array([0.0, 0.2, 0.2]) for second in chosen]
        earned = np.array([of[-1] for of in worths]).reshape(4, 8)
        advantage = line_advantages(worths, earned, numbers, min_spread=1e-3)[:, 0]
        policy = logits.clone().requires_grad_()
        log_probs = policy.log_softmax(-1)[torch.from_numpy(chosen).long()]
        (log_probs * advantage).mean().backward()
        assert policy.grad is not None
        logits = logits + 2.0 * policy.grad
    assert float(logits.softmax(-1)[1]) > 0.95
