"""What the explanations of one site have in common, over many texts. Behind explanations, before what people read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from diff_oracle.explain.explanations import RANKS, Answer, Claim, Explanation, Explanations
from diff_oracle.tasks.text import parse_token_list

EXPLANATION, FREE, OWN_WORDS = "explanation", "free", "in its own words"
_AROUND = 12  # tokens of an example's context


@dataclass(frozen=True)
class CommonClaim:
    """One thing that the oracle says of a site again and again."""

    text: str
    said: int
    """Explanations that claim it."""
    right: int
    """Those where it is right."""
    measured: int | None
    """Explanations where it is measured, claimed or not; None for a claim of a free explanation."""


@dataclass(frozen=True)
class QuestionSummary:
    """How a site's answers to one question, or its free explanations, agree with what was measured."""

    task: str
    kind: str
    question: str
    num_asked: int
    score: float | None
    """The mean of the task's scores; None for free explanations, which only their claims are checked of."""
    num_claims: int
    right: float | None
    """The share of right claims; None where nothing was claimed."""
    right_elsewhere: float | None
    """The share that would be right if they were said of another text: what the site's habit alone gives. None where
    there is no other text, and for free explanations."""
    common: list[CommonClaim]
    """The commonest claims first."""


@dataclass(frozen=True)
class Example:
    """One place where the site is strong."""

    text: int
    position: int
    before: str
    """The tokens before the position."""
    token: str
    size: float
    """What examples are ranked by."""
    next_token: str
    answers: dict[str, str]
    """What the oracle says, by kind of question; the free explanation, where there is one, as `free`."""
    measured: dict[str, str]
    """The right answers; there is none to `free`."""


@dataclass(frozen=True)
class SiteSummary:
    """One site over many texts."""

    site: str
    num_texts: int
    num_explained: int
    means: dict[str, float]
    """The mean size of each thing that explanations are ranked by, whatever its sign."""
    rank: str
    questions: list[QuestionSummary]
    examples: list[Example]
    rebuilt: dict[str, float]
    """Means of what a pair rebuilt from the free explanations (`Reconstruction`); empty where no pair explained."""


def summarise(explanations: Explanations, site: str, rank: str = "size", most: int = 8) -> SiteSummary:
    """What the explanations of a site have in common, where it is strongest, and how far they are right.

    Args:
        explanations: All of one site.
        site: Its name.
        rank: What counts as strong (`RANKS`).
        most: Common claims of each question, and examples.

    Raises:
        ValueError: There is none, or they cannot be ranked by this.
    """
    items = explanations.ranked(rank)
    if not items:
        raise ValueError(f"no explanation of {site}: give more texts")
    kinds: dict[tuple[str, str], list[tuple[int, Answer]]] = defaultdict(list)
    for item in explanations.items:
        for answer in item.answers:
            kinds[answer.task, answer.kind].append((item.text, answer))
    questions = [_question(answers, most) for answers in kinds.values()]
    if free := [item for item in explanations.items if item.explanation is not None]:
        questions.append(_in_own_words(free, most))
    sizes = {name: [abs(getattr(item, field)) for item in items] for name, field in RANKS.items()}
    return SiteSummary(
        site,
        len({item.text for item in items}),
        len(items),
        {name: sum(values) / len(values) for name, values in sizes.items()},
        rank,
        questions,
        [_example(explanations, item, rank) for item in items[:most]],
        explanations.rebuilt,
    )


def _question(asked: Sequence[tuple[int, Answer]], most: int) -> QuestionSummary:
    answers = [answer for _, answer in asked]
    claims = [claim for answer in answers for claim in answer.claims]
    measured = Counter(line for answer in answers for line in _wanted(answer))
    first = answers[0]
    return QuestionSummary(
        first.task,
        first.kind,
        first.question,
        len(answers),
        sum(answer.score or 0.0 for answer in answers) / len(answers),
        len(claims),
        _share_right(claims),
        _elsewhere(asked),
        _common(claims, most, measured),
    )


def _in_own_words(items: Sequence[Explanation], most: int) -> QuestionSummary:
    """The same of free explanations. What else is true at a place is not written down, so nothing is said of it."""
    claims = [claim for item in items for claim in item.explanation_claims]
    share, common = _share_right(claims), _common(claims, most)
    return QuestionSummary(EXPLANATION, FREE, OWN_WORDS, len(items), None, len(claims), share, None, common)


def _share_right(claims: Sequence[Claim]) -> float | None:
    return sum(claim.right for claim in claims) / len(claims) if claims else None


def _common(claims: Sequence[Claim], most: int, measured: Counter[str] | None = None) -> list[CommonClaim]:
    said = Counter(claim.text for claim in claims)
    right = Counter(claim.text for claim in claims if claim.right)
    return [
        CommonClaim(text, number, right[text], None if measured is None else measured[text])
        for text, number in said.most_common(most)
    ]


def _elsewhere(asked: Sequence[tuple[int, Answer]]) -> float | None:
    """The share of claims that are right of every other text's places, on average; None where there is no other."""
    wanted = [(text, set(_wanted(answer))) for text, answer in asked]
    right = total = 0
    for text, answer in asked:
        for other, lines in wanted:
            if other != text:
                right += sum(claim.text in lines for claim in answer.claims)
                total += len(answer.claims)
    return right / total if total else None


def _wanted(answer: Answer) -> list[str]:
    return parse_token_list(answer.measured)


def _example(explanations: Explanations, item: Explanation, rank: str) -> Example:
    tokens = explanations.texts[item.text].tokens
    free = {} if item.explanation is None else {FREE: item.explanation}
    return Example(
        item.text,
        item.position,
        "".join(tokens[max(1, item.position - _AROUND) : item.position]),
        tokens[item.position],
        getattr(item, RANKS[rank]),
        item.next_token,
        {answer.kind: answer.answer for answer in item.answers} | free,
        {answer.kind: answer.measured for answer in item.answers},
    )
