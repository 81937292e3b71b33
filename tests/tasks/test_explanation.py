"""Explanations are what the labels say, and are scored claim by claim."""

import numpy as np
import pytest

from diff_oracle.tasks.attention import Attention
from diff_oracle.tasks.claims import NO_CHANGE, ONLY_SINK, Claim, parse
from diff_oracle.tasks.explanation import Explanation, ExplanationConfig, brief
from diff_oracle.tasks.layer_skip import LayerSkip
from diff_oracle.tasks.logit_lens import LogitLens
from tests.tasks.made import VOCABULARY, attention, layer_skip, make_record, make_rows, mixed_records

ALL = ("logit_lens", "attention", "layer_skip")
RECORDS = mixed_records(60)
TASK = Explanation()
TASK.fit(make_rows(RECORDS, *ALL), VOCABULARY)
RNG = np.random.default_rng(0)


def answer(kind: str, index: int) -> list[Claim]:
    question = TASK.question(RECORDS[index], kind, np.random.default_rng(index))
    parsed = parse(VOCABULARY.show(question.answer), VOCABULARY)
    assert not parsed.other_lines
    return list(parsed.claims)


@pytest.mark.parametrize("index", range(12))
def test_it_says_what_the_other_tasks_ask_for(index: int) -> None:
    record, rows = RECORDS[index], make_rows(RECORDS, *ALL)
    wanted: list[Claim] = []
    for task, kind, said in ((LogitLens(), "promoted", "raises"), (LogitLens(), "suppressed", "lowers")):
        task.fit(rows, VOCABULARY)
        ids = [i for i in task.question(record, kind, RNG).answer if isinstance(i, int)]
        wanted += [Claim(said, i) for i in ids]  # type: ignore[arg-type]
    reading = Attention()
    reading.fit(rows, VOCABULARY)
    if "attended" in reading.kinds_for(record):
        text = reading.question(record, "attended", RNG).answer
        wanted += [Claim("reads", i) for i in text if isinstance(i, int)]
        wanted += [Claim("reads", ONLY_SINK)] if text == (ONLY_SINK,) else []
    skip = LayerSkip()
    skip.fit(rows, VOCABULARY)
    small = skip.question(record, "size", RNG).answer == ("small",)
    wanted.append(Claim("skipped", NO_CHANGE if small else int(record.labels["skipped_ids"][0])))
    assert answer("explain", index) == wanted


def test_other_kinds_say_the_same_or_less() -> None:
    for index in range(12):
        assert set(answer("reworded", index)) == set(answer("explain", index))
        assert answer("brief", index) == brief(answer("explain", index))
    assert any(answer("reworded", index) != answer("explain", index) for index in range(12))


def test_a_score_is_the_share_of_right_claims() -> None:
    question = TASK.question(RECORDS[0], "explain", RNG)
    gold = VOCABULARY.show(question.answer)
    lines = gold.split("\n")
    half = len(lines) // 2
    assert TASK.score(question, gold, VOCABULARY) == 1.0
    assert TASK.score(question, "\n".join(lines[::-1]), VOCABULARY) == 1.0
    assert TASK.score(question, "\n".join(lines[:half]), VOCABULARY) == half / len(lines)
    assert TASK.score(question, f"{gold}\nnonsense", VOCABULARY) == len(lines) / (len(lines) + 1)
    assert TASK.score(question, gold.replace("raises", "promotes"), VOCABULARY) == 1.0
    assert TASK.score(question, "", VOCABULARY) == 0.0


def test_the_prior_is_what_the_site_usually_does() -> None:
    labels = {
        "promoted_ids": [500, 501],
        "promoted_scores": [1.0, 0.5],
        "suppressed_ids": [502, 503],
        "suppressed_scores": [-1.0, -0.5],
        **attention([], [], [], sink=None),
        **layer_skip({600: 1.0}, {600: 1.0}, kl=0.0),
    }
    other = labels | {"promoted_ids": [504, 501]}
    task = Explanation(ExplanationConfig(num_raised=1, num_lowered=1))
    task.fit(make_rows([make_record(labels)] * 3 + [make_record(other)], *ALL), VOCABULARY)
    question = task.question(make_record(other), "explain", RNG)
    wanted = {Claim("raises", 500), Claim("lowers", 502), Claim("skipped", NO_CHANGE)}
    for site in ("L1", "L9"):
        prior = VOCABULARY.show(task.prior_answer(site, question))
        assert set(parse(prior, VOCABULARY).claims) == wanted
        assert task.score(question, prior, VOCABULARY) == pytest.approx(2 / 3)


def test_rows_without_a_label_are_asked_nothing() -> None:
    rows = [make_record(attention([], [], [], sink=None), site="L1.mlp"), make_record(attention([1], [500], [1.0]))]
    task = Explanation()
    task.fit(make_rows(rows, "attention"), VOCABULARY)
    assert task.askable(make_rows(rows, "attention")).all(axis=1).tolist() == [False, True]
    assert task.kinds_for(rows[0]) == ()
    with pytest.raises(ValueError, match="answer nothing"):
        task.question(rows[0], "explain", RNG)
    with pytest.raises(ValueError, match="has no label to explain"):
        task.fit(make_rows(rows[:1], "attention"), VOCABULARY)


def test_the_standard_question_needs_no_training_rows() -> None:
    fresh = Explanation()
    for index in range(6):
        (question,) = fresh.standard_questions(RECORDS[index], VOCABULARY)
        assert list(parse(VOCABULARY.show(question.answer), VOCABULARY).claims) == answer("explain", index)
    assert fresh.standard_questions(make_record(attention([], [], [], sink=None), site="L1.mlp"), VOCABULARY) == []
