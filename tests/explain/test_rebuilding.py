"""A pair explains: what is rebuilt from its words, and how much of a diff these carried."""

from typing import Any

import numpy as np
import pytest

from diff_oracle.explain import Explainer, Explanation, explain
from diff_oracle.nla import DiffNLA
from diff_oracle.nla.pair import longest_explanation
from diff_oracle.nla.reconstructor import Reconstructor
from diff_oracle.oracle.reading import Reading
from diff_oracle.subject.capture import diffs_of_text
from diff_oracle.tasks.explanation import ExplanationConfig
from tests.explain.conftest import untrained_pair

TEXT = "The value is returned by the function"
SITES, POSITIONS = ["L0", "L2H1", "L4.mlp"], [-1, 3]
SAID = ["raises: the\nlowers: value", "raises: function\nit is what it is", "nothing that could be checked"]


@pytest.fixture(scope="module")
def pair(explainer: Explainer) -> DiffNLA:
    return untrained_pair(explainer.oracle)


def say(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> list[int]:
    """Makes the oracle say these words, over and over; returns how many tokens it was allowed, call by call."""
    allowed = []

    def generate(self: Reading, rows: Any, question: Any, most: int) -> list[str]:
        allowed.append(most)
        return [texts[row % len(texts)] for row in rows]

    monkeypatch.setattr(Reading, "generate", generate)
    return allowed


def explained(explainer: Explainer, pair: DiffNLA, **options: Any) -> list[Explanation]:
    return explain(explainer.subject, pair, TEXT, SITES, POSITIONS, tasks=[], **options).items


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt(np.mean(vector.astype(np.float64) ** 2))


def test_numbers_are_those_of_the_pair_s_own_reconstruction(
    explainer: Explainer, pair: DiffNLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, SAID)
    for item in explained(explainer, pair):
        (diff,) = diffs_of_text(explainer.subject, TEXT, [item.site], [item.position])
        assert item.explanation is not None and item.rebuilt is not None
        rebuilt, nothing = (pair.reconstruct(text, item.site) for text in (item.explanation, ""))
        goal, got = unit(diff.diff), item.rebuilt
        shares = [1 - ((goal - p) ** 2).sum() / (goal**2).sum() for p in (rebuilt, nothing)]
        assert (got.share, got.without_words) == pytest.approx(shares, rel=1e-3, abs=1e-4)
        cosine = goal @ rebuilt / np.linalg.norm(goal) / np.linalg.norm(rebuilt)
        assert got.cosine == pytest.approx(cosine, rel=1e-3, abs=1e-4)
        carried = shares[0] - max(0.0, shares[1]) if item.explanation_claims else 0.0
        assert got.carried == pytest.approx(carried, rel=1e-3, abs=1e-4)
    together, apart = (explained(explainer, pair, batch_size=size) for size in (6, 3))
    for one, other in zip(together, apart, strict=True):
        assert one.rebuilt is not None and other.rebuilt is not None
        assert one.rebuilt.share == pytest.approx(other.rebuilt.share, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("size", "wordless", "share", "without_words", "carried"),
    [
        (1.0, 0.0, 1.0, 0.0, 1.0),
        (0.5, 0.0, 0.75, 0.0, 0.75),
        (-1.0, 0.0, -3.0, 0.0, -3.0),
        (1.0, 0.5, 1.0, 0.75, 0.25),  # what the site alone gives away is not the words'
        (0.5, 1.0, 0.75, 1.0, -0.25),
        (0.5, -1.0, 0.75, -3.0, 0.75),  # a reader that is lost without words makes them carry no more
        (0.0, 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_words_carry_what_they_give_back_beyond_none(
    explainer: Explainer, pair: DiffNLA, monkeypatch: pytest.MonkeyPatch,
    size: float, wordless: float, share: float, without_words: float, carried: float,
) -> None:  # fmt: skip
    """A reader that gives the diff itself at some size, and at another one where there are no words."""
    say(monkeypatch, SAID[:1])

    def reconstruct(self: Reconstructor, diffs: Any, texts: Any) -> np.ndarray:
        sizes = [size if text else wordless for text in texts]
        return np.stack([scale * unit(diff.diff) for scale, diff in zip(sizes, diffs, strict=True)])

    monkeypatch.setattr(Reconstructor, "reconstruct", reconstruct)
    for item in explained(explainer, pair):
        assert item.rebuilt is not None
        numbers = item.rebuilt.share, item.rebuilt.without_words, item.rebuilt.carried, item.rebuilt.cosine
        assert numbers == pytest.approx((share, without_words, carried, np.sign(size)), abs=1e-6)
        if size:
            ends = [token for token, _ in item.promoted][:5], [token for token, _ in item.suppressed][:5]
            assert (item.rebuilt.promoted, item.rebuilt.suppressed) == (ends if size > 0 else ends[::-1])


def test_a_pair_has_room_for_its_claims_and_its_own_thresholds(
    explainer: Explainer, pair: DiffNLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = say(monkeypatch, ["reads: the\nreads: is\nreads: value\nreads: by\nreads: returned"])
    right = [claim.right for item in explained(explainer, pair) for claim in item.explanation_claims]
    assert set(allowed) == {longest_explanation(pair.config)}
    assert any(right)
    strict = DiffNLA(pair.av, pair.ar, ExplanationConfig(min_share=1.0))
    assert not any(claim.right for item in explained(explainer, strict) for claim in item.explanation_claims)
    assert "min_share=1.0" in Explainer(explainer.subject, strict).conventions["settings of explanation claims"]
    assert "carried" in Explainer(explainer.subject, strict).conventions
    assert "carried" not in explainer.conventions


def test_what_rebuilds_no_diffs_is_refused(
    explainer: Explainer, pair: DiffNLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="without a free question"):
        Explainer(explainer.subject, pair, free_question=None)
    monkeypatch.setattr(pair.ar.config, "target", "residual")
    with pytest.raises(ValueError, match="rebuilds the residual of ridge regression .* trained with ar.target=diff"):
        Explainer(explainer.subject, pair)


def test_an_oracle_alone_rebuilds_nothing(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, SAID)
    items = explain(explainer.subject, explainer.oracle, TEXT, "L1").items
    assert [item.rebuilt for item in items] == [None] and items[0].explanation == SAID[0]
