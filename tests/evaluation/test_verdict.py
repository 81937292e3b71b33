"""An oracle has read the diff only where it is above every control."""

import pytest

from diff_oracle.evaluation.results import MIN_DOCS
from diff_oracle.evaluation.verdict import Part, judged, split_parts
from tests.evaluation.made import Rows, make_row, make_rows


def part(rows: Rows) -> Part:
    (only,) = split_parts(rows)
    return only


def without(rows: Rows, control: str) -> Rows:
    return [row for row in rows if row["control"] != control]


ABOVE = {"matched": 0.8, "shuffled": 0.3, "site_prior": 0.5, "random": 0.1}


@pytest.mark.parametrize(
    ("rows", "verdict", "reason"),
    [
        (make_rows(ABOVE), "read from the diff", "above all 3 controls"),
        (make_rows({"matched": 0.8, "shuffled": 0.3}), "read from the diff", "above shuffled alone"),
        (make_rows({"matched": 0.8, "shuffled": 0.8}), "not shown", "not above shuffled alone"),
        (make_rows(ABOVE | {"random": 0.78}), "not shown", "not above random (1 of 3 controls)"),
        (make_rows(ABOVE | {"shuffled": 0.9, "none": 0.79}), "not shown", "not above shuffled, none (2 of 4 controls)"),
        (make_rows(ABOVE, width=0.62), "not shown", "not above site_prior (1 of 3 controls)"),  # 0.3 ± 0.31 holds zero
        (make_rows(ABOVE, width=9.0), "not shown", "above none of 3 controls"),
        (without(make_rows(ABOVE), "matched - random"), "not shown", "not above random (1 of 3 controls)"),
        (make_rows({"matched": 0.8}), "not shown", "no control to decide by"),
        (make_rows(ABOVE | {"linear_probe": 0.95}), "read from the diff", "above all 3 controls"),
        (make_rows({"matched": 0.8, "linear_probe": 0.1}), "not shown", "no control to decide by"),
    ],
)
def test_verdict(rows: Rows, verdict: str, reason: str) -> None:
    assert (part(rows).verdict, part(rows).reason) == (verdict, reason)


def test_a_control_that_could_not_be_asked_decides_nothing_and_is_named() -> None:
    absent = make_row("wrong_site", 0.0, n=0, n_docs=0) | dict.fromkeys(("value", "ci_low", "ci_high"))
    found = part([*make_rows(ABOVE), absent])
    assert (found.verdict, found.reason) == ("read from the diff", "above all 3 controls; not asked: wrong_site")
    assert found.hardest == "site_prior" and "wrong_site" not in found.scores


@pytest.mark.parametrize("value", [0.9, 0.1])
def test_few_documents_decide_neither_for_nor_against(value: float) -> None:
    rows = make_rows(ABOVE | {"same_document": value})
    for row in rows:
        row["n_docs"] = MIN_DOCS - 1 if "same_document" in row["control"] else MIN_DOCS
    assert part(rows).reason == "above all 3 controls; asked of fewer than 10 documents: same_document"
    assert part(rows).hardest == "site_prior"
    few = part([row | {"n_docs": MIN_DOCS - 1} for row in rows])
    assert (few.verdict, few.hardest) == ("not shown", None)
    assert few.reason.startswith("no control to decide by; asked of fewer than 10 documents: shuffled, site_prior")


def test_the_hardest_control_scores_highest_and_is_no_yardstick() -> None:
    assert part(make_rows(ABOVE | {"linear_probe": 0.95})).hardest == "site_prior"
    assert part(make_rows({"matched": 0.8})).hardest is None


@pytest.mark.parametrize(("task", "verdict"), [("logit_lens", "not shown"), ("attention", "read from the diff")])
def test_a_flipped_sign_is_a_control_only_where_it_has_another_answer(task: str, verdict: str) -> None:
    (part,) = split_parts(make_rows({"matched": 0.8, "shuffled": 0.3, "sign_flipped": 0.8}, task=task))
    assert part.verdict == verdict


def test_on_other_rows_the_hardest_control_is_the_one_with_the_smallest_gap() -> None:
    rows = make_rows({"matched": 0.8, "shuffled": 0.5})
    # Asked on fewer rows, where matched scores 0.6: lower than shuffled, but closer to matched.
    rows += [make_row("wrong_site", 0.45, n=9), make_row("matched - wrong_site", 0.15, n=9)]
    assert part(rows).hardest == "wrong_site"


def test_questions_sites_tasks_and_splits_are_apart_and_in_order() -> None:
    others = [{}, {"question": "choice"}, {"site_group": "heads"}, {"task": "attention"}, {"split": "select"}]
    parts = split_parts([row for other in others for row in make_rows({"matched": 0.5, "none": 0.4}, **other)])
    assert [(p.task, p.question, p.site_group, p.split) for p in parts] == [
        ("logit_lens", "promoted", "all", "test"),
        ("logit_lens", "choice", "all", "test"),
        ("logit_lens", "promoted", "heads", "test"),
        ("attention", "promoted", "all", "test"),
        ("logit_lens", "promoted", "all", "select"),
    ]
    assert all(list(p.scores) == ["matched", "none"] and list(p.gaps) == ["none"] for p in parts)
    assert [p.site_group for p in judged(parts)] == ["all"] * 4


def test_held_out_wordings_and_sites_are_known() -> None:
    others = [{}, {"question": "promoted, held-out wording"}, {"site_group": "held-out heads"}, {"site_group": "heads"}]
    parts = [part(make_rows({"matched": 0.5}, **other)) for other in others]
    assert [p.held_out for p in parts] == [False, True, True, False]


def test_without_matched_there_is_nothing_to_judge() -> None:
    rows = [make_row("shuffled", 0.3)]
    assert judged(split_parts(rows)) == []
    assert part(rows).hardest is None
