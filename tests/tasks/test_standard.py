"""Standard questions, which explaining asks: the tasks' own, without training rows."""

from dataclasses import replace

import numpy as np
import pytest

from diff_oracle.tasks import attention, layer_skip, logit_lens, make_tasks
from diff_oracle.tasks.base import Standard
from tests.tasks.made import VOCABULARY, make_record, make_rows, mixed_records

PHRASINGS = {"logit_lens": logit_lens.PHRASINGS, "attention": attention.PHRASINGS, "layer_skip": layer_skip.PHRASINGS}
STANDARD = {
    "logit_lens": ("promoted", "suppressed"),
    "attention": ("attended", "distance"),
    "layer_skip": ("gained", "lost", "size"),
}


@pytest.mark.parametrize("name", STANDARD)
def test_a_task_that_knows_no_training_rows_asks_what_a_fitted_one_does(name: str) -> None:
    records = mixed_records(120)
    (fresh,), (fitted,) = make_tasks({name: {}}), make_tasks({name: {}})
    fitted.fit(make_rows(records, *STANDARD), VOCABULARY)
    assert isinstance(fresh, Standard)
    asked = 0
    for record in records:
        found = {question.kind: question for question in fresh.standard_questions(record, VOCABULARY)}
        assert tuple(found) == tuple(kind for kind in STANDARD[name] if kind in fitted.kinds_for(record))
        for kind, question in found.items():
            theirs = fitted.question(record, kind, np.random.default_rng(0))
            assert replace(theirs, text=question.text) == question
            assert question.text[0] in PHRASINGS[name][kind]["seen"]
        asked += len(found)
    assert asked > len(records)


@pytest.mark.parametrize("name", STANDARD)
def test_a_record_without_the_labels_is_refused(name: str) -> None:
    (task,) = make_tasks({name: {}})
    assert isinstance(task, Standard)
    with pytest.raises(ValueError, match=rf"\+task={name}"):
        task.standard_questions(make_record({}), VOCABULARY)
