"""The propensity, against a regression on dense columns; pairs weighted by it."""

import numpy as np
import pytest

from diff_oracle.tasks.attention_label import Reading
from diff_oracle.tasks.propensity import RIDGE, Propensity, fit_effects, matching_weights


def reading(attended: list[int], ignored: list[int], distances: list[int]) -> Reading:
    once = np.ones(len(distances), dtype=np.int64)
    return Reading(False, attended, ignored, "near", np.array(distances, dtype=np.int64), once)


@pytest.mark.parametrize("seed", range(3))
def test_effects_are_those_of_a_logistic_regression_with_a_ridge(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diff_oracle.tasks.propensity.STEPS", 300)
    rng = np.random.default_rng(seed)
    kinds = [rng.integers(0, 4, 400) * 10, rng.integers(0, 7, 400)]
    truth = np.array([-1.0, 0.0, 0.5, 2.0])[kinds[0] // 10] + np.linspace(-2, 2, 7)[kinds[1]]
    outcomes = rng.random(400) < 1 / (1 + np.exp(-truth))
    columns = np.concatenate([codes[:, None] == np.unique(codes) for codes in kinds], axis=1).astype(float)
    weights, yes = np.zeros(11), outcomes.sum()
    base = np.log((yes + 1) / (400 - yes + 1))
    for _ in range(50):
        chance = 1 / (1 + np.exp(-base - columns @ weights))
        hessian = columns.T @ (columns * (chance * (1 - chance))[:, None]) + RIDGE * np.eye(11)
        weights += np.linalg.solve(hessian, columns.T @ (outcomes - chance) - RIDGE * weights)
    first, second = fit_effects(kinds, outcomes)
    assert first.codes.tolist() == [0, 10, 20, 30]
    np.testing.assert_allclose(np.concatenate([first.log_odds, second.log_odds]), weights, atol=1e-4)
    assert first(np.array([30, 35, -1])).tolist() == [first.log_odds[3], 0.0, 0.0]


def test_steps_do_not_overshoot_where_the_answer_is_all_but_sure() -> None:
    site = np.repeat([0, 1], 2000)
    outcomes = np.concatenate([np.arange(2000) < 1999, np.arange(2000) < 1])
    (effect,) = fit_effects([site], outcomes)
    np.testing.assert_allclose(effect.log_odds, effect.log_odds[0] * np.array([1, -1]), rtol=1e-6)
    assert 6 < effect.log_odds[0] < np.log(1999)


def test_a_pair_is_asked_as_often_either_way() -> None:
    log_odds = np.array([-3.0, -0.5, 0.0, 2.0])
    weights = matching_weights(log_odds, log_odds)
    chance = 1 / (1 + np.exp(-log_odds))
    happens = chance[:, None] * (1 - chance)  # the first of a pair is attended to and the second ignored
    np.testing.assert_allclose(happens * weights, (happens * weights).T)
    assert (np.maximum(weights, weights.T) == 1).all()  # and no more is given away than must be


def test_token_place_and_site_are_told_apart() -> None:
    # Site A reads the nearest token whichever it is, site B token 7 wherever it stands.
    rng = np.random.default_rng(0)
    sites, rows = [], []
    for index in range(400):
        tokens = [7, *rng.choice(np.arange(8, 20), 3, replace=False).tolist()]
        back = dict(zip(rng.permutation(tokens).tolist(), (0, 3, 9, 20), strict=True))
        site = "AB"[index % 2]
        read = min(back, key=lambda token: back[token]) if site == "A" else 7
        rest = [token for token in tokens if token != read]
        sites.append(site)
        rows.append(reading([read], rest, [back[token] for token in (read, *rest)]))
    propensity = Propensity.fit(sites, rows)
    near_seven, far_seven = reading([7], [8], [0, 20]), reading([7], [8], [20, 0])
    near, far = (propensity.pair_weights("A", row).item() for row in (near_seven, far_seven))
    assert near < 0.05 < far == 1.0
    assert all(propensity.pair_weights("B", row).item() < 0.05 for row in (near_seven, far_seven))
    # A site that was never seen goes by what both do: either counts, and less.
    assert near < propensity.pair_weights("C", near_seven).item() < propensity.pair_weights("C", far_seven).item()


def test_a_token_that_stands_there_twice_is_told_from_one_that_stands_once() -> None:
    tokens = np.random.default_rng(0).permuted(np.tile(np.arange(40), (200, 1)), axis=1)[:, :3].tolist()
    rows = [Reading(False, t[:1], t[1:], "near", np.array([3, 3, 3]), np.array([2, 1, 1])) for t in tokens]
    propensity = Propensity.fit(["A"] * 200, rows)
    assert propensity.pair_weights("A", rows[0]).max() < 0.01
    turned = Reading(False, [1], [2], "near", np.array([3, 3]), np.array([1, 2]))
    assert propensity.pair_weights("A", turned).item() == 1.0


def test_where_nothing_is_known_every_pair_is_asked() -> None:
    row = reading([1, 2], [3], [4, 5, 6])
    assert Propensity.fit(["A"], [reading([], [], [])]).pair_weights("A", row).tolist() == [[1.0], [1.0]]
