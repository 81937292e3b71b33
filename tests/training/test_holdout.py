"""What is held out is never trained: neither it nor what contains it."""

from contextlib import nullcontext

import pytest

from diff_oracle.tasks import make_tasks
from diff_oracle.training.holdout import HoldoutConfig
from diff_oracle.training.mixture import MixtureConfig


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
        HoldoutConfig(layers=[9]).check(6, 4, ["logit_lens"], ["layers"])
    with pytest.raises(ValueError, match="leaves no block to train on"):
        HoldoutConfig(layers=[0, 1]).check(2, 4, ["logit_lens"], ["layers"])
    with pytest.raises(ValueError, match=r"names 'attention', which is not asked: add \+task=attention"):
        HoldoutConfig(tasks=["attention"]).check(6, 4, ["logit_lens"], ["layers"])
    with pytest.raises(ValueError, match="leaves no task to train on"):
        HoldoutConfig(tasks=["logit_lens"]).check(6, 4, ["logit_lens"], ["layers"])
    HoldoutConfig(tasks=["attention"], layers=[2], heads=["L0H1"]).check(
        6, 4, ["logit_lens", "attention"], ["layers", "heads"]
    )


@pytest.mark.parametrize(
    ("holdout", "site_names", "said"),
    [
        (HoldoutConfig(heads=["L1H2"]), ["layers", "L1H1"], r"heads names L1H2, .*sites.names=\['layers', 'L1H1'\]"),
        (HoldoutConfig(layers=[3]), ["L0:3", "L4H3"], "holdout.layers names 3, but no site of the dataset is of it"),
        (HoldoutConfig(heads=["L1H2"]), ["spans", "heads"], None),
        (HoldoutConfig(layers=[3]), ["L1", "L2:5"], None),
    ],
)
def test_what_the_dataset_has_not_cannot_be_held_out(
    holdout: HoldoutConfig, site_names: list[str], said: str | None
) -> None:
    with pytest.raises(ValueError, match=said) if said else nullcontext():
        holdout.check(6, 4, ["logit_lens"], site_names)


def test_a_task_without_weight_is_held_out_and_one_that_is_held_out_has_none() -> None:
    tasks = make_tasks({"logit_lens": {}, "attention": {}, "layer_skip": {}})
    weightless = MixtureConfig(tasks={"attention": 0.0}, kinds={"layer_skip": {"gained": 0.0}})
    assert HoldoutConfig(layers=[3]).with_weightless(weightless, tasks) == HoldoutConfig(
        tasks=["attention", "layer_skip"], layers=[3]
    )
    assert HoldoutConfig(tasks=["attention"]).with_weightless(weightless, tasks).tasks == ["attention", "layer_skip"]
    weighed = MixtureConfig(tasks={"attention": 2.0})
    with pytest.raises(ValueError, match=r"mixture.tasks.attention=2.0 is for a task that holdout.tasks=.* leaves out"):
        HoldoutConfig(tasks=["attention"]).with_weightless(weighed, tasks)
    assert not HoldoutConfig().with_weightless(weighed, tasks).tasks
