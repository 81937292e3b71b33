"""What a site usually does, and questions that knowing it does not answer. Shared by the tasks.

A question about one token of two wants a wrong token that is as plausible as the right one. `draw_pair` draws both by
how often the site's training rows hold them, so that this alone does not tell which is which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from diff_oracle.tasks.base import Phrasing, Question
from diff_oracle.tasks.text import Text, parse_token_list

NO = "no"
Named = TypeVar("Named", bound=Hashable)
PRIOR_ROWS = 8  # what a site's own rows must outweigh


@dataclass(frozen=True)
class Usual:
    """What the training rows of a site hold."""

    commonest: tuple[int, ...]
    """The tokens oftenest among a row's first `num_asked`."""
    tokens: Int[np.ndarray, "token"]
    """Every token of some row, in ascending order."""
    shares: Float[np.ndarray, "token"]
    """The share of rows that hold it, among those that could."""
    otherwise: float = 0.0
    """The share of a token that no row could hold."""

    @classmethod
    def of(cls, lists: Sequence[Int[np.ndarray, "_"]], num_asked: int) -> Usual:
        """Counts rows' token lists, each of which could hold any token."""
        tokens, counts = _count(lists)
        asked, often = _count([row[:num_asked] for row in lists])
        best = asked[np.argsort(-often, kind="stable")[:num_asked]]
        return cls(tuple(best.tolist()), tokens, counts / len(lists))

    @classmethod
    def within(cls, lists: Sequence[Int[np.ndarray, "_"]], contexts: Sequence[Int[np.ndarray, "_"]]) -> Usual:
        """Counts rows' token lists, each of which could only hold the tokens of its context, listed once each.

        Most tokens stand in few contexts, so that shares are drawn towards their mean, as by `PRIOR_ROWS` more rows.
        """
        tokens, chances = _count(contexts)
        counts = np.zeros(len(tokens))
        held, times = _count(lists)
        counts[np.searchsorted(tokens, held)] = times
        mean = counts.sum() / chances.sum() if len(tokens) else 0.5
        return cls((), tokens, (counts + PRIOR_ROWS * mean) / (chances + PRIOR_ROWS), float(mean))

    def share(self, wanted: Sequence[int] | Int[np.ndarray, "wanted"]) -> Float[np.ndarray, "wanted"]:
        """The share of rows that hold each wanted token, among those that could."""
        return look_up(self.tokens, self.shares, wanted, self.otherwise)


def look_up(
    keys: Int[np.ndarray, "key"],
    values: Float[np.ndarray, "key"],
    wanted: Sequence[int] | Int[np.ndarray, "wanted"],
    otherwise: float,
) -> Float[np.ndarray, "wanted"]:
    """The value of each wanted key, or `otherwise`; keys are in ascending order."""
    if not len(keys):
        return np.full(len(wanted), otherwise)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == np.asarray(wanted), values[place], otherwise)


def _count(lists: Sequence[Int[np.ndarray, "_"]]) -> tuple[Int[np.ndarray, "token"], Int[np.ndarray, "token"]]:
    """The tokens of all lists, in ascending order, and how often each stands there."""
    tokens, counts = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *lists]), return_counts=True)
    return tokens, counts


def draw_pair(
    right: Sequence[int], usual: Usual | None, rng: np.random.Generator, barred: Sequence[int] = ()
) -> tuple[int, int] | None:
    """One of the `right` tokens, and another that the site often has; None where the training rows offer no such pair.

    Let s be the share of the site's rows that hold a token. The first is drawn with weight 1 − s, the second with
    weight s: over rows, a token is right with weight s (1 − s) and wrong with weight (1 − s) s, so s does not tell
    which; estimated from few rows, it tells a little.

    Args:
        right: What the row holds.
        usual: What the site's training rows hold; None for a site that they lack.
        rng: Where draws come from.
        barred: Tokens that may not be the second.
    """
    if usual is None or not len(right):
        return None
    shares = usual.share(right)
    # A token that the site never had could only be right, never wrong: it is not asked.
    first = np.where(shares > 0, 1 - shares, 0.0)
    second = np.where(np.isin(usual.tokens, [*right, *barred]), 0.0, usual.shares)
    if not (first.any() and second.any()):
        return None
    drawn = rng.choice(right, p=first / first.sum())
    return int(drawn), int(rng.choice(usual.tokens, p=second / second.sum()))


