"""What is held out is never trained: neither it nor what contains it."""

import pytest

from diff_oracle.training.holdout import HoldoutConfig


def test_a_held_out_block_takes_its_parts_and_every_span_over_it_with_it() -> None:
    holdout = HoldoutConfig(layers=[3], heads=["L1H2"])
    groups = {
        "L3": "held-out layers", "L3.attn": "held-out layers", "L3.mlp": "held-out layers", "L3H0": "held-out layers",
        "L2:5": "held-out spans", "L3:4": "held-out spans", "L0:3": None, "L4:6": None, "L2": None, "L4H3": None,
        "L1H2": "held-out heads", "L1H1": None, "L1.attn": None, "L1": None, "L0:2": None,
    }  # fmt: skip
    assert {site: holdout.group(site) for site in groups} == groups
    assert holdout.trained(list(groups)).tolist() == [group is None for group in groups.values()]
    assert HoldoutConfig().trained(["L3", "L3"]).tolist() == [True, True]


def test_what_a_model_has_not_cannot_be_held_out() -> None:
    with pytest.raises(ValueError, match=r"names single heads like L3H2, got 'L3'"):
        HoldoutConfig(heads=["L3"])
    with pytest.raises(ValueError, match="site 'L9' is out of range"):
        HoldoutConfig(layers=[9]).check(6, 4, ["logit_lens"])
    with pytest.raises(ValueError, match="leaves no block to train on"):
        HoldoutConfig(layers=[0, 1]).check(2, 4, ["logit_lens"])
    with pytest.raises(ValueError, match=r"names 'attention', which is not asked: add \+task=attention"):
        HoldoutConfig(tasks=["attention"]).check(6, 4, ["logit_lens"])
    with pytest.raises(ValueError, match="leaves no task to train on"):
        HoldoutConfig(tasks=["logit_lens"]).check(6, 4, ["logit_lens"])
    HoldoutConfig(tasks=["attention"], layers=[2], heads=["L0H1"]).check(6, 4, ["logit_lens", "attention"])
