"""Rewards equal what comes out by hand, and false claims are never read where truth is asked for."""

import math

import numpy as np
import pytest

from diff_oracle.nla.reward import Judged, RewardConfig, judge, nearness, rewards, worth
from diff_oracle.tasks.claims import NO_CHANGE, Claim
from diff_oracle.tasks.truth import Measured
from tests.tasks.made import VOCABULARY

A, B, C = 500, 501, 502
TRUTH = Measured(frozenset([A]), frozenset([B]), frozenset(), frozenset([C]))


def judged(text: str, cut_off: bool = False, truth_gated: bool = False) -> Judged:
    return judge(text, 9, cut_off, [1, B, 7], TRUTH, VOCABULARY, truth_gated)


def said(*claims: Claim) -> str:
    return "\n".join(
        f"{c.kind}:{VOCABULARY.texts[c.said]}" if isinstance(c.said, int) else f"{c.kind}: {c.said}" for c in claims
    )


def test_an_explanation_is_taken_apart() -> None:
    claims = (Claim("raises", A), Claim("raises", B), Claim("lowers", B), Claim("skipped", NO_CHANGE))
    true = (Claim("raises", A), Claim("lowers", B))
    for gated in (False, True):
        found = judged(said(*claims) + "\nsome other line", truth_gated=gated)
        assert found.claims == claims
        assert found.read == (true if gated else claims)
        assert found.false == (Claim("raises", B), Claim("skipped", NO_CHANGE))
        assert found.quoted == (Claim("raises", B), Claim("lowers", B))
        assert (found.num_true, found.quotes, found.failed) == (2, 0.5, False)
        some = found.of([Claim("raises", B), None], 4)
        assert (some.claims, some.quoted, some.false) == ((Claim("raises", B),),) * 3
        assert (some.read, some.num_tokens, some.other_lines) == (() if gated else some.claims, 4, 1)


@pytest.mark.parametrize(
    ("text", "cut_off", "failed"),
    [
        ("", False, True),
        ("no claim at all\nnor here", False, True),
        (said(Claim("raises", A)), True, True),
        (said(Claim("raises", A)), False, False),
        (said(Claim("raises", C)), False, True),  # false: nothing is read
        (said(Claim("raises", C), Claim("raises", A)), False, False),
    ],
)
def test_what_fails(text: str, cut_off: bool, failed: bool) -> None:
    one = [judged(text, cut_off, truth_gated=True)]
    assert one[0].failed == failed
    value = worth(one, np.array([[1.0, 1.0]]), np.array([[1.0, 1.0]]), RewardConfig())
    assert rewards(one, value, -3.0)[0] == pytest.approx(-3.0 if failed else 0.0)
    assert rewards(one, value - 9, -3.0)[0] == -3.0  # nothing is worth less than what failed


def test_false_claims_that_are_read_are_an_explanation() -> None:
    assert not judged(said(Claim("raises", C))).failed


def test_rewards_by_hand() -> None:
    three = [judged(said(Claim("raises", A), Claim("lowers", B)))] * 3
    rebuilt = np.array([[2.0, 0.0], [0.0, 0.1], [0.0, -5.0]])  # at 0, 90 and 180 degrees to (1, 0), at 90, 0, 180 to …
    right, wrong = np.array([[1.0, 0.0]] * 3), np.array([[0.0, 1.0]] * 3)
    np.testing.assert_allclose(worth(three, rebuilt, right, RewardConfig()), [0, -2, -2], atol=1e-12)
    logs = worth(three, rebuilt, right, RewardConfig(measure="log_nmse"))
    np.testing.assert_allclose(logs, [-math.log(1e-6), -math.log(2), -math.log(2)])
    contrast = worth(three, rebuilt, right, RewardConfig(contrastive=1.0), wrong)
    np.testing.assert_allclose(contrast, [0 + 2, -2 - 0, -2 + 4], atol=1e-12)
    less = worth(three, rebuilt, right, RewardConfig(length_penalty=0.01, quote_penalty=0.3))
    np.testing.assert_allclose(less, np.array([0, -2, -2]) - 0.09 - 0.15, atol=1e-12)
    half_true = [judged(said(Claim("raises", A), Claim("raises", B)))] * 3
    less = worth(half_true, rebuilt, right, RewardConfig(false_penalty=0.2))
    np.testing.assert_allclose(less, np.array([0, -2, -2]) - 0.2, atol=1e-12)
    nonsense = [judged(said(Claim("raises", A), Claim("raises", B)) + "\nhm\n")] * 3  # the last line is empty
    less = worth(nonsense, rebuilt, right, RewardConfig(false_penalty=0.2))
    np.testing.assert_allclose(less, np.array([0, -2, -2]) - 0.6, atol=1e-12)


def test_a_direction_is_rewarded_whatever_its_size() -> None:
    rng = np.random.default_rng(0)
    rebuilt, target = rng.standard_normal((2, 5, 8))
    units = [x * math.sqrt(8) / np.linalg.norm(x, axis=1, keepdims=True) for x in (rebuilt, target)]
    by_definition = -np.mean((units[0] - units[1]) ** 2, axis=1)
    np.testing.assert_allclose(nearness(7 * rebuilt, target, "nmse"), by_definition)


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ValueError, match=r"unknown rl.reward.measure 'mse': choose from nmse, log_nmse"):
        RewardConfig(measure="mse")
    with pytest.raises(ValueError, match=r"rl.reward.length_penalty must be at least 0, got -1.0"):
        RewardConfig(length_penalty=-1.0)
    with pytest.raises(ValueError, match="needs a wrong diff"):
        worth([judged("")], np.ones((1, 2)), np.ones((1, 2)), RewardConfig(contrastive=1.0))
