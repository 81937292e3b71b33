"""Rows are asked what they can answer, and the selection metric is a gap."""

import numpy as np
import pytest

from diff_oracle.evaluation.metrics import (
    EvaluationConfig,
    asked_rows,
    mean_score,
    selection_metric,
)
from diff_oracle.tasks.attention import Attention
from tests.tasks.made import VOCABULARY, attention, make_record, make_rows


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


@pytest.mark.parametrize("name", ["num_rows", "curve_rows", "selection_rows", "batch_size", "resamples", "probe_rows"])
def test_nothing_asked_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"evaluation.{name} must be at least 1, got 0"):
        EvaluationConfig(**{name: 0})


def test_an_unknown_control_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown control 'noise': choose from matched, shuffled"):
        EvaluationConfig(controls=["noise"])
