import numpy as np
import pytest

from diff_oracle.records import Record
from diff_oracle.subject.loading import SubjectConfig, load_hf_model
from diff_oracle.tasks import make_tasks
from diff_oracle.tasks.logit_lens import PHRASINGS, LogitLens, LogitLensConfig, SitePrior
from diff_oracle.tasks.text import Vocabulary

UP, DOWN = [300, 301, 302, 303, 304, 305], [400, 401, 402, 403, 404, 405]
TASK = LogitLens(LogitLensConfig(k=6, num_asked=3))


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    loaded = load_hf_model(SubjectConfig())
    return Vocabulary(loaded.tokenizer, loaded.identity.vocab_size)


@pytest.fixture
def record() -> Record:
    labels = {"promoted_ids": np.array(UP), "suppressed_ids": np.array(DOWN)}
    return Record("doc", "L1", 8, tuple(range(9)), np.ones(4, np.float32), np.ones(4, np.float32), labels)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_open_answers_are_the_strongest_tokens_in_order(record: Record) -> None:
    assert TASK.question(record, "promoted", rng()).answer == (300, "\n", 301, "\n", 302)
    assert TASK.question(record, "suppressed", rng()).answer == (400, "\n", 401, "\n", 402)


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_sign_swaps_every_answer(record: Record, seed: int) -> None:
    assert TASK.question(record, "promoted", rng(seed), sign=-1).answer == (400, "\n", 401, "\n", 402)
    for sign, ups in ((1, UP), (-1, DOWN)):
        question = TASK.question(record, "yes_no", rng(seed), sign=sign)
        (named,) = [piece for piece in question.text if isinstance(piece, int)]
        assert question.answer == (("yes",) if named in ups else ("no",))
        question = TASK.question(record, "choice", rng(seed), sign=sign)
        assert question.answer[0] in ups
        assert {choice[0] in ups for choice in question.choices} == {True, False}
        assert [piece for piece in question.text if isinstance(piece, int)] == [c[0] for c in question.choices]


def test_the_right_answer_is_first_as_often_as_second(record: Record) -> None:
    questions = [TASK.question(record, "choice", rng(seed)) for seed in range(400)]
    first = sum(q.answer == q.choices[0] for q in questions)
    assert 160 < first < 240
    yes = sum(TASK.question(record, "yes_no", rng(seed)).answer == ("yes",) for seed in range(400))
    assert 160 < yes < 240


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


def test_the_prior_knows_the_site_and_nothing_of_the_diff(record: Record, vocabulary: Vocabulary) -> None:
    prior = SitePrior(3, vocabulary)
    prior.promoted["L1"].update([400, 400, 401, 401, 402, 300])
    prior.suppressed["L1"].update([300, 300, 301])
    question = TASK.question(record, "promoted", rng())
    assert prior.answer("L1", question).split("\n") == [vocabulary.texts[i] for i in (400, 401, 402)]
    choice = TASK.question(record, "choice", rng())
    assert prior.answer("L1", choice) == vocabulary.show(next(c for c in choice.choices if c != choice.answer))


def test_bad_configs_and_kinds_are_refused(record: Record) -> None:
    with pytest.raises(ValueError, match="num_asked must be 1…k = 4, got 5"):
        LogitLensConfig(k=4)
    with pytest.raises(ValueError, match="unknown question kind 'rhyme': choose from promoted"):
        TASK.question(record, "rhyme", rng())
    with pytest.raises(ValueError, match="unknown task 'nope': choose from logit_lens"):
        make_tasks({"nope": {}})
    with pytest.raises(ValueError, match="unknown key 'tasks.logit_lens.kk'"):
        make_tasks({"logit_lens": {"kk": 3}})
    with pytest.raises(ValueError, match=r"no task: add \+task=NAME"):
        make_tasks({})
