"""Rows are asked what they can answer, with every control that is there, and the selection metric is a gap."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diff_oracle.evaluation import metrics
from diff_oracle.evaluation.metrics import (
    EvaluationConfig,
    Evaluator,
    asked_rows,
    mean_score,
    selection_metric,
)
from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.oracle.injection import InjectionConfig
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import PromptConfig
from diff_oracle.oracle.storage import OracleConfig
from diff_oracle.records import DiffDataset
from diff_oracle.subject.loading import SubjectConfig
from diff_oracle.tasks.attention import Attention
from diff_oracle.tasks.logit_lens import LogitLens, LogitLensConfig
from diff_oracle.training.holdout import HoldoutConfig
from tests.tasks.made import VOCABULARY, attention, make_record, make_rows, mixed_records


def test_the_selection_metric_is_the_mean_gap_to_shuffled() -> None:
    scores = {"select/t/a/matched": 0.9, "select/t/a/shuffled": 0.5, "select/t/b/matched": 0.4}
    assert selection_metric({**scores, "select/t/b/shuffled": 0.4}) == pytest.approx(0.2)
    assert mean_score({**scores, "select/t/b/shuffled": 0.4}) == pytest.approx(0.65)


def test_every_kind_is_asked_of_rows_that_have_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    layer = make_record(attention([1, 2], [501, 502], [0.8, 0.2]))
    sink = make_record(attention([1], [501], [0.01], sink=0.98))
    mlp = make_record(attention([], [], [], sink=None), site="L1.mlp")
    task = Attention()
    task.fit(make_rows([layer, sink, mlp], "attention"), VOCABULARY)
    records = make_rows([layer, mlp, sink, mlp] * 5, "attention", per_document=2)
    drawn = {kind: rows for _, kind, rows in asked_rows(records, [task], 20, seed=0)}
    assert set(drawn) >= {"attended", "distance"}
    assert (len(drawn["attended"]), len(drawn["distance"])) == (10, 5)
    for kind, rows in drawn.items():
        for row in rows:
            assert kind in task.kinds_for(row.record)
            assert row.partners["shuffled"].site == row.record.site
            assert row.partners["shuffled"].doc_id != row.record.doc_id
    layers = np.array(records.sites) == "L1"
    assert all(row.record.site == "L1" for _, _, rows in asked_rows(records, [task], 20, 0, layers) for row in rows)
    sinks = make_rows([sink, mlp] * 4, "attention", per_document=2)
    assert [kind for _, kind, *_ in asked_rows(sinks, [task], 20, seed=0)] == ["attended"]
    assert "no row can be asked attention/choice: it is left out" in caplog.text
    with pytest.raises(ValueError, match="none of 8 rows can be asked about attention"):
        next(asked_rows(make_rows([mlp] * 8, "attention"), [task], 20, seed=0))
    alone = make_rows([mlp, mlp, layer], "attention", per_document=1)  # no other document has the only row with a label
    with pytest.raises(ValueError, match="none of 3 rows can be asked about attention"):
        next(asked_rows(alone, [task], 20, seed=0))


@pytest.mark.parametrize("name", ["num_rows", "curve_rows", "selection_rows", "batch_size", "resamples", "probe_rows"])
def test_nothing_asked_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"evaluation.{name} must be at least 1, got 0"):
        EvaluationConfig(**{name: 0})


def test_an_unknown_control_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown control 'noise': choose from matched, shuffled"):
        EvaluationConfig(controls=["noise"])


@pytest.fixture
def evaluator(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Evaluator]:
    """Of made-up rows, no two of which share a context, and an oracle that always says the same."""
    monkeypatch.setattr(metrics, "answer", lambda oracle, prompts, questions, batch_size: ["?"] * len(prompts))
    oracle = Oracle.create(SubjectConfig(), OracleConfig(LoraOptions(rank=1), PromptConfig(), InjectionConfig()))
    width = oracle.identity.d_model
    splits = {
        split: make_rows(mixed_records(72, seed), "logit_lens", width=width)
        for seed, split in enumerate(("train", "select", "test"))
    }
    dataset, task = DiffDataset(Path("made"), {"counts": {}}, splits), LogitLens(LogitLensConfig(k=8, num_asked=3))
    task.fit(dataset.split("train"), VOCABULARY)

    def build(num_rows: int = 30, **held_out: object) -> Evaluator:
        asked = EvaluationConfig(num_rows=num_rows, resamples=20)
        return Evaluator(oracle, dataset, [task], asked, 0, HoldoutConfig(**held_out))  # type: ignore[arg-type]

    return build


def test_a_control_without_partners_is_told_and_one_that_is_none_of_the_task_is_not(
    evaluator: Callable[..., Evaluator],
) -> None:
    results = evaluator().evaluate("test")
    lines = {r.control: r for r in results if (r.question, r.site_group) == ("promoted", "all")}
    assert {control for control, line in lines.items() if line.n == 0} == {"wrong_site"}
    assert lines["wrong_site"].value is None and "matched - wrong_site" not in lines
    assert "recency" not in lines and lines["linear_probe"].n == lines["matched"].n > 0


def test_the_probe_is_not_asked_on_the_split_that_chose_it(
    evaluator: Callable[..., Evaluator], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        results = evaluator().evaluate("select")
    assert results and not any("linear_probe" in r.control for r in results)
    assert "no linear probe on split select" in caplog.text


def test_rows_that_no_line_would_report_are_refused_before_anything_is_asked(
    evaluator: Callable[..., Evaluator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, "_scores", lambda *given: pytest.fail("asked"))
    with pytest.raises(ValueError, match=r"nothing of split test can be reported: .* raise evaluation.num_rows=5"):
        evaluator(5, layers=[0, 1]).evaluate("test")
