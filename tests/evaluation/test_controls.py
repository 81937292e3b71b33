"""Every control's prompt is what its name says, on the same rows."""

import numpy as np
import pyarrow as pa
import pytest

from diff_oracle.evaluation.controls import (
    ORACLE_CONTROLS,
    PARTNER_CONTROLS,
    AskedRow,
    RowDrawer,
    control_prompts,
)
from diff_oracle.oracle.injection import InjectionConfig
from diff_oracle.oracle.prompt import Prompt, PromptBuilder, PromptConfig
from diff_oracle.records import Record, RecordSet
from diff_oracle.subject.loading import SubjectConfig, load_hf_model
from diff_oracle.subject.sites import DiffSite
from diff_oracle.tasks import Question, Vocabulary

WIDTH = 16
QUESTIONS = [Question("logit_lens", "promoted", "seen", (f"Which tokens go up? {i}",), (300,)) for i in range(4)]
SITES = ["L0", "L1", "L1H0", "L1.mlp", "L0:2"]


def builder(input: str = "diff") -> PromptBuilder:
    loaded = load_hf_model(SubjectConfig())
    vocabulary = Vocabulary(loaded.tokenizer, loaded.identity.vocab_size)
    return PromptBuilder(vocabulary, PromptConfig(), InjectionConfig(input=input), WIDTH)


@pytest.fixture(scope="module")
def prompts() -> PromptBuilder:
    return builder()


def record(index: int) -> Record:
    rng = np.random.default_rng(index)
    diff, before = rng.standard_normal((2, WIDTH)).astype(np.float32)
    return Record(f"L{index}", 8, (500, 501, 502 + index), diff, before, f"doc{index}", {})


ROWS = [AskedRow(record(i), {c: record(10 * n + i) for n, c in enumerate(PARTNER_CONTROLS, 1)}) for i in range(4)]


def row_set(doc_ids: list[str], sites: list[str], contexts: list[list[int]] | None = None) -> RecordSet:
    number = len(sites)
    vectors = np.random.default_rng(0).standard_normal((number, WIDTH)).astype(np.float32)
    columns = {
        "doc_id": doc_ids,
        "site": sites,
        "position": [8] * number,
        "token_ids": contexts or [[i] for i in range(number)],
        "diff": list(vectors),
        "before": list(vectors),
    }
    return RecordSet(pa.table(columns))


def test_partners_are_what_their_controls_are_called() -> None:
    rng = np.random.default_rng(0)
    doc_ids = [f"doc{i}" for i in rng.integers(8, size=300)]
    sites = [SITES[i] for i in rng.integers(len(SITES), size=300)]
    contexts = [[int(doc[3:]), int(i)] for doc, i in zip(doc_ids, rng.integers(6, size=300), strict=True)]
    rows = RowDrawer(row_set(doc_ids, sites, contexts), seed=0).draw(200)
    assert len({row.record.diff.tobytes() for row in rows}) == len(rows) == 200
    found = dict.fromkeys(PARTNER_CONTROLS, 0)
    for row in rows:
        for control, partner in row.partners.items():
            same = (partner.site == row.record.site, partner.doc_id == row.record.doc_id)
            assert (
                same == {"shuffled": (True, False), "wrong_site": (False, True), "same_document": (True, True)}[control]
            )
            if control == "wrong_site":
                assert partner.token_ids == row.record.token_ids
                assert not DiffSite.parse(partner.site).overlaps(DiffSite.parse(row.record.site))
            if control == "same_document":
                assert partner.token_ids != row.record.token_ids
            found[control] += 1
    assert found["shuffled"] == 200
    assert min(found.values()) > 50


def test_two_windows_of_a_document_at_the_same_position_are_two_contexts() -> None:
    records = row_set(["a", "a", "a", "b", "b"], ["L0", "L1", "L0", "L0", "L1"], [[1, 2], [1, 3], [1, 3], [4], [4]])
    by_vector = {row.record.diff.tobytes(): row for row in RowDrawer(records, 0).draw(9)}
    first, second, third = (by_vector[records[i].diff.tobytes()] for i in range(3))
    assert "wrong_site" not in first.partners
    assert np.array_equal(first.partners["same_document"].diff, third.record.diff)
    assert np.array_equal(second.partners["wrong_site"].diff, third.record.diff)


