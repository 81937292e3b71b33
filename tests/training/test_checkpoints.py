"""The folder of checkpoints: what counts as one, and whose training goes on in it."""

from pathlib import Path
from typing import Any

import pytest

from diff_oracle.training.checkpoints import Checkpoints

SETTINGS: dict[str, Any] = {"config": {"seed": 0, "training": {"steps": 8, "learning_rate": 5e-3}, "sites": ["L1"]}}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.claim({**SETTINGS, "dataset": "tiny-0"})
    return checkpoints


def write(checkpoints: Checkpoints, step: int) -> None:
    (checkpoints.partial / f"checkpoint-{step}").mkdir(parents=True)


def test_one_that_is_being_written_is_none(checkpoints: Checkpoints) -> None:
    for step in (2, 4, 10):
        write(checkpoints, step)
        assert step not in checkpoints.steps()
        checkpoints.add(step)
    write(checkpoints, 12)
    assert checkpoints.steps() == [2, 4, 10]
    assert checkpoints.last() == checkpoints.path(10)
    checkpoints.keep({4, 10})
    assert checkpoints.steps() == [4, 10]
    checkpoints.tidy_up()
    assert not checkpoints.partial.exists()
    checkpoints.delete()
    assert list(checkpoints.folder.parent.iterdir()) == []
    assert checkpoints.last() is None and checkpoints.settings() == {}


def test_a_finished_training_that_was_killed_while_it_tidied_up_is_finished(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(checkpoints, 2)
    checkpoints.add(2)

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.delete()
    assert checkpoints.last() is None
    checkpoints.tidy_up()
    assert list(checkpoints.folder.parent.iterdir()) == []


def test_a_training_with_other_settings_is_refused(checkpoints: Checkpoints) -> None:
    other = {"config": {"seed": 0, "training": {"steps": 8, "learning_rate": 1e-3}, "sites": ["L2"], "new": None}}
    checkpoints.refuse_others(other)  # nothing to lose yet
    write(checkpoints, 2)
    checkpoints.add(2)
    checkpoints.refuse_others(SETTINGS)
    checkpoints.refuse_others({**SETTINGS, "dataset": "tiny-0"})
    with pytest.raises(ValueError, match="dataset tiny-0 "):
        checkpoints.refuse_others({**SETTINGS, "dataset": "tiny-1"})
    with pytest.raises(ValueError) as error:
        checkpoints.refuse_others(other)
    said = str(error.value)
    assert "config.training.learning_rate 0.005 (now 0.001)" in said
    assert "config.sites ['L1'] (now ['L2'])" in said
    assert "config.new absent (now None)" in said
    assert "config.seed" not in said
    assert f"choose another run_dir=, or delete {checkpoints.folder}" in said
