import numpy as np
import pyarrow as pa
import pytest

from diff_oracle.records import Record, RecordSet
from diff_oracle.subject.loading import SubjectConfig, load_hf_model
from diff_oracle.tasks import Question, make_tasks
from diff_oracle.tasks.logit_lens import PHRASINGS, LogitLens, LogitLensConfig
from diff_oracle.tasks.text import Vocabulary

UP, DOWN = [300, 301, 302, 303, 304, 305], [400, 401, 402, 403, 404, 405]
COMMON_UP, COMMON_DOWN = [310, 311], [410, 411]  # what site L1 often has at the two ends, though not in `record`


def training_rows(rows: list[tuple[str, list[int], list[int]]]) -> RecordSet:
    """Rows of (site, promoted, suppressed): all that a task is fitted on."""
    sites, promoted, suppressed = zip(*rows, strict=True)
    return RecordSet(pa.table({"site": sites, "promoted_ids": promoted, "suppressed_ids": suppressed}))


def tiny_vocabulary() -> Vocabulary:
    loaded = load_hf_model(SubjectConfig())
    return Vocabulary(loaded.tokenizer, loaded.identity.vocab_size)


VOCABULARY = tiny_vocabulary()


def fitted(rows: list[tuple[str, list[int], list[int]]]) -> LogitLens:
    task = LogitLens(LogitLensConfig(k=6, num_asked=3))
    task.fit(training_rows(rows), VOCABULARY)
    return task


TASK = fitted([("L1", UP, DOWN), ("L1", UP[:4] + COMMON_UP, DOWN[:4] + COMMON_DOWN)])


@pytest.fixture
def vocabulary() -> Vocabulary:
    return VOCABULARY


@pytest.fixture
def record() -> Record:
    labels = {"promoted_ids": np.array(UP), "suppressed_ids": np.array(DOWN)}
    return Record("L1", 8, tuple(range(9)), np.ones(4, np.float32), np.ones(4, np.float32), "doc", labels)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_open_answers_are_the_strongest_tokens_in_order(record: Record) -> None:
    assert TASK.question(record, "promoted", rng()).answer == (300, "\n", 301, "\n", 302)
    assert TASK.question(record, "suppressed", rng()).answer == ("-", 400, "\n", "-", 401, "\n", "-", 402)


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_sign_swaps_every_answer(record: Record, seed: int) -> None:
    assert TASK.question(record, "promoted", rng(seed), sign=-1).answer == (400, "\n", 401, "\n", 402)
    for sign, ups, others in ((1, UP, COMMON_UP), (-1, DOWN, COMMON_DOWN)):
        question = TASK.question(record, "yes_no", rng(seed), sign=sign)
        (named,) = [piece for piece in question.text if isinstance(piece, int)]
        assert named in ups + others
        assert question.answer == ((named,) if named in ups else ("no",))
        assert question.choices == ((named,), ("no",))
        question = TASK.question(record, "choice", rng(seed), sign=sign)
        assert question.answer[0] in ups
        assert {choice[0] in ups for choice in question.choices} == {True, False}
        assert {choice[0] in others for choice in question.choices} == {True, False}
        assert [piece for piece in question.text if isinstance(piece, int)] == [c[0] for c in question.choices]


def test_tokens_that_every_row_of_the_site_has_or_none_are_not_asked(record: Record) -> None:
    asked = {TASK.question(record, "choice", rng(seed)).answer[0] for seed in range(100)}
    assert asked == {304, 305}  # 300…303 are in every row of L1
    task = fitted([("L1", [*UP[:3], *COMMON_UP, 320], DOWN), ("L1", [*COMMON_UP, 320, 321, 322, 323], DOWN)])
    asked = {task.question(record, "choice", rng(seed)).answer[0] for seed in range(100)}
    assert asked == {300, 301, 302}  # 303… are in none


def test_where_training_rows_offer_no_pair_the_other_end_of_the_row_does(record: Record) -> None:
    for task in (fitted([("L2", UP, DOWN)]), fitted([("L1", UP, DOWN)])):
        for seed in range(20):
            question = task.question(record, "choice", rng(seed))
            assert {choice[0] in UP for choice in question.choices} == {True, False}
            assert {choice[0] in DOWN for choice in question.choices} == {True, False}


def test_what_a_site_usually_does_answers_open_questions_and_no_others() -> None:
    draws = rng()
    vocab, weights = np.arange(300, 400), np.linspace(0.001, 0.02, 100)  # tokens of very unequal frequency

    def rows(number: int) -> list[tuple[str, list[int], list[int]]]:
        lists = [draws.choice(vocab, 12, replace=False, p=weights / weights.sum()).tolist() for _ in range(number)]
        return [("L1", ids[:6], ids[6:]) for ids in lists]

    task = fitted(rows(600))
    right: dict[str, list[bool]] = {"yes_no": [], "choice": []}
    for index, (site, promoted, suppressed) in enumerate(rows(1500)):
        labels = {"promoted_ids": np.array(promoted), "suppressed_ids": np.array(suppressed)}
        row = Record(site, 8, (1,), np.ones(4, np.float32), np.ones(4, np.float32), "doc", labels)
        for kind, scores in right.items():
            question = task.question(row, kind, rng(index))
            scores.append(task.prior_answer(site, question) == question.answer)
    assert 0.46 < np.mean(right["yes_no"]) < 0.54
    assert 0.46 < np.mean(right["choice"]) < 0.54


def test_the_right_answer_is_first_as_often_as_second(record: Record) -> None:
    questions = [TASK.question(record, "choice", rng(seed)) for seed in range(400)]
    first = sum(q.answer == q.choices[0] for q in questions)
    assert 160 < first < 240
    no = sum(TASK.question(record, "yes_no", rng(seed)).answer == ("no",) for seed in range(400))
    assert 160 < no < 240


