"""Every control's prompt is what its name says, on the same rows."""

import datasets
import numpy as np
import pytest

from diff_oracle.evaluation.controls import VECTOR_CONTROLS, control_prompts, draw_rows
from diff_oracle.oracle.prompt import Prompt, PromptBuilder, PromptConfig
from diff_oracle.records import Record, RecordSet
from diff_oracle.subject.loading import SubjectConfig, load_hf_model
from diff_oracle.tasks import Question, Vocabulary

WIDTH = 16
QUESTIONS = [Question("logit_lens", "promoted", "seen", (f"Which tokens go up? {i}",), (300,)) for i in range(4)]


@pytest.fixture(scope="module")
def prompts() -> PromptBuilder:
    loaded = load_hf_model(SubjectConfig())
    return PromptBuilder(Vocabulary(loaded.tokenizer, loaded.identity.vocab_size), PromptConfig(), 2, WIDTH)


def record(index: int) -> Record:
    rng = np.random.default_rng(index)
    diff, before = rng.standard_normal((2, WIDTH)).astype(np.float32)
    return Record(f"doc{index}", f"L{index}", 8, (500, 501, 502 + index), diff, before, {})


RECORDS, PARTNERS = [record(i) for i in range(4)], [record(i + 10) for i in range(4)]


def row_set(doc_ids: list[str], sites: list[str]) -> RecordSet:
    return RecordSet(datasets.Dataset.from_dict({"doc_id": doc_ids, "site": sites}))


def test_a_partner_is_of_the_same_site_and_of_another_document() -> None:
    rng = np.random.default_rng(0)
    doc_ids = [f"doc{i}" for i in rng.integers(8, size=200)]
    sites = [f"L{i}" for i in rng.integers(5, size=200)]
    rows, partners = draw_rows(row_set(doc_ids, sites), 120, seed=0)
    assert len(rows) == len(set(rows)) == 120
    for row, partner in zip(rows, partners, strict=True):
        assert sites[row] == sites[partner]
        assert doc_ids[row] != doc_ids[partner]


def test_rows_without_a_partner_are_left_out_and_none_at_all_is_an_error() -> None:
    rows, partners = draw_rows(row_set(["a", "b", "c", "c"], ["L0", "L0", "L1", "L1"]), 10, seed=0)
    assert sorted(rows) == [0, 1]
    assert [rows[0], partners[0]] == [partners[1], rows[1]]
    with pytest.raises(ValueError, match="no site was seen in two documents"):
        draw_rows(row_set(["a", "a", "b"], ["L0", "L0", "L1"]), 10, seed=0)


def test_rows_are_drawn_among_those_that_can_be_asked_and_partners_among_all() -> None:
    doc_ids, sites = [f"doc{i}" for i in range(40)], ["L0", "L1"] * 20
    records, every = row_set(doc_ids, sites), np.ones(40, dtype=bool)
    for left, right in zip(draw_rows(records, 9, seed=0), draw_rows(records, 9, seed=0, askable=every), strict=True):
        np.testing.assert_array_equal(left, right)
    askable = np.arange(40) < 6
    rows, partners = draw_rows(records, 40, seed=0, askable=askable)
    assert sorted(rows) == list(range(6))
    assert any(partner >= 6 for partner in partners)
    assert all(sites[row] == sites[partner] for row, partner in zip(rows, partners, strict=True))
    rows, partners = draw_rows(records, 40, seed=0, askable=~every)
    assert len(rows) == len(partners) == 0


def asked(prompts: PromptBuilder, control: str, seed: int = 0) -> list[Prompt]:
    return control_prompts(control, prompts, RECORDS, PARTNERS, QUESTIONS, seed)


def test_vectors_are_what_the_controls_are_called(prompts: PromptBuilder) -> None:
    diffs = {control: [p.diff for p in asked(prompts, control)] for control in VECTOR_CONTROLS}
    for i, (own, partner) in enumerate(zip(RECORDS, PARTNERS, strict=True)):
        np.testing.assert_array_equal(diffs["matched"][i], own.diff)
        np.testing.assert_array_equal(diffs["shuffled"][i], partner.diff)
        np.testing.assert_array_equal(diffs["none"][i], np.zeros(WIDTH))
    noise = np.stack(diffs["random"])
    assert not any(np.allclose(row, r.diff) for row in noise for r in RECORDS + PARTNERS)
    assert len(np.unique(noise, axis=0)) == len(RECORDS)
    np.testing.assert_array_equal(noise, np.stack([p.diff for p in asked(prompts, "random")]))
    assert not np.allclose(noise, np.stack([p.diff for p in asked(prompts, "random", seed=1)]))


def test_only_the_vector_differs_between_vector_controls(prompts: PromptBuilder) -> None:
    matched = [p.ids for p in asked(prompts, "matched")]
    assert all(ids.count(prompts.slot_id) == 2 for ids in matched)
    for control in VECTOR_CONTROLS:
        assert [p.ids for p in asked(prompts, control)] == matched


def test_text_only_shows_the_row_s_own_text_and_no_slot(prompts: PromptBuilder) -> None:
    for prompt, own, question in zip(asked(prompts, "text_only"), RECORDS, QUESTIONS, strict=True):
        assert prompt.diff is None
        assert prompts.slot_id not in prompt.ids
        start = prompt.ids.index(own.token_ids[0])
        assert prompt.ids[start : start + 3] == list(own.token_ids)
        assert question.text[0] in prompts.vocabulary.tokenizer.decode(prompt.ids)
