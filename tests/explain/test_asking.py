"""Explaining from Python: every site at every position, answers that are the oracle's own, claims that are checked."""

from typing import Any

import pytest

from diff_oracle.explain import Explainer, asking, explain
from diff_oracle.explain.answering import FREE_QUESTION, _checked
from diff_oracle.explain.asking import batch_size_for
from diff_oracle.oracle.reading import Reading
from diff_oracle.subject.capture import diffs_of_text
from diff_oracle.tasks import Question, make_tasks
from tests.explain.conftest import untrained_oracle
from tests.helpers import random_subject
from tests.tasks.made import VOCABULARY

TEXT = "The value is returned by the function"
(A, B, C) = (VOCABULARY.find(f" {word}") for word in ("the", "value", "function"))


def test_every_site_at_every_position_of_every_text(explainer: Explainer) -> None:
    texts = [explainer.read(text) for text in (TEXT, "one two")]
    queries = explainer.queries(texts, ["L1", "components"], "all")
    sites = ["L1", *(f"L{layer}.{part}" for layer in range(6) for part in ("attn", "mlp"))]
    wanted = [
        (number, position, site)
        for number, text in enumerate(texts)
        for position in range(1, len(text.tokens))
        for site in sites
    ]
    assert [(query.text, query.position, str(query.site)) for query in queries] == wanted
    one = explainer.queries(texts[:1], "L2H3", -1)
    assert [(query.position, str(query.site)) for query in one] == [(len(texts[0].tokens) - 1, "L2H3")]


def test_answers_are_what_the_oracle_says_when_asked_alone(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batching over sites, positions and texts changes nothing."""
    monkeypatch.setattr("diff_oracle.explain.answering._MAX_EXPLANATION_TOKENS", 8)
    few = Explainer(explainer.subject, explainer.oracle, batch_size=3)
    texts = [few.read(TEXT), few.read(TEXT + " and then")]
    parts = few.explain(texts, few.queries(texts, ["L0", "L3.mlp"], [-1, 3]))
    items = [item for part in parts for item in part]
    assert len(items) == 8
    for item in items[::3]:
        (diff,) = diffs_of_text(few.subject, texts[item.text].text, [item.site], [item.position])
        assert item.relative_size == pytest.approx(diff.relative_size, rel=1e-4)
        for answer in item.answers:
            if answer.kind == "size":
                chances = few.oracle.choose(diff, answer.question, ["small", "medium", "large"])
                assert answer.answer == max(chances, key=lambda word: chances[word])
            elif answer.kind == "gained":
                assert answer.answer == few.oracle.ask(diff, answer.question, max_new_tokens=9)
        assert item.explanation == few.oracle.ask(diff, FREE_QUESTION, max_new_tokens=8)


def test_claims_of_a_free_explanation_are_checked_on_the_model(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [explainer.read(TEXT)]
    query = explainer.queries(texts, "L2H1", -1)
    monkeypatch.setattr(explainer, "tasks", [])

    def explained(text: str) -> Any:
        monkeypatch.setattr(Reading, "generate", lambda self, rows, *_: [text] * len(rows))
        ((item,),) = explainer.explain(texts, query)
        return item

    item = explained("")
    assert (item.explanation, item.explanation_claims, item.answers) == ("", [], [])
    raised, lowered = item.promoted[0][0], item.suppressed[0][0]
    read = max(item.attended, key=lambda pair: pair[1])[0]
    token = texts[0].tokens[read]
    said = [f"raises:{raised}", f"adds:{lowered}", f"removes:{lowered}", "it does much", f"looks at:{token}"]
    item = explained("\n".join([*said, "reads: only the sink"]))
    assert [(claim.text, claim.right) for claim in item.explanation_claims] == [
        (f"raises:{raised}", True),
        (f"raises:{lowered}", False),
        (f"lowers:{lowered}", True),
        (f"reads:{token}", True),
        ("reads: only the sink", False),
    ]
    assert item.explanation == "\n".join([*said, "reads: only the sink"])


@pytest.mark.parametrize(
    ("said", "right", "score"),
    [
        (" the\n value", [True, True], 1.0),
        (" value\n function", [True, False], 0.5),
        (" function", [False], 0.0),
        ("-the\n the", [False, True], 0.5),
        ("", [], 0.0),
    ],
)
def test_each_token_of_a_list_is_a_claim(said: str, right: list[bool], score: float) -> None:
    (task,) = make_tasks({"logit_lens": {"num_asked": 2}})
    answer = _checked(task, Question("logit_lens", "promoted", "seen", ("Raises?",), (A, "\n", B)), said, VOCABULARY)
    assert ([claim.right for claim in answer.claims], answer.score, answer.right) == (right, score, None)
    assert (answer.measured, answer.question) == (" the\n value", "Raises?")


def test_a_choice_and_words_in_place_of_a_list_are_one_claim() -> None:
    (task,) = make_tasks({"layer_skip": {}})
    size = Question("layer_skip", "size", "seen", ("How much?",), ("small",), (("small",), ("large",)))
    for said, right in (("small", True), ("large", False)):
        answer = _checked(task, size, said, VOCABULARY)
        assert (answer.right, [claim.right for claim in answer.claims], answer.score) == (right, [right], float(right))
    lists = Question("layer_skip", "gained", "seen", ("What gains?",), ("no change",))
    assert [claim.right for claim in _checked(task, lists, "no change", VOCABULARY).claims] == [True]
    assert [claim.right for claim in _checked(task, lists, " the", VOCABULARY).claims] == [False]


@pytest.mark.parametrize(
    ("text", "sites", "positions", "said"),
    [
        ("", "heads", -1, r"text 0 \(''\) has no position to explain"),
        (["a b", ""], "heads", -1, r"text 1 \(''\) has no position"),
        ([], "heads", -1, "nothing to explain"),
        ("a b", [], -1, "nothing to explain"),
        ("a b", "heads", [], "nothing to explain"),
        ("a b", "L9", -1, "site 'L9' is out of range"),
        ("a b", "tails", -1, "unknown site 'tails'"),
        ("a b", "heads", 0, "position 0 is out of range"),
        ("a b", "heads", "some", "positions are token indices or 'all', got 'some'"),
        ("a b", "heads", 1.5, "positions are token indices or 'all', got 1.5"),
        ("a b", "heads", True, "positions are token indices or 'all', got True"),
        ("a " * 5000, "L1", -1, "text 0 has 5002 tokens, but tiny reads at most 1024: shorten it"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    text: Any, sites: Any, positions: Any, said: str, explainer: Explainer
) -> None:
    texts = [explainer.read(part) for part in ([text] if isinstance(text, str) else text)]
    with pytest.raises(ValueError, match=said):
        explainer.queries(texts, sites, positions)


def test_as_many_are_explained_together_as_memory_is_likely_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = untrained_oracle()  # 6 blocks of 4 heads of keys and of values, 32 numbers each
    assert batch_size_for(oracle) == 1024
    monkeypatch.setattr(asking, "_MOST_BYTES", 10 * 256 * 6 * 2 * 4 * 32 * 4)
    assert batch_size_for(oracle) == 10
    monkeypatch.setattr(asking, "_MOST_BYTES", 1)
    assert batch_size_for(oracle) == 1


def test_an_oracle_of_another_model_is_refused(explainer: Explainer) -> None:
    with pytest.raises(ValueError, match=r"the oracle reads tiny .* the subject is random-llama"):
        explain(random_subject(), explainer.oracle, TEXT)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Explainer(explainer.subject, untrained_oracle(), batch_size=0)
