"""What the explanations of a site have in common, counted by hand."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from diff_oracle.explain.explanations import Answer, Claim, Explanation
from diff_oracle.explain.summary import CommonClaim, summarise
from tests.explain import made
from tests.explain.made import TOKENS, make_explanations, make_rebuilt, make_text


def raised(said: list[str], measured: list[str]) -> Answer:
    claims = [Claim(token, token in measured) for token in said]
    share = len(set(said) & set(measured)) / len(measured)
    return Answer("logit_lens", "promoted", "Raises?", "\n".join(said), "\n".join(measured), None, share, claims)


def make_explanation(text: int, position: int, site: str, **changes: Any) -> Explanation:
    """One that answers questions and says nothing of its own accord."""
    return made.make_explanation(text, position, site, **{"explanation": None, "explanation_claims": [], **changes})


ITEMS = [
    make_explanation(0, 2, "L0H1", answers=[raised(["a", "b"], ["a", "c"])], relative_size=0.1, direct_effect=-4.0),
    make_explanation(0, 7, "L0H1", answers=[raised(["a"], ["a", "b"])], relative_size=0.3, direct_effect=1.0),
    make_explanation(1, 3, "L0H1", answers=[raised(["a", "d"], ["b", "d"])], relative_size=0.2, direct_effect=-1.0),
]
MADE = replace(make_explanations(), texts=[make_text(TOKENS), make_text(TOKENS)], items=ITEMS)


def test_claims_are_counted_and_compared_with_other_texts() -> None:
    summary = summarise(MADE, "L0H1")
    assert (summary.num_texts, summary.num_explained) == (2, 3)
    assert summary.means["size"] == pytest.approx(0.2)
    assert summary.means["direct_effect"] == pytest.approx(2.0)
    (question,) = summary.questions
    assert (question.kind, question.num_asked, question.num_claims, question.right) == ("promoted", 3, 5, 3 / 5)
    assert question.score == pytest.approx((0.5 + 0.5 + 0.5) / 3)
    assert question.common[0] == CommonClaim("a", said=3, right=2, measured=2)
    assert CommonClaim("b", said=1, right=0, measured=2) in question.common
    # a, b of the first text against {b, d}: 1 of 2; a against {b, d}: 0 of 1; a, d against {a, c} and {a, b}: 2 of 4.
    assert question.right_elsewhere == pytest.approx(3 / 7)


def test_examples_are_the_strongest() -> None:
    summary = summarise(MADE, "L0H1", most=2)
    assert [(example.text, example.position, example.size) for example in summary.examples] == [
        (0, 7, 0.3),
        (1, 3, 0.2),
    ]
    first = summary.examples[0]
    assert (first.before, first.token) == ("The cat sat on the mat", ".")
    assert (first.answers, first.measured) == ({"promoted": "a"}, {"promoted": "a\nb"})
    assert summarise(MADE, "L0H1", "direct_effect").examples[0].size == -4.0
    assert len(summary.questions[0].common) == 2


def test_a_single_text_has_no_other() -> None:
    summary = summarise(replace(MADE, items=ITEMS[:2]), "L0H1")
    assert summary.questions[0].right_elsewhere is None
    silent = replace(MADE, items=[make_explanation(0, 2, "L0H1", answers=[raised([], ["a"])])])
    question = summarise(silent, "L0H1").questions[0]
    assert (question.right, question.right_elsewhere, question.common, question.score) == (None, None, [], 0.0)
    assert asdict(summarise(silent, "L0H1"))["examples"][0]["answers"] == {"promoted": ""}
    with pytest.raises(ValueError, match="no explanation of L0H1: give more texts"):
        summarise(replace(MADE, items=[]), "L0H1")


def test_free_explanations_are_counted_too() -> None:
    said = [[("raises: a", True), ("reads: b", False)], [("raises: a", False)], []]
    items = [
        replace(item, explanation="some words", explanation_claims=[Claim(*claim) for claim in claims])
        for item, claims in zip(ITEMS, said, strict=True)
    ]
    items.append(make_explanation(1, 4, "L0H1", answers=[], relative_size=0.01))
    summary = summarise(replace(MADE, items=items), "L0H1")
    asked, free = summary.questions
    assert (asked.num_asked, asked.num_claims) == (3, 5)
    assert (free.kind, free.num_asked, free.num_claims, free.right) == ("free", 3, 3, 1 / 3)
    assert (free.score, free.right_elsewhere) == (None, None)
    assert free.common == [CommonClaim("raises: a", 2, 1, None), CommonClaim("reads: b", 1, 0, None)]
    assert [example.answers.get("free") for example in summary.examples] == ["some words"] * 3 + [None]


def test_what_words_carried_is_averaged_over_places() -> None:
    assert summarise(MADE, "L0H1").rebuilt == {}
    items = [replace(item, rebuilt=make_rebuilt(carried)) for item, carried in zip(ITEMS, (0.3, 0.0, 0.6), strict=True)]
    assert summarise(replace(MADE, items=items), "L0H1").rebuilt["carried"] == pytest.approx(0.3)
