"""Questions on attention, their answers computed by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diff_oracle.records import Record
from diff_oracle.tasks import Question, Task
from diff_oracle.tasks.attention import PHRASINGS, Attention, AttentionConfig
from diff_oracle.tasks.attention_label import DISTANCES, Reading
from diff_oracle.tasks.claims import ONLY_SINK
from diff_oracle.tasks.propensity import Propensity
from tests.tasks.made import LINE_BREAK, NO_ID, VOCABULARY, attention, make_record, make_rows

CONTEXT = [1, 500, 501, 502, 500, 503, 504, 505, 506]  # position 0 is the sink
# 500 stands twice: 0.2 + 0.15 of 0.5, the share that is not the sink's; 503 has 0.1, 502 has 0.03, 504 has 0.02.
LABELS = attention([1, 4, 5, 3, 6], [500, 500, 503, 502, 504], [0.2, 0.15, 0.1, 0.03, 0.02], sink=0.5)
ROW = make_record(LABELS, context=CONTEXT)
MLP = make_record(attention([], [], [], sink=None), site="L1.mlp", context=CONTEXT)
SINK = make_record(attention([1], [500], [0.01], sink=0.97), context=CONTEXT)
DIFFUSE = make_record(attention([5], [503], [0.02], sink=0.1), context=CONTEXT)


def fitted(records: Sequence[Record], **options: float) -> Attention:
    task = Attention(AttentionConfig(**options))  # type: ignore[arg-type]
    task.fit(make_rows(records, "attention"), VOCABULARY)
    return task


def impartial(task: Attention) -> Attention:
    """The task as it is where all tokens are attended to as readily, so that every pair is asked."""
    nowhere = np.empty(0, dtype=np.int64)
    task.propensity = Propensity.fit(["L1"], [Reading(True, [], [], None, nowhere, nowhere)])
    return task


TASK = impartial(fitted([ROW, MLP, SINK, DIFFUSE]))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_it_is_a_task() -> None:
    assert isinstance(TASK, Task)


def test_the_answer_is_what_has_its_share_with_repeated_tokens_summed() -> None:
    assert TASK.question(ROW, "attended", rng()).answer == (500, "\n", 503, "\n", 502)  # 0.7, 0.2, 0.06 of the rest
    assert fitted([ROW], num_asked=1).question(ROW, "attended", rng()).answer == (500,)
    assert fitted([ROW], min_share=0.1).question(ROW, "attended", rng()).answer == (500, "\n", 503)
    apart = attention([1, 2, 3], [500, 501, 500], [0.3, 0.4, 0.3])  # strongest together, though not apart
    assert TASK.question(make_record(apart, context=CONTEXT), "attended", rng()).answer == (500, "\n", 501)


def test_what_no_label_may_name_is_neither_an_answer_nor_asked_about() -> None:
    context = [1, LINE_BREAK, 501, 502, 503, 504, 505, 506, 507]
    row = make_record(attention([1, 2], [LINE_BREAK, 501], [0.7, 0.3]), context=context)
    task = impartial(fitted([row]))
    assert task.question(row, "attended", rng()).answer == (501,)
    for seed in range(30):
        assert LINE_BREAK not in task.question(row, "choice", rng(seed)).text
    only_breaks = make_record(attention([1], [LINE_BREAK], [1.0]), context=context)
    assert task.kinds_for(only_breaks) == ("distance",)


def test_distance_is_that_of_the_strongest_position() -> None:
    for position, name in ((8, "itself"), (7, "previous"), (6, "near"), (1, "near")):
        row = make_record(attention([position, 2], [CONTEXT[position], 501], [0.6, 0.2]), context=CONTEXT)
        question = TASK.question(row, "distance", rng())
        assert question.answer == (name,)
        assert question.choices == tuple((each,) for each, _ in DISTANCES)
    far = make_record(attention([1], [500], [1.0]), context=[1, *range(500, 509)])
    assert TASK.question(far, "distance", rng()).answer == ("far",)


def test_what_can_be_asked_follows_from_the_label() -> None:
    assert set(TASK.kinds_for(ROW)) == set(TASK.kinds)
    assert TASK.kinds_for(MLP) == ()
    assert TASK.kinds_for(SINK) == ("attended",)
    assert TASK.question(SINK, "attended", rng()).answer == (ONLY_SINK,)
    assert TASK.kinds_for(DIFFUSE) == ("distance",)
    rows = [ROW, MLP, SINK, DIFFUSE]
    expected = [[kind in TASK.kinds_for(row) for kind in TASK.kinds] for row in rows]
    assert TASK.askable(make_rows(rows, "attention")).tolist() == expected
    for row, kind in ((MLP, "attended"), (SINK, "choice"), (DIFFUSE, "yes_no")):
        with pytest.raises(ValueError, match=f"attention cannot ask '{kind}' of this record of {row.site}"):
            TASK.question(row, kind, rng())


def test_the_headline_needs_no_fit() -> None:
    task = Attention()
    assert [task.top_answer(row.labels) for row in (ROW, MLP, SINK)] == [500, None, ONLY_SINK]


@pytest.mark.parametrize("seed", range(20))
def test_both_tokens_of_a_choice_stand_in_the_context_and_one_is_attended_to(seed: int) -> None:
    question = TASK.question(ROW, "choice", rng(seed))
    (right,) = question.answer
    (wrong,) = next(choice for choice in question.choices if choice != question.answer)
    assert right in (500, 503, 502)
    assert wrong in (501, 505, 506)  # 504 has 0.04 of the rest: too near to its share to be called ignored
    assert [piece for piece in question.text if isinstance(piece, int)] == [choice[0] for choice in question.choices]
    question = TASK.question(ROW, "yes_no", rng(seed))
    (named,) = [piece for piece in question.text if isinstance(piece, int)]
    assert question.answer == ((named,) if named in (500, 502, 503) else ("no",))
    assert question.choices == ((named,), ("no",))


def synthetic(number: int, seed: int, site: str = "L1") -> list[Record]:
    """Rows of a site that attends to some tokens far more readily than to others, and to what is near."""
    draws = rng(seed)
    ready = np.linspace(-3, 3, 60)  # log-odds of each of the tokens 300…359
    near = 4 - 3 * np.log(np.arange(24, 0, -1))  # and of each position 1…24
    rows = []
    for _ in range(number):
        tokens = draws.choice(60, 24, replace=False)
        chances = 1 / (1 + np.exp(-ready[tokens] - near))
        places = 1 + np.flatnonzero(draws.random(24) < chances)
        if 0 < len(places) < 15:  # more would have too little each
            ids = (300 + tokens[places - 1]).tolist()
            labels = attention(places.tolist(), ids, [1 / len(places)] * len(places), sink=0.0)
            rows.append(make_record(labels, site, [1, *(300 + tokens).tolist()]))
    return rows


def test_neither_the_sites_habit_nor_recency_answers_pair_questions() -> None:
    task, records = fitted(synthetic(1200, seed=0), k=24), make_rows(synthetic(1200, seed=1), "attention")

    def shares_right(rows: Sequence[Record], kind: str) -> tuple[float, float]:
        questions = [task.question(row, kind, rng(index)) for index, row in enumerate(rows)]
        prior = [task.prior_answer(row.site, q) == q.answer for row, q in zip(rows, questions, strict=True)]
        recency = [task.recency_answer(row, q) == q.answer for row, q in zip(rows, questions, strict=True)]
        return float(np.mean(prior)), float(np.mean(recency))

    asked = records.take(np.flatnonzero(task.askable(records)[:, list(task.kinds).index("choice")]))
    assert len(records) / 3 < len(asked) < len(records) / 2
    assert max(shares_right(asked, "choice") + shares_right(asked, "yes_no")) < 0.55
    impartial(task)  # from here on pairs are drawn without care, and either tells
    assert min(shares_right(records.take(range(400)), "choice")) > 0.65


def test_the_rows_that_are_asked_for_pairs_are_the_same_whoever_asks() -> None:
    rows = synthetic(200, seed=0)
    records, task = make_rows(rows, "attention", per_document=1), fitted(rows, k=24)
    askable = task.askable(records)
    assert 0 < askable[:, 1].sum() < len(rows)
    for index, possible in enumerate(askable):
        record = records[index]
        assert [kind in task.kinds_for(record) for kind in task.kinds] == possible.tolist()
        if not possible[1]:
            with pytest.raises(ValueError, match="attention cannot ask 'choice' of this record of L1"):
                task.question(record, "choice", rng())


def test_where_all_tokens_are_attended_to_no_pair_is_asked() -> None:
    row = make_record(attention([1, 2], [500, 501], [0.6, 0.4]), context=[1, *[500, 501] * 4])
    assert impartial(fitted([row])).kinds_for(row) == ("attended", "distance")


def test_recency_answers_by_where_tokens_stand() -> None:
    near = make_record(attention([8, 7], [506, 505], [0.6, 0.4]), context=CONTEXT)  # 0 and 1 back
    far = make_record(attention([1, 2], [500, 501], [0.6, 0.4]), "L2", [1, *range(500, 508)])  # 7 and 6 back
    task = impartial(fitted([near, near, far]))
    # 506, 505 and 504 are nearest; two of them are always right at L1, and none at L2.
    attended = task.question(near, "attended", rng())
    assert task.recency_answer(near, attended) == (506, "\n", 505) == attended.answer
    assert task.recency_answer(near, task.question(near, "distance", rng())) is None
    for seed in range(20):
        choice, yes_no = (task.question(near, kind, rng(seed)) for kind in ("choice", "yes_no"))
        assert task.recency_answer(near, choice) == choice.answer
        assert task.recency_answer(near, yes_no) == yes_no.answer  # within 1
        choice, yes_no = (task.question(far, kind, rng(seed)) for kind in ("choice", "yes_no"))
        assert task.recency_answer(far, choice) != choice.answer
        assert task.recency_answer(far, yes_no) == (yes_no.choices[0])  # all stand within 7
    # 500 stands twice, and counts where it is nearer: 4 back, in front of 502.
    choice = Question("attention", "choice", "seen", ("", 502, "", 500), (502,), ((502,), (500,)))
    assert task.recency_answer(ROW, choice) == (500,)
    unseen = make_record(LABELS, "L9", CONTEXT)
    assert task.recency_answer(unseen, choice) == (500,)  # as all sites together


def test_the_prior_is_the_best_constant_answer() -> None:
    def rows(*answers: list[int]) -> list[Record]:
        return [make_record(attention([1 + i for i in range(len(a))], a, [1 / len(a)] * len(a))) for a in answers]

    question = TASK.question(ROW, "attended", rng())
    # One token in every row: naming more of them would cost.
    assert fitted(rows([500], [500, 501], [500], [500])).prior_answer("L1", question) == (500,)
    assert fitted(rows([500, 501], [500, 501], [500])).prior_answer("L1", question) == (500, "\n", 501)
    assert fitted([*rows([500, 501], [502, 503]), SINK, SINK]).prior_answer("L1", question) == (ONLY_SINK,)
    distance = TASK.question(ROW, "distance", rng())
    near, itself = attention([6], [500], [1.0]), attention([8], [500], [1.0])
    task = fitted([make_record(near), make_record(near), make_record(itself), make_record(itself, "L2")])
    assert [task.prior_answer(site, distance) for site in ("L1", "L2")] == [("near",), ("itself",)]
    assert task.prior_answer("L9", distance)[0] in ("near", "itself")


def test_scores_want_what_is_attended_to_and_nothing_else() -> None:
    names = [VOCABULARY.texts[i] for i in (500, 503, 502)]
    question = TASK.question(ROW, "attended", rng())

    def score(*named: str) -> float:
        return TASK.score(question, "\n".join(named), VOCABULARY)

    assert score(*names[::-1]) == 1
    assert score(names[0]) == pytest.approx(1 / 3)
    assert score(*names, "more") == pytest.approx(3 / 4)
    assert score(ONLY_SINK) == score("") == 0
    sink = TASK.question(SINK, "attended", rng())
    assert TASK.score(sink, ONLY_SINK, VOCABULARY) == 1
    assert TASK.score(sink, f"{ONLY_SINK}\n{names[0]}", VOCABULARY) == TASK.score(sink, names[0], VOCABULARY) == 0


def test_the_word_no_is_never_asked_about() -> None:
    context = [1, NO_ID, 501, 502, NO_ID, 504, 505, 506, 507]
    attended = make_record(attention([1, 2], [NO_ID, 501], [0.7, 0.3]), context=context)
    ignored = make_record(attention([2, 3], [501, 502], [0.7, 0.3]), context=context)
    task = impartial(fitted([attended, ignored]))
    for row in (attended, ignored):
        for seed in range(40):
            assert NO_ID not in task.question(row, "choice", rng(seed)).text
            assert NO_ID not in task.question(row, "yes_no", rng(seed)).text
    alone = make_record(attention([1], [NO_ID], [1.0]), context=context)
    assert task.kinds_for(alone) == ("attended", "distance")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_label_gives_questions_that_its_own_answer_answers(data: st.DataObject) -> None:
    allowed = VOCABULARY.allowed.nonzero().flatten().tolist()[:40]
    length = data.draw(st.integers(8, 20))
    context = [1, *data.draw(st.lists(st.sampled_from([*allowed, LINE_BREAK]), min_size=length, max_size=length))]
    weights = np.array(data.draw(st.lists(st.floats(1e-6, 1.0), min_size=length + 1, max_size=length + 1)))
    weights /= weights.sum()
    positions = sorted(range(1, length + 1), key=lambda p: -weights[p])[:10]
    labels = attention(positions, [context[p] for p in positions], weights[positions].tolist(), float(weights[0]))
    row = make_record(labels, data.draw(st.sampled_from(["L1", "L9"])), context)
    seed = data.draw(st.integers(0, 1000))
    for kind in TASK.kinds_for(row):
        question = TASK.question(row, kind, rng(seed))
        assert TASK.score(question, VOCABULARY.show(question.answer), VOCABULARY) == 1
        assert VOCABULARY.decode(VOCABULARY.encode(question.answer)) == VOCABULARY.show(question.answer)
        if question.choices:
            firsts = [VOCABULARY.encode(choice)[0] for choice in question.choices]
            assert len(set(firsts)) == len(firsts)
            assert question.answer in question.choices


def test_heldout_wordings_are_never_trained_on() -> None:
    assert set(PHRASINGS) == set(TASK.kinds)
    for kind, wordings in PHRASINGS.items():
        assert not set(wordings["seen"]) & set(wordings["heldout"])
        texts = {TASK.question(ROW, kind, rng(seed)).text[0] for seed in range(80)}
        assert texts == {wording.split("{")[0] for wording in wordings["seen"]}


def test_what_cannot_be_used_is_refused() -> None:
    for options, said in (
        ({"num_asked": 11}, "num_asked must be 1…k = 10, got 11"),
        ({"weighting": "loud"}, "unknown tasks.attention.weighting 'loud': choose from value_weighted, pattern"),
        ({"min_share": 0.0}, "min_share must be above 0 and at most 1, got 0.0"),
        ({"sink_only": 1.5}, "sink_only must be above 0 and at most 1, got 1.5"),
    ):
        with pytest.raises(ValueError, match=said):
            AttentionConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown question kind 'rhyme': choose from attended"):
        TASK.question(ROW, "rhyme", rng())
    with pytest.raises(ValueError, match="say nothing about -diff, got sign -1"):
        TASK.question(ROW, "attended", rng(), sign=-1)
    with pytest.raises(
        ValueError, match=r"no sink_weight: its dataset was not measured for attention.*\+task=attention"
    ):
        TASK.question(make_record({}), "attended", rng())
    with pytest.raises(ValueError, match=r"dataset has no attended_positions: it was not measured for attention"):
        Attention().fit(make_rows([make_record({})]), VOCABULARY)
    with pytest.raises(ValueError, match="no training row has an attention label: an MLP has none"):
        fitted([MLP, MLP])
    with pytest.raises(RuntimeError, match=r"call task\.fit\(dataset\.split\('train'\)\) first"):
        Attention().question(ROW, "attended", rng())