def test_rows_that_cannot_be_shuffled_are_left_out_and_none_at_all_is_an_error() -> None:
    rows = RowDrawer(row_set(["a", "b", "c", "c"], ["L0", "L0", "L1", "L1"]), 0).draw(10)
    assert sorted(row.record.doc_id for row in rows) == ["a", "b"]
    assert {row.partners["shuffled"].doc_id for row in rows} == {"a", "b"}
    with pytest.raises(ValueError, match="no site was seen in two documents"):
        RowDrawer(row_set(["a", "a", "b"], ["L0", "L0", "L1"]), 0)


def test_rows_are_drawn_among_those_that_can_be_asked_and_partners_among_all() -> None:
    doc_ids, sites = [f"doc{i}" for i in range(40)], ["L0", "L1"] * 20
    drawer, every = RowDrawer(row_set(doc_ids, sites), 0), np.ones(40, dtype=bool)

    def documents(rows: list[AskedRow]) -> list[str]:
        return [row.record.doc_id for row in rows]

    assert documents(drawer.draw(9)) == documents(drawer.draw(9, every)) == documents(drawer.draw(20))[:9]
    rows = drawer.draw(40, np.arange(40) < 6)
    assert sorted(documents(rows)) == [f"doc{i}" for i in range(6)]
    assert any(int(row.partners["shuffled"].doc_id[3:]) >= 6 for row in rows)
    assert drawer.draw(40, ~every) == []


def asked(prompts: PromptBuilder, control: str, seed: int = 0) -> list[Prompt]:
    return control_prompts(control, prompts, ROWS, QUESTIONS, seed)


def injected(prompts: PromptBuilder, control: str, seed: int = 0) -> np.ndarray:
    return np.stack([prompt.vectors for prompt in asked(prompts, control, seed)])


def test_vectors_are_what_the_controls_are_called(prompts: PromptBuilder) -> None:
    own = np.stack([[row.record.diff] for row in ROWS])
    np.testing.assert_array_equal(injected(prompts, "matched"), own)
    np.testing.assert_array_equal(injected(prompts, "sign_flipped"), -own)
    np.testing.assert_array_equal(injected(prompts, "none"), np.zeros_like(own))
    for control in PARTNER_CONTROLS:
        np.testing.assert_array_equal(injected(prompts, control)[:, 0], [row.partners[control].diff for row in ROWS])
    noise = injected(prompts, "random")
    assert np.abs(noise - own).min(axis=-1).max() > 0
    np.testing.assert_allclose(np.linalg.norm(noise, axis=-1), np.linalg.norm(own, axis=-1), rtol=1e-5)
    assert len(np.unique(noise, axis=0)) == len(ROWS)
    np.testing.assert_array_equal(noise, injected(prompts, "random"))
    assert not np.allclose(noise, injected(prompts, "random", seed=1))


def test_the_residual_before_stays_the_row_s_own_whatever_replaces_the_diff() -> None:
    before = np.stack([row.record.before for row in ROWS])
    for control in ORACLE_CONTROLS[:-1]:
        diff = injected(builder(), control)[:, 0]
        np.testing.assert_array_equal(injected(builder("diff_before"), control), np.stack([diff, before], axis=1))
        both = injected(builder("before_after"), control)
        np.testing.assert_allclose(both, np.stack([before, before + diff], axis=1), rtol=1e-6)


def test_only_the_vector_differs_between_controls_with_a_vector(prompts: PromptBuilder) -> None:
    matched = [p.ids for p in asked(prompts, "matched")]
    assert all(ids.count(prompts.slot_id) == 2 for ids in matched)
    for control in ORACLE_CONTROLS[:-1]:
        assert [p.ids for p in asked(prompts, control)] == matched


def test_text_only_shows_the_row_s_own_text_and_no_slot(prompts: PromptBuilder) -> None:
    for prompt, row, question in zip(asked(prompts, "text_only"), ROWS, QUESTIONS, strict=True):
        assert prompt.vectors is None
        assert prompts.slot_id not in prompt.ids
        start = prompt.ids.index(row.record.token_ids[0])
        assert prompt.ids[start : start + 3] == list(row.record.token_ids)
        assert question.text[0] in prompts.vocabulary.tokenizer.decode(prompt.ids)


def test_an_oracle_of_text_gets_the_same_prompt_from_every_control() -> None:
    prompts = builder("text")
    text = [p.ids for p in asked(prompts, "text_only")]
    assert all([p.ids for p in asked(prompts, control)] == text for control in ORACLE_CONTROLS)
    assert prompts.num_slots == 0
