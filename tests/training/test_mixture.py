"""What is asked has the shares that the mixture says, and one that cannot be is refused."""

from collections.abc import Mapping

import pytest

from diff_oracle.tasks import make_tasks
from diff_oracle.training.mixture import MixtureConfig, shares

TASKS = make_tasks({"logit_lens": {}, "layer_skip": {}})


def test_a_task_s_kinds_have_its_weight_together() -> None:
    found = shares(MixtureConfig(tasks={"layer_skip": 3.0}), TASKS)
    assert sum(found["logit_lens"].values()) == pytest.approx(1)
    assert sum(found["layer_skip"].values()) == pytest.approx(3)
    assert found["logit_lens"] == {kind: pytest.approx(0.25) for kind in TASKS[0].kinds}


def test_kinds_can_be_weighed_and_left_out() -> None:
    found = shares(MixtureConfig(kinds={"logit_lens": {"promoted": 3.0, "choice": 1.0}}), TASKS)["logit_lens"]
    assert found == {"promoted": 0.75, "suppressed": 0.0, "yes_no": 0.0, "choice": 0.25}
    assert not any(shares(MixtureConfig(tasks={"logit_lens": 0.0}), TASKS)["logit_lens"].values())


def test_what_is_said_of_some_tasks() -> None:
    mixture = MixtureConfig(tasks={"logit_lens": 2.0, "layer_skip": 0.0}, kinds={"layer_skip": {"lost": 1.0}}, none=0.2)
    assert mixture.of(["logit_lens"]) == MixtureConfig(tasks={"logit_lens": 2.0}, none=0.2)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"questions_per_diff": 0}, "mixture.questions_per_diff must be at least 1, got 0"),
        ({"lists_first": 1.5}, r"mixture.lists_first must be 0…1, got 1.5"),
        ({"lists_first": 0.5, "one_list_first": 0.6}, r"mixture.one_list_first must be 0…lists_first = 0.5, got 0.6"),
        ({"text_only": 0.7, "none": 0.3}, "below 1 together"),
        ({"flipped": -0.1}, r"mixture.flipped must be 0…1, got -0.1"),
        ({"tasks": {"logit_lens": -1.0}}, "must be at least 0, got -1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting: Mapping[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MixtureConfig(**setting)  # type: ignore[arg-type]


def test_what_does_not_fit_the_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"names task 'attention', which is not asked: add \+task=attention"):
        shares(MixtureConfig(tasks={"attention": 1.0}), TASKS)
    with pytest.raises(ValueError, match=r"unknown kind mixture.kinds.logit_lens.raised: choose from promoted"):
        shares(MixtureConfig(kinds={"logit_lens": {"raised": 1.0}}), TASKS)
    with pytest.raises(ValueError, match="trains nothing"):
        shares(MixtureConfig(tasks={"logit_lens": 0.0, "layer_skip": 0.0}), TASKS)
