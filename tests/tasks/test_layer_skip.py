"""Questions on the counterfactual run, their answers computed by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diff_oracle.records import Record
from diff_oracle.tasks import Task
from diff_oracle.tasks.claims import NO_CHANGE
from diff_oracle.tasks.layer_skip import PHRASINGS, SAME, SIZES, LayerSkip, LayerSkipConfig
from tests.tasks.made import NO_ID, VOCABULARY, layer_skip, make_record, make_rows

(SAME_ID,) = VOCABULARY.encode((SAME,))[:1]
BASE = {300: 0.5, 301: 0.2, 302: 0.1, 303: 0.1}
# 301 +0.3, 304 +0.1, 305 +0.05; 300 -0.3, 303 -0.1, 302 -0.05.
SKIPPED = {301: 0.5, 300: 0.2, 304: 0.1, 302: 0.05, 305: 0.05}
CHANGED = make_record(layer_skip(BASE, SKIPPED, kl=0.25))
STAYED = make_record(layer_skip(BASE, {300: 0.4, 304: 0.35, 301: 0.05}, kl=0.2))
UNCHANGED = make_record(layer_skip(BASE, {300: 0.5, 301: 0.21, 302: 0.09, 303: 0.1}, kl=0.01))


def fitted(records: Sequence[Record], **options: float) -> LayerSkip:
    task = LayerSkip(LayerSkipConfig(**options))  # type: ignore[arg-type]
    task.fit(make_rows(records, "layer_skip"), VOCABULARY)
    return task


TASK = fitted([CHANGED, STAYED, UNCHANGED])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_it_is_a_task() -> None:
    assert isinstance(TASK, Task)


def test_open_answers_are_the_strongest_changes_or_that_there_is_none() -> None:
    assert TASK.question(CHANGED, "gained", rng()).answer == (301, "\n", 304, "\n", 305)
    assert TASK.question(CHANGED, "lost", rng()).answer == ("-", 300, "\n", "-", 303, "\n", "-", 302)
    for kind in ("gained", "lost"):
        assert TASK.question(UNCHANGED, kind, rng()).answer == (NO_CHANGE,)


def test_only_what_truly_gains_is_said_to() -> None:
    falling = {**CHANGED.labels, "gained_ids": np.array([301, 302]), "gained_deltas": np.array([0.2, -0.1])}
    assert TASK.question(make_record(falling), "gained", rng()).answer == (301,)
    nothing = {**falling, "gained_deltas": np.array([-0.1, -0.2])}  # all went to a token that no label may name
    assert "gained" not in TASK.kinds_for(make_record(nothing))
    assert "yes_no" not in TASK.kinds_for(make_record(nothing))


@pytest.mark.parametrize(("kl", "size"), [(0.0, 0), (0.0199, 0), (0.02, 1), (0.2999, 1), (0.3, 2), (9.0, 2)])
def test_sizes(kl: float, size: int) -> None:
    question = TASK.question(make_record(layer_skip(BASE, SKIPPED, kl)), "size", rng())
    assert question.answer == (SIZES[size],)
    assert question.choices == tuple((name,) for name in SIZES)


def test_top_sets_the_token_that_was_on_top_against_the_best_other_one() -> None:
    for row, token, answer in ((CHANGED, 301, (301,)), (STAYED, 304, (SAME,))):
        question = TASK.question(row, "top", rng())
        assert [piece for piece in question.text if isinstance(piece, int)] == [token]
        assert question.answer == answer
        assert question.choices == ((token,), (SAME,))
    assert "top" not in TASK.kinds_for(UNCHANGED)


def test_at_each_site_top_is_asked_of_as_many_close_calls_won_as_lost() -> None:
    def row(site: str, ahead: float) -> Record:
        """The challenger 301 is ahead by so much, or behind."""
        return make_record(layer_skip({300: 0.9, 301: 0.1}, {300: 0.4 - ahead / 2, 301: 0.4 + ahead / 2}, 0.3), site)

    rows = [row("L1", ahead) for ahead in (-0.7, -0.5, -0.3, -0.2, -0.1, 0.6, 0.4)]
    rows += [row("L2", ahead) for ahead in (-0.5, 0.1, 0.2, 0.3)]
    rows += [row("L3", ahead) for ahead in (-0.1, -0.3)]
    task = fitted(rows)
    asked = task.askable(make_rows(rows, "layer_skip"))[:, list(task.kinds).index("top")]
    # L1 stays oftener: its two nearest count; L2 changes oftener: its nearest counts; L3 never does.
    assert asked.tolist() == [False, False, False, True, True, True, True] + [True, True, False, False] + [False] * 2


def test_the_row_s_top_may_be_missing_among_those_kept_of_the_skipped_run() -> None:
    labels = {**CHANGED.labels, "skipped_ids": np.array([301, 304]), "skipped_probs": np.array([0.5, 0.4])}
    gone = make_record(labels)
    question = fitted([gone, STAYED]).question(gone, "top", rng())
    assert question.answer == (301,)


def test_what_can_be_asked_follows_from_the_label() -> None:
    assert set(TASK.kinds_for(CHANGED)) == set(TASK.kinds)
    assert set(TASK.kinds_for(UNCHANGED)) == {"gained", "lost", "size"}
    unlabelled = make_record({**CHANGED.labels, "kl": np.nan})
    rows = [CHANGED, UNCHANGED, STAYED, unlabelled]
    expected = [[kind in TASK.kinds_for(row) for kind in TASK.kinds] for row in rows]
    assert TASK.askable(make_rows(rows, "layer_skip")).tolist() == expected
    assert not any(expected[-1])
    with pytest.raises(
        ValueError, match="layer_skip cannot ask 'yes_no' of this record of L1: its labels answer gained"
    ):
        TASK.question(UNCHANGED, "yes_no", rng())


def test_the_headline_needs_no_fit() -> None:
    task = LayerSkip()
    assert [task.top_answer(row.labels) for row in (CHANGED, STAYED, UNCHANGED)] == [301, NO_CHANGE, NO_CHANGE]
    assert task.top_answer({**CHANGED.labels, "kl": np.nan}) is None


@pytest.mark.parametrize("seed", range(20))
def test_yes_no_asks_about_what_gains_here_or_in_other_rows(seed: int) -> None:
    other = make_record(layer_skip(BASE, {300: 0.1, 306: 0.5, 307: 0.2, 301: 0.2}, kl=1.0))
    question = fitted([CHANGED, other]).question(CHANGED, "yes_no", rng(seed))
    (named,) = [piece for piece in question.text if isinstance(piece, int)]
    assert named in (301, 304, 305, 306, 307)
    assert question.answer == ((named,) if named in (301, 304, 305) else ("no",))
    lonely = fitted([UNCHANGED]).question(CHANGED, "yes_no", rng(seed))  # no row to learn from: what loses here
    (named,) = [piece for piece in lonely.text if isinstance(piece, int)]
    assert lonely.answer == ((named,) if named in (301, 304, 305) else ("no",))
    assert named in (300, 301, 302, 303, 304, 305)


def synthetic(number: int, seed: int) -> list[Record]:
    """Rows of a site whose skips raise tokens of very unequal frequency, and mostly leave the top as it is."""
    draws, frequency = rng(seed), np.linspace(0.001, 0.02, 100)
    rows = []
    for _ in range(number):
        gaining = 300 + draws.choice(100, 5, replace=False, p=frequency / frequency.sum())
        share = draws.beta(2, 3)  # of the skipped run that goes to the first of them
        base = {250: 0.8, 251: 0.2}
        skipped = {250: 0.9 * (1 - share), **{int(t): 0.9 * share * 0.6**i for i, t in enumerate(gaining)}}
        rows.append(make_record(layer_skip(base, skipped, kl=0.3, k=5)))
    return rows


def test_what_a_site_usually_does_answers_neither_pairs_nor_tops() -> None:
    task = fitted(synthetic(800, seed=0), k=5)
    right: dict[str, list[bool]] = {"yes_no": [], "top": []}
    changes, rows = [], synthetic(1500, seed=1)
    for index, row in enumerate(rows):
        changes.append(task.top_answer(row.labels) != NO_CHANGE)
        for kind, scores in right.items():
            if kind in task.kinds_for(row):
                question = task.question(row, kind, rng(index))
                scores.append(task.prior_answer(row.site, question) == question.answer)
    assert abs(np.mean(changes) - 0.5) > 0.15  # asked of every row, one answer would be right most of the time
    assert 0.44 < np.mean(right["yes_no"]) < 0.56
    assert 0.44 < np.mean(right["top"]) < 0.56
    assert len(right["top"]) > 300


def test_the_prior_is_the_best_constant_answer() -> None:
    gained, size = TASK.question(CHANGED, "gained", rng()), TASK.question(CHANGED, "size", rng())
    task = fitted([CHANGED, CHANGED, UNCHANGED])
    assert task.prior_answer("L1", gained) == (301, "\n", 304, "\n", 305)
    assert task.prior_answer("L1", TASK.question(CHANGED, "lost", rng())) == ("-", 300, "\n", "-", 303, "\n", "-", 302)
    assert task.prior_answer("L1", size) == ("medium",)
    task = fitted([CHANGED, UNCHANGED, UNCHANGED, make_record(CHANGED.labels, "L2")])
    assert task.prior_answer("L1", gained) == (NO_CHANGE,)
    assert task.prior_answer("L1", size) == ("small",)
    assert task.prior_answer("L2", gained) == (301, "\n", 304, "\n", 305)
    assert task.prior_answer("L9", size)[0] in SIZES
    # 301 wins whenever it challenges, 304 never does.
    for row in (CHANGED, STAYED):
        question = TASK.question(row, "top", rng())
        assert TASK.prior_answer("L1", question) == question.answer


def test_scores() -> None:
    names = [VOCABULARY.texts[i] for i in (300, 303, 302)]
    lost = TASK.question(CHANGED, "lost", rng())
    assert TASK.score(lost, "\n".join(f"-{name}" for name in names[::-1]), VOCABULARY) == 1
    assert TASK.score(lost, f"-{names[0]}", VOCABULARY) == pytest.approx(1 / 3)
    assert TASK.score(lost, "\n".join(names), VOCABULARY) == 0  # without a mark they are said to gain
    unchanged = TASK.question(UNCHANGED, "lost", rng())
    assert TASK.score(unchanged, NO_CHANGE, VOCABULARY) == 1
    assert TASK.score(unchanged, f"{NO_CHANGE}\n-{names[0]}", VOCABULARY) == 0
    assert TASK.score(lost, f"{NO_CHANGE}\n-{names[0]}", VOCABULARY) == 0
    top = TASK.question(STAYED, "top", rng())
    assert (TASK.score(top, SAME, VOCABULARY), TASK.score(top, NO_CHANGE, VOCABULARY)) == (1, 0)


def test_words_that_are_answers_are_never_the_token_asked_about() -> None:
    for word in (NO_ID, SAME_ID):
        row = make_record(layer_skip(BASE, {word: 0.5, 300: 0.2, 304: 0.1}, kl=0.3))
        task = fitted([row, CHANGED, STAYED])
        assert ("top" in task.kinds_for(row)) == (word != SAME_ID)
        for seed in range(40):
            question = task.question(row, "yes_no", rng(seed))
            assert VOCABULARY.encode(question.choices[0])[0] != VOCABULARY.encode(question.choices[1])[0]
            assert NO_ID not in question.text
    only_no = make_record(layer_skip({300: 0.9}, {NO_ID: 0.5, 300: 0.2}, kl=0.3))
    assert "yes_no" not in TASK.kinds_for(only_no)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_label_gives_questions_that_its_own_answer_answers(data: st.DataObject) -> None:
    allowed = VOCABULARY.allowed.nonzero().flatten().tolist()[:40]
    runs = []
    for _ in range(2):
        tokens = data.draw(st.lists(st.sampled_from([*allowed, NO_ID, SAME_ID]), min_size=3, max_size=12, unique=True))
        weights = np.array(data.draw(st.lists(st.floats(1e-4, 1.0), min_size=len(tokens), max_size=len(tokens))))
        runs.append(dict(zip(tokens, (weights / weights.sum()).tolist(), strict=True)))
    labels = layer_skip(*runs, kl=data.draw(st.floats(0, 3)))
    row = make_record(labels, data.draw(st.sampled_from(["L1", "L9"])))
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
        texts = {TASK.question(CHANGED, kind, rng(seed)).text[0] for seed in range(80)}
        assert texts == {wording.split("{")[0] for wording in wordings["seen"]}


def test_what_cannot_be_used_is_refused() -> None:
    for options, said in (
        ({"k": 1, "num_asked": 1}, r"tasks\.layer_skip\.k must be at least 2, got 1"),
        ({"num_asked": 11}, "num_asked must be 1…k = 10, got 11"),
        ({"scope": "all"}, "unknown tasks.layer_skip.scope 'all': choose from position, sequence"),
        ({"small_kl": 0.3}, "small_kl must be above 0 and below large_kl = 0.3, got 0.3"),
    ):
        with pytest.raises(ValueError, match=said):
            LayerSkipConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="say nothing about -diff, got sign -1"):
        TASK.question(CHANGED, "gained", rng(), sign=-1)
    with pytest.raises(ValueError, match=r"the record has no kl: its dataset was not measured for layer_skip"):
        TASK.question(make_record({}), "size", rng())
    with pytest.raises(ValueError, match="no training row has a layer_skip label"):
        fitted([make_record({**CHANGED.labels, "kl": np.nan})])
    with pytest.raises(RuntimeError, match=r"call task\.fit\(dataset\.split\('train'\)\) first"):
        LayerSkip().question(CHANGED, "size", rng())
