"""The credit of a line equals what the reconstruction loses without it, computed line by line."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diff_oracle.nla.bag import ClaimFeatures
from diff_oracle.nla.credit import claims_by_line, line_advantages, line_numbers, line_values
from diff_oracle.nla.floor import Floor
from diff_oracle.nla.linear import POOLED
from diff_oracle.nla.reward import Judged, RewardConfig, nearness
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
    assert claims_by_line(ids, NEWLINE, VOCABULARY) == [A, B, None, None, C]  # the second A says nothing new
    assert claims_by_line(VOCABULARY.encode(write([A, C])), NEWLINE, VOCABULARY) == [A, C]


@pytest.mark.parametrize("measure", ["nmse", "log_nmse"])
def test_values_are_what_the_reconstruction_loses(measure: str) -> None:
    rng = np.random.default_rng(0)
    features = ClaimFeatures(rng.standard_normal((600, 8)))
    maps = torch.from_numpy(rng.standard_normal((2, features([()]).shape[1], 8))).float()
    floor = Floor(features, ["L0", POOLED], maps, torch.from_numpy(rng.standard_normal((2, 8))).float())
    lines = [[A, None, B], [C]]
    judged = [Judged((A, B), (A, B), 9, False, 2, 0), Judged((C,), (), 4, False, 0, 0)]  # C is false, and not read
    sites, target = ["L0", "L5"], rng.standard_normal((2, 8))
    transformer = rng.standard_normal((2, 8))
    rebuilt = floor(sites, [(A, B), ()]).numpy() + transformer
    values = line_values(lines, judged, sites, rebuilt, target, floor, RewardConfig(measure=measure))
    assert [len(of_answer) for of_answer in values] == [3, 1]
    assert values[0][1] == 0 and values[1][0] == 0
    for k, others in ((0, (B,)), (2, (A,))):
        without = floor(["L0"], [others]).numpy() + transformer[:1]
        expected = nearness(rebuilt[:1], target[:1], measure) - nearness(without, target[:1], measure)
        assert values[0][k] == pytest.approx(expected[0], abs=1e-5)
    judged = [replace(judged[0], false=(B,)), replace(judged[1], false=(C,))]
    config = RewardConfig(measure=measure, false_penalty=0.25)
    less = line_values(lines, judged, sites, rebuilt, target, floor, config)
    assert less[0] == pytest.approx(values[0] - [0, 0, 0.25]) and less[1] == pytest.approx([-0.25])


def test_advantages_compare_a_line_with_its_place_in_the_group() -> None:
    # Two groups of two answers: of two lines and of one; of two lines each, which are worth the same.
    values = [np.array([3.0, 1.0]), np.array([1.0]), np.array([5.0, 5.0]), np.array([5.0, 5.0])]
    ids = torch.tensor([[7, 8, 3, 9, 2], [7, 2, 2, 2, 2], [7, 3, 8, 2, 2], [7, 3, 8, 2, 2]])
    numbers, breaks = line_numbers(ids, newline=3, eos=2), ids == 3
    found = line_advantages(values, np.zeros(4), numbers, breaks, group_size=2, min_spread=1e-3)
    spread = np.sqrt((1 + 1 + 0) / 3)  # of 3 and 1 about 2, and 1 about itself
    # Behind the first line one goes on and earns 1, the other ends and earns nothing.
    expected = np.array([[1, 1, 0.5, 0, 0], [-1, -0.5, 0, 0, 0]]) / spread
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    np.testing.assert_allclose(found[:2][mask].numpy(), expected[mask.numpy()], rtol=1e-6)
    assert not found[2:].any()


def test_what_is_taken_off_an_answer_is_laid_to_the_choice_to_go_on() -> None:
    values = [np.array([1.0, 2.0]), np.array([2.0, 1.0])]
    ids = torch.tensor([[7, 3, 8, 8], [7, 3, 8, 2]])  # the first was cut off
    numbers, breaks = line_numbers(ids, newline=3, eos=2), ids == 3
    found = line_advantages(values, np.array([-4.0, 0.0]), numbers, breaks, group_size=2, min_spread=1e-3)
    spread = 0.5
    # To go: 2 - 4 and 1, so -2 and 1 about -0.5; at the end -4 and 0.
    expected = [[-0.5 / spread, -1.5 / spread, 0.5 / spread, 0.5 / spread], [1.0, 3.0, -1.0, 4.0]]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
