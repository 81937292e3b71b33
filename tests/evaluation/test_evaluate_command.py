"""What `evaluate` reads of a run, and what it says where that is not there."""

import json
from pathlib import Path

import pytest

from diff_oracle.evaluate import EvaluateConfig, run

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
