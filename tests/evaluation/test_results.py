"""What a score's lines say about each other."""

import numpy as np
import pytest

from diff_oracle.evaluation.results import MIN_DOCS, Result, summarise
from diff_oracle.records import Record
from diff_oracle.tasks import Question
from diff_oracle.training.holdout import HoldoutConfig

CONTROLS = ("matched", "shuffled", "site_prior")


def summarised(
    num_docs: int = 24, missing: bool = False, absent: bool = False, **held_out: object
) -> tuple[list[Result], dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Results, scores, which rows had held-out wordings, and each row's site: six rows a document, the first rare."""
    rng = np.random.default_rng(0)
    sites = np.array(["L0H1" if doc < MIN_DOCS - 1 and i == 0 else "L1" for doc in range(num_docs) for i in range(6)])
    records = [
        Record(str(site), 8, (1,), np.ones(2, np.float32), np.ones(2, np.float32), f"doc{i // 6}", {})
        for i, site in enumerate(sites)
    ]
    heldout = np.arange(len(sites)) % 3 == 2
    questions = [Question("logit_lens", "promoted", "heldout" if h else "seen", ("?",), (1,)) for h in heldout]
    scores = {control: rng.random(len(sites)) for control in CONTROLS}
    if missing:
        scores["shuffled"][::2] = np.nan
    if absent:
        scores["same_document"] = np.full(len(sites), np.nan)
    found = summarise(records, questions, scores, "test", 300, 0, HoldoutConfig(**held_out))  # type: ignore[arg-type]
    return found, scores, heldout, sites


def test_a_paired_difference_is_the_difference_of_the_means_on_the_same_rows() -> None:
    results, scores, heldout, _ = summarised()
    by_key = {(r.question, r.site_group, r.control): r for r in results}
    for question, mask in (("promoted", ~heldout), ("promoted, held-out wording", heldout)):
        lines = [r for r in results if r.question == question and r.site_group == "all"]
        assert {(r.n, r.n_docs) for r in lines} == {(mask.sum(), 24)}
        assert [r.control for r in lines] == [
            "matched", "shuffled", "site_prior", "matched - shuffled", "matched - site_prior",
        ]  # fmt: skip
        for control in CONTROLS:
            assert by_key[question, "all", control].value == pytest.approx(scores[control][mask].mean())
        for control in CONTROLS[1:]:
            gap = by_key[question, "all", f"matched - {control}"]
            assert gap.value == pytest.approx((scores["matched"] - scores[control])[mask].mean())
            assert gap.ci_low < gap.value < gap.ci_high


def test_a_site_group_of_few_documents_has_no_line_but_its_rows_count() -> None:
    results, _, heldout, sites = summarised()
    assert {r.site_group for r in results} == {"all", "layers"}
    layer = next(r for r in results if r.site_group == "layers")
    assert layer.n == (~heldout & (sites == "L1")).sum()
    everything = next(r for r in results if r.site_group == "all")
    assert everything.n == (~heldout).sum()


def test_a_gap_is_over_the_rows_that_have_the_control() -> None:
    results, scores, heldout, _ = summarised(missing=True)
    there = ~heldout & ~np.isnan(scores["shuffled"])
    for control, mask in (("matched", ~heldout), ("shuffled", there), ("matched - shuffled", there)):
        (line,) = (r for r in results if (r.question, r.site_group, r.control) == ("promoted", "all", control))
        first, _, second = control.partition(" - ")
        values = scores[first] - (scores[second] if second else 0)
        assert (line.n, line.value) == (mask.sum(), pytest.approx(values[mask].mean()))


def test_a_control_that_no_row_can_be_asked_with_has_a_line_without_a_value() -> None:
    results, *_ = summarised(absent=True)
    lines = [r for r in results if r.control == "same_document"]
    assert {(r.question, r.site_group) for r in lines} == {(r.question, r.site_group) for r in results}
    assert {(r.value, r.ci_low, r.ci_high, r.n, r.n_docs) for r in lines} == {(None, None, None, 0, 0)}
    assert not any(r.control == "matched - same_document" for r in results)


def test_sites_held_out_of_training_have_lines_of_their_own() -> None:
    results, scores, heldout, sites = summarised(layers=[0])
    everything = next(r for r in results if r.site_group == "all" and r.question == "promoted")
    trained = ~heldout & (sites == "L1")
    assert (everything.n, everything.value) == (trained.sum(), pytest.approx(scores["matched"][trained].mean()))
    results, *_ = summarised(layers=[1])
    groups = {r.site_group for r in results}
    assert groups == {"all", "held-out layers"}


def test_a_task_that_was_held_out_says_so() -> None:
    results, *_ = summarised(tasks=["logit_lens"])
    assert {r.question for r in results} == {
        "promoted, held-out task", "promoted, held-out task, held-out wording",
    }  # fmt: skip


def test_few_documents_in_all_still_give_numbers() -> None:
    results, *_ = summarised(num_docs=3)
    assert {r.site_group for r in results} == {"all"}
    assert all(np.isfinite([r.value, r.ci_low, r.ci_high]).all() for r in results)
