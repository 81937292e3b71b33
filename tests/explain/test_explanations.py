import json
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest

from diff_oracle.explain.explanations import Claim, Explanations
from tests.explain.made import HOSTILE, make_explanation, make_explanations, make_rebuilt, make_text

MADE = make_explanations()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    MADE.save(tmp_path)
    assert Explanations.load(tmp_path) == MADE
    assert Explanations.load(tmp_path / "explanations.json") == MADE
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "explanations.parquet"), MADE.to_frame())


def test_json_is_the_fields_and_the_sums() -> None:
    content = json.loads(json.dumps(MADE.to_dict()))
    assert content == json.loads(json.dumps(asdict(MADE))) | {
        "num_claims": MADE.num_claims,
        "share_right": MADE.share_right,
        "rebuilt": {},
    }


@pytest.mark.parametrize("text", ["{}", '{"subject": "a"', "[]", "\N{REPLACEMENT CHARACTER}"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "explanations.json").write_text(text)
    with pytest.raises(ValueError, match="holds no explanations"):
        Explanations.load(tmp_path)


def test_claims_are_counted_one_by_one() -> None:
    item = make_explanation(0, 2, "L0H1")
    # Two lists of three tokens, one of them wrong; a wrong size; a right token read; an explanation half right.
    assert [claim.right for claim in item.claims] == [True, True, False] * 2 + [False, True, True, False]
    few = replace(MADE, items=[item, replace(item, answers=[], explanation_claims=[Claim("a", True)])])
    assert (few.num_claims, few.share_right) == (11, 7 / 11)
    none = replace(MADE, items=[])
    assert none.share_right != none.share_right
    assert none.to_dict()["share_right"] is None


def test_ranks_are_by_size_whatever_the_sign() -> None:
    values = {"a": (0.1, -3.0, 0.2), "b": (0.3, 2.0, 0.1), "c": (0.2, 1.0, 0.3)}
    items = [
        make_explanation(0, 2, "L0", next_token=name, relative_size=size, direct_effect=direct, skip_kl=kl)
        for name, (size, direct, kl) in values.items()
    ]
    made = replace(MADE, items=items)
    ranks = {by: "".join(item.next_token for item in made.ranked(by)) for by in ("size", "direct_effect", "skip_kl")}
    assert ranks == {"size": "bca", "direct_effect": "abc", "skip_kl": "cab"}
    with pytest.raises(ValueError, match="cannot rank by 'luck': choose from size, direct_effect, skip_kl"):
        made.ranked("luck")


def test_the_frame_has_a_row_for_each_question() -> None:
    frame = MADE.to_frame()
    assert len(frame) == sum(len(item.answers) + 1 for item in MADE.items)
    rows = frame[(frame.text == 1) & (frame.position == 7)]
    assert set(rows.token) == {"😀"}
    assert list(rows.question_kind) == ["promoted", "suppressed", "size", "attended", "free"]
    assert rows.score.tolist() == [2 / 3, 2 / 3, 0.0, 1.0, 0.5]


def test_a_notebook_s_table_takes_text_as_data() -> None:
    item = make_explanation(0, 1, "L0", explanation="<img src=x onerror=alert(1)>")
    shown = replace(MADE, texts=[make_text(HOSTILE)], items=[item])._repr_html_()
    assert "&lt;/script&gt;" in shown and "&lt;img src=x" in shown
    assert "<script" not in shown and "<img" not in shown
    assert "60% of 10 claims are right" in shown
    assert "no claims" in replace(MADE, items=[])._repr_html_()


def test_what_a_pair_rebuilt_is_kept_counted_and_shown(tmp_path: Path) -> None:
    items = [
        make_explanation(0, 2, "L0", rebuilt=make_rebuilt(0.5)),
        make_explanation(0, 5, "L1", rebuilt=make_rebuilt(-0.25)),
    ]
    made = replace(MADE, items=items)
    made.save(tmp_path)
    assert Explanations.load(tmp_path) == made
    means = {"cosine": 0.6, "share": 0.325, "without_words": 0.2, "carried": 0.125}
    assert made.rebuilt == pytest.approx(means)
    assert json.loads((tmp_path / "explanations.json").read_text())["rebuilt"] == made.rebuilt
    frame = pd.read_parquet(tmp_path / "explanations.parquet")
    assert frame[frame.question_kind == "free"].carried.tolist() == [0.5, -0.25]
    assert frame[frame.question_kind != "free"].carried.isna().all()  # a mean of the column is one of explanations
    assert frame.share.mean() == pytest.approx(0.325)
    shown = made._repr_html_()
    assert "the words carried 12% of a diff" in shown and "<td>-0.25</td>" in shown
    assert "carried" not in MADE._repr_html_() and "carried" not in MADE.to_frame()
