"""FVE and its kin, against their formulas."""

import numpy as np
import pytest

from diff_oracle.nla.metrics import Errors, Means, cosine, spread, unit_scale
from tests.nla.made import made_rows


def fve(rebuilt: np.ndarray, target: np.ndarray, mean: np.ndarray) -> float:
    errors = Errors.of(rebuilt, target, mean)
    return 1 - float(errors.error.sum() / spread(target, mean).sum())


def test_by_hand() -> None:
    target = unit_scale(np.array([[3.0, 4.0], [1.0, 0.0]]))
    np.testing.assert_allclose(target, np.sqrt(2) * np.array([[0.6, 0.8], [1.0, 0.0]]))
    rebuilt = np.array([[0.0, 2.0], [1.0, 1.0]])
    errors = Errors.of(rebuilt, target, np.zeros((2, 2)))
    root = np.sqrt(2)
    np.testing.assert_allclose(
        errors.error, [((0.6 * root) ** 2 + (0.8 * root - 2) ** 2) / 2, ((root - 1) ** 2 + 1) / 2]
    )
    np.testing.assert_allclose(errors.cosine, [0.8, 1 / root])
    np.testing.assert_allclose(errors.nmse, [0.4, 2 - root])
    np.testing.assert_allclose(errors.norm_ratio, [root, 1.0])
    for row in range(2):  # nmse is the mean square error of what is scaled to one size
        scaled = unit_scale(rebuilt[row : row + 1])
        assert errors.nmse[row] == pytest.approx(np.mean((scaled - target[row]) ** 2))


def test_the_perfect_is_1_and_the_sites_mean_0() -> None:
    rows = made_rows(200, seed=1)
    means = Means.of(rows.sites, rows.target)
    mean = means.at(rows.sites)
    assert fve(rows.target, rows.target, mean) == 1.0
    assert fve(mean, rows.target, mean) == 0.0
    everywhere = np.broadcast_to(means.everywhere, mean.shape)
    assert fve(everywhere, rows.target, everywhere) == 0.0
    assert 0 < fve(mean, rows.target, everywhere) < 1
    np.testing.assert_allclose(means.at(["elsewhere"])[0], rows.target.mean(axis=0))


def test_zeros_have_no_direction() -> None:
    zeros, ones = np.zeros((1, 3)), np.ones((1, 3))
    assert cosine(zeros, ones).tolist() == [0.0]
    assert unit_scale(zeros).tolist() == zeros.tolist()
    assert Errors.of(zeros, ones, zeros).nmse.tolist() == [2.0]
