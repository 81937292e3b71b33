"""What a score's lines say about each other."""

import numpy as np
import pytest

from diff_oracle.evaluation.metrics import (
    MIN_GROUP_DOCS,
    EvaluationConfig,
    Result,
    _summarise,
    asked_rows,
    selection_metric,
)
from diff_oracle.records import Record
from diff_oracle.tasks import Question
from diff_oracle.tasks.attention import Attention
from tests.tasks.made import VOCABULARY, attention, make_record, make_rows

CONTROLS = ("matched", "shuffled", "site_prior")


def summarised(num_docs: int = 24) -> tuple[list[Result], dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Results, scores, which rows had held-out wordings, and each row's site: six rows a document, the first rare."""
    rng = np.random.default_rng(0)
    sites = np.array(
        ["L0H1" if doc < MIN_GROUP_DOCS - 1 and i == 0 else "L1" for doc in range(num_docs) for i in range(6)]
    )
    records = [
        Record(f"doc{i // 6}", str(site), 8, (1,), np.ones(2, np.float32), np.ones(2, np.float32), {})
        for i, site in enumerate(sites)
    ]
    heldout = np.arange(len(sites)) % 3 == 2
    questions = [Question("logit_lens", "promoted", "heldout" if h else "seen", ("?",), (1,)) for h in heldout]
    scores = {control: rng.random(len(sites)) for control in CONTROLS}
    return _summarise("logit_lens", "promoted", "test", records, questions, scores, 300, 0), scores, heldout, sites


def test_a_paired_difference_is_the_difference_of_the_means_on_the_same_rows() -> None:
    results, scores, heldout, _ = summarised()
    by_key = {(r.question, r.site_group, r.control): r for r in results}
    for question, mask in (("promoted", ~heldout), ("promoted, held-out wording", heldout)):
        lines = [r for r in results if r.question == question and r.site_group == "all"]
        assert {(r.n, r.n_docs) for r in lines} == {(mask.sum(), 24)}
        assert [r.control for r in lines] == [
            "matched", "shuffled", "matched - shuffled", "site_prior", "matched - site_prior",
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


def test_few_documents_in_all_still_give_numbers() -> None:
    results, *_ = summarised(num_docs=3)
    assert {r.site_group for r in results} == {"all"}
    assert all(np.isfinite([r.value, r.ci_low, r.ci_high]).all() for r in results)


def test_the_selection_metric_is_the_mean_gap_to_shuffled() -> None:
    scores = {"select/t/a/matched": 0.9, "select/t/a/shuffled": 0.5, "select/t/b/matched": 0.4}
    assert selection_metric({**scores, "select/t/b/shuffled": 0.4}) == pytest.approx(0.2)


def test_every_kind_is_asked_of_rows_that_have_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    layer = make_record(attention([1, 2], [501, 502], [0.8, 0.2]))
    sink = make_record(attention([1], [501], [0.01], sink=0.98))
    mlp = make_record(attention([], [], [], sink=None), site="L1.mlp")
    task = Attention()
    task.fit(make_rows([layer, sink, mlp], "attention"), VOCABULARY)
    records = make_rows([layer, mlp, sink, mlp] * 5, "attention", per_document=2)
    drawn = {kind: (rows, partners) for _, kind, rows, partners in asked_rows(records, [task], 20, seed=0)}
    assert {kind: len(rows) for kind, (rows, _) in drawn.items()} == {
        "attended": 10, "yes_no": 5, "choice": 5, "distance": 5,
    }  # fmt: skip
    for kind, (rows, partners) in drawn.items():
        assert all(kind in task.kinds_for(row) for row in rows)
        assert all(
            row.site == partner.site and row.doc_id != partner.doc_id
            for row, partner in zip(rows, partners, strict=True)
        )
    sinks = make_rows([sink, mlp] * 4, "attention", per_document=2)
    assert [kind for _, kind, *_ in asked_rows(sinks, [task], 20, seed=0)] == ["attended"]
    assert "no row can be asked attention/choice: it is left out" in caplog.text
    with pytest.raises(ValueError, match="none of 4 rows can be asked about attention"):
        next(asked_rows(make_rows([mlp] * 4, "attention"), [task], 20, seed=0))


@pytest.mark.parametrize("name", ["num_rows", "curve_rows", "selection_rows", "batch_size", "resamples"])
def test_nothing_asked_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"evaluation.{name} must be at least 1, got 0"):
        EvaluationConfig(**{name: 0})


def test_an_unknown_control_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown control 'noise': choose from matched, shuffled"):
        EvaluationConfig(controls=["noise"])
