"""What is left of a diff behind the injector is all of it at the start, and nothing behind a map of noise."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from diff_oracle.oracle.model import Oracle
from scripts.injected import MIN_ROWS, cosines


@pytest.mark.parametrize("basis", ["residual", "unembedding"])
def test_what_a_map_leaves_of_a_diff(make_oracle: Callable[..., Oracle], basis: str) -> None:
    oracle = make_oracle("gemma3", basis=basis)
    width, rng = oracle.identity.d_model, np.random.default_rng(0)
    sites = np.array(["L0"] * 200 + ["L1"] * 200 + ["L2"] * (MIN_ROWS - 1))
    diffs = rng.standard_normal((len(sites), width)).astype(np.float32)
    diffs[:200] += 5  # the site's mean, which does not count
    assert cosines(oracle, diffs, sites) == pytest.approx([1, -1], abs=1e-5)
    with torch.no_grad():
        for matrix in oracle.injector.maps:
            matrix.normal_()
    assert np.abs(cosines(oracle, diffs, sites)).max() < 0.5