def pair_phrasings(lists: Mapping[Phrasing, tuple[str, ...]]) -> dict[str, dict[Phrasing, tuple[str, ...]]]:
    """The wordings of `yes_no` and `choice`: what there is to choose from, and then the words that ask for a list.

    So both end as the list's question does, and what has learned to name a list's tokens answers here too.
    """
    offers = {"yes_no": f'"{{0}}" or {NO}.', "choice": '"{0}" or "{1}".'}
    return {
        kind: {phrasing: tuple(f"{offer} {words}" for words in wordings) for phrasing, wordings in lists.items()}
        for kind, offer in offers.items()
    }


def pair_question(
    task: str, kind: str, phrasing: Phrasing, wording: str, pair: tuple[int, int], rng: np.random.Generator
) -> Question:
    """`yes_no`, whether it is one of the pair, or `choice`, which of the two it is; the pair's first is right.

    Yes is said by repeating the token.
    """
    right, wrong = pair
    right_first = bool(rng.integers(2))
    if kind == "yes_no":
        token, answer = (right, (right,)) if right_first else (wrong, (NO,))
        return Question(task, kind, phrasing, fill(wording, token), answer, ((token,), (NO,)))
    shown = (right, wrong) if right_first else (wrong, right)
    return Question(task, kind, phrasing, fill(wording, *shown), (right,), tuple((token,) for token in shown))


def pair_prior(question: Question, usual: Usual) -> Text:
    """What a site's usual tokens say of a pair question: by how often its training rows hold the token."""
    tokens = [piece for piece in question.text if isinstance(piece, int)]
    shares = usual.share(tokens)
    if question.kind == "yes_no":
        return (tokens[0] if shares[0] > 0.5 else NO,)
    return (tokens[int(shares.argmax())],)


def best_constant(answers: Sequence[Sequence[Named]], most: int) -> tuple[Named, ...]:
    """The list that scores best as every row's answer: some of what is named oftenest, or nothing.

    An empty list stands for the words that a row without tokens is answered with.
    """
    counts = Counter(token for answer in answers for token in answer)
    ranked = [token for token, _ in counts.most_common(most)]
    rank = {token: place for place, token in enumerate(ranked)}
    scores = [0.0] * (len(ranked) + 1)  # of naming so many
    for answer in answers:
        named_at = {rank[token] for token in answer if token in rank}
        scores[0] += not answer
        right = 0
        for length in range(1, len(scores)):
            right += length - 1 in named_at
            scores[length] += right / max(length, len(answer))
    return tuple(ranked[: scores.index(max(scores))])


def overlap(named: Sequence[object], wanted: Sequence[object]) -> float:
    """The share of right names, among all that are named or wanted, whichever are more; two empty lists agree."""
    return len(set(named) & set(wanted)) / max(len(named), len(wanted)) if named or wanted else 1.0


def score_list(answer: str, gold: str, words: str) -> float:
    """The overlap of two lists of tokens in canonical form; `words`, the answer without tokens, is right or wrong."""
    named, wanted = parse_token_list(answer), parse_token_list(gold)
    return float(named == wanted) if words in (gold, *named) else overlap(named, wanted)


def fill(wording: str, *tokens: int) -> Text:
    """The wording with its {0} and {1} replaced by token ids."""
    text: list[str | int] = [wording]
    for index, token in enumerate(tokens):
        before, after = str(text[-1]).split(f"{{{index}}}")
        text[-1:] = [before, token, after]
    return tuple(text)


def draw_wording(wordings: tuple[str, ...], rng: np.random.Generator) -> str:
    """One of them."""
    return wordings[rng.integers(len(wordings))]
