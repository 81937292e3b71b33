"""What `evaluate` reads of a run, and what it says where that is not there."""

import json
from pathlib import Path

import pytest

from diff_oracle.evaluate import EvaluateConfig, _choose, run
from diff_oracle.tasks import make_tasks

CONFIG = {"tasks": {"logit_lens": {}}, "evaluation": {"num_rows": 3}, "holdout": {}, "seed": 0}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({key: value for key, value in CONFIG.items() if key != "holdout"}, "KeyError: 'holdout'"),
        (CONFIG | {"evaluation": {"rows": 3}}, "TypeError: .*unexpected keyword argument 'rows'"),
        (CONFIG | {"tasks": {"rhyme": {}}}, "ValueError: unknown task 'rhyme'"),
    ],
)
def test_a_run_of_another_version_is_refused_with_what_to_do(tmp_path: Path, config: dict, said: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"dataset": "somewhere", "config": config}))
    fix = "another version of diff_oracle wrote it: evaluate with that version, or train again"
    with pytest.raises(ValueError, match=f"run.json cannot be read: {said}.*{fix}"):
        run(EvaluateConfig(oracle=str(tmp_path), run_dir=str(tmp_path / "out")))


def test_of_the_runs_tasks_those_named_are_asked(tmp_path: Path) -> None:
    tasks = make_tasks({"logit_lens": {}, "attention": {}})
    assert _choose(["attention"], tasks) == [tasks[1]]
    assert _choose(["attention", "logit_lens", "attention"], tasks) == [tasks[1], tasks[0]]
    (tmp_path / "run.json").write_text(json.dumps({"dataset": "somewhere", "config": CONFIG}))
    for names, said in ((["logit_lens", "attention"], "no task attention:"), ([], r"no task \(none named\):")):
        with pytest.raises(ValueError, match=f"the run has {said} choose from logit_lens$"):
            run(EvaluateConfig(oracle=str(tmp_path), tasks=names, run_dir=str(tmp_path / "out")))


def test_a_pair_is_asked_no_tasks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tasks are asked of an oracle"):
        run(EvaluateConfig(nla=str(tmp_path), tasks=["logit_lens"], run_dir=str(tmp_path / "out")))