def test_the_word_no_is_never_the_token_asked_about() -> None:
    (no,) = VOCABULARY.encode(("no",))
    for promoted, common in (([no, *UP[:5]], COMMON_UP), (UP, [no, COMMON_UP[0]]), ([no, *UP[:5]], UP[:2])):
        task = fitted([("L1", promoted, DOWN), ("L1", UP[:4] + common, DOWN)])
        labels = {"promoted_ids": np.array(promoted), "suppressed_ids": np.array(DOWN)}
        for site in ("L1", "L9"):  # an unseen site draws from the row's own ends
            row = Record(site, 8, (1,), np.ones(4, np.float32), np.ones(4, np.float32), "doc", labels)
            for kind in ("yes_no", "choice"):
                for seed in range(40):
                    question = task.question(row, kind, rng(seed))
                    assert no not in question.text
                    assert VOCABULARY.encode(question.choices[0])[0] != VOCABULARY.encode(question.choices[1])[0]


def test_heldout_wordings_are_never_trained_on(record: Record) -> None:
    for kind, wordings in PHRASINGS.items():
        assert not set(wordings["seen"]) & set(wordings["heldout"])
        texts = {TASK.question(record, kind, rng(seed)).text[0] for seed in range(50)}
        starts = {wording.split("{")[0] for wording in wordings["seen"]}
        assert texts == starts


def test_open_scores(record: Record, vocabulary: Vocabulary) -> None:
    question = TASK.question(record, "promoted", rng())
    names = [vocabulary.texts[i] for i in UP]

    def score(*named: str) -> float:
        return TASK.score(question, "\n".join(named), vocabulary)

    assert score(names[2], names[0], names[1]) == 1
    assert score(names[0], "nonsense", names[1]) == pytest.approx(2 / 3)
    assert score(names[0], names[0], names[0]) == pytest.approx(1 / 3)
    assert score("x", "y", "z", *names[:3]) == 0  # naming more than asked does not help
    assert score("") == 0


def test_a_suppressed_token_counts_only_behind_its_minus(record: Record, vocabulary: Vocabulary) -> None:
    question = TASK.question(record, "suppressed", rng())
    names = [vocabulary.texts[i] for i in DOWN]
    assert TASK.score(question, "\n".join(f"-{name}" for name in names[:3]), vocabulary) == 1
    assert TASK.score(question, "\n".join(names[:3]), vocabulary) == 0
    assert TASK.score(question, f"-{names[1]}\n{names[0]}\n-{names[0]}", vocabulary) == pytest.approx(2 / 3)


def test_the_prior_answers_with_what_is_commonest_among_the_tokens_asked_for(record: Record) -> None:
    # 303 is in every row's list of six, but never among the three asked for.
    lists = [[400, 401, 402, 303, 300, 305], [400, 401, 300, 303, 402, 305], [400, 401, 402, 303, 304, 306]]
    task = fitted([("L1", ids, DOWN) for ids in lists] + [("L2", [1, 2, 3, 4, 5, 6], DOWN)] * 4)
    open_question = task.question(record, "promoted", rng())
    assert task.prior_answer("L1", open_question) == (400, "\n", 401, "\n", 402)
    assert task.prior_answer("L2", open_question) == (1, "\n", 2, "\n", 3)
    assert task.prior_answer("L9", open_question) == (1, "\n", 2, "\n", 3)  # an unseen site: all sites together
    suppressed = task.question(record, "suppressed", rng())
    assert task.prior_answer("L1", suppressed) == ("-", 400, "\n", "-", 401, "\n", "-", 402)


def test_the_prior_chooses_what_the_site_has_oftener(record: Record) -> None:
    often, seldom = 402, 300
    task = fitted([("L1", [402, 2, 3, 4, 5, 6], DOWN)] * 3 + [("L1", [300, 2, 3, 4, 5, 6], DOWN)])
    for tokens in ((often, seldom), (seldom, often)):
        choice = Question("logit_lens", "choice", "seen", tokens, (seldom,), tuple((t,) for t in tokens))
        assert task.prior_answer("L1", choice) == (often,)
    for token, answer in ((often, often), (seldom, "no")):
        yes_no = Question("logit_lens", "yes_no", "seen", (token, "or no?"), (answer,), ((token,), ("no",)))
        assert task.prior_answer("L1", yes_no) == (answer,)


def test_an_unfitted_task_does_not_ask(record: Record) -> None:
    task = LogitLens()
    with pytest.raises(RuntimeError, match=r"call task\.fit\(dataset\.split\('train'\)\) first"):
        task.question(record, "yes_no", rng())
    with pytest.raises(RuntimeError, match="knows no site yet"):
        task.prior_answer("L1", TASK.question(record, "promoted", rng()))


def test_bad_configs_and_kinds_are_refused(record: Record) -> None:
    with pytest.raises(ValueError, match="num_asked must be 1…k = 4, got 5"):
        LogitLensConfig(k=4)
    with pytest.raises(ValueError, match=r"tasks\.logit_lens\.k must be at least 2, got 1"):
        LogitLensConfig(k=1, num_asked=1)
    with pytest.raises(ValueError, match="unknown question kind 'rhyme': choose from promoted"):
        TASK.question(record, "rhyme", rng())
    with pytest.raises(ValueError, match="unknown task 'nope': choose from logit_lens"):
        make_tasks({"nope": {}})
    with pytest.raises(ValueError, match="unknown key 'tasks.logit_lens.kk'"):
        make_tasks({"logit_lens": {"kk": 3}})
    with pytest.raises(ValueError, match=r"no task: add \+task=NAME"):
        make_tasks({})
