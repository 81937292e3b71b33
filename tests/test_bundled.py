"""The oracle that comes with the package: does it say what is true, and does that come from the diff?"""

import json
from pathlib import Path

import numpy as np
import pytest

from diff_oracle import Oracle, Subject, diffs_of_text
from diff_oracle.explain import explain
from diff_oracle.nla.pair import QUESTION, parsed_claims
from diff_oracle.oracle.reading import Reading
from diff_oracle.oracle.storage import TINY_RUN
from scripts.bundle_oracle import bundle
from tests.nla.made_ladder import make_ladder

# Written for this test, so that neither the model nor the oracle has seen it.
TEXT = (
    "When the garden gate was left open, the function returned a list of values and the caller closed the file again."
)


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle.from_pretrained("tiny")


def test_most_of_what_it_claims_of_heads_is_true_but_not_of_another_diff(oracle: Oracle) -> None:
    subject = Subject.load(oracle.base)
    found = explain(subject, oracle, TEXT, sites="heads", positions=-1, tasks=[], free_question=QUESTION[0])
    claims = [claim for item in found.items for claim in item.explanation_claims]
    assert len(claims) > 300
    assert np.mean([claim.right for claim in claims]) > 0.6

    diffs = diffs_of_text(subject, TEXT, ["heads"], [-1])
    texts = Reading(oracle, diffs).generate(range(len(diffs)), QUESTION, 80)
    assert texts == [item.explanation for item in found.items]
    said = [set(parsed_claims(text, oracle)) for text in texts]
    shared = [len(said[i] & said[i - 7]) / max(1, len(said[i])) for i in range(len(said))]
    assert np.mean(shared) < 0.4


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    with pytest.raises(ValueError, match="tiny holds no oracle"):
        Oracle.from_pretrained("tiny")


def test_it_says_where_it_comes_from_and_a_run_can_take_its_place(oracle: Oracle, tmp_path: Path) -> None:
    about = json.loads((TINY_RUN / "run.json").read_text())
    assert {"command", "commit", "dataset", "named", "test"} <= about.keys() and "/" not in about["dataset"]
    run = make_ladder(tmp_path / "run")
    oracle.save(run / "nla" / "av")
    bundle(run, tmp_path / "bundled")
    assert Oracle.from_pretrained(tmp_path / "bundled" / "oracle").config == oracle.config
    assert 'from_pretrained("tiny")' in (tmp_path / "bundled" / "oracle" / "README.md").read_text()
    assert json.loads((tmp_path / "bundled" / "run.json").read_text())["test"]["true_claims all"] > 0
