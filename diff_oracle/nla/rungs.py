"""The rungs of the ladder: baselines that know no words, readers in closed form, and what is done to explanations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from diff_oracle.nla.bag import ClaimFeatures
from diff_oracle.nla.codebook import rotated_claims
from diff_oracle.nla.linear import SiteRidge, TokenMeans
from diff_oracle.nla.metrics import Means
from diff_oracle.nla.rows import Claims, Rows, other_documents
from diff_oracle.subject.model import Subject
from diff_oracle.tasks.text import Vocabulary

Rebuilt = Float[np.ndarray, "row d_model"]
DIFF_BLIND = ("site mean", "token mean", "before", "text: AR", "text: explained", "text: prompted")
"""Rungs that never saw the diff."""


class BagReader:
    """The bag-of-words reconstructor: claims in, diffs out; fitted in closed form.

    Args:
        train, select: What is rebuilt; the penalties are chosen on `select`, for each site.
        claims: What is read of the rows of each.
        features: Claims as vectors.
        with_before: Reads the residual before beside the claims, in one regression: its features are scaled to the mean
            square of theirs, so that one penalty shrinks both alike.
    """

    def __init__(
        self,
        train: Rows,
        select: Rows,
        claims: tuple[Sequence[Claims], Sequence[Claims]],
        features: ClaimFeatures,
        with_before: bool = False,
    ) -> None:
        self._features, self._scale = features, 0.0
        claimed = [features(of_split) for of_split in claims]
        if with_before:
            self._scale = float(np.sqrt(np.mean(claimed[0] ** 2) / np.mean(train.before**2)))
        x = [self._x(rows, of_split) for rows, of_split in zip((train, select), claimed, strict=True)]
        self._ridge = SiteRidge(train.sites, x[0], train.target).select(select.sites, x[1], select.target)

    def __call__(self, rows: Rows, claims: Sequence[Claims]) -> Rebuilt:
        """The reconstructions of rows from claims."""
        return self._ridge.predict(rows.sites, self._x(rows, self._features(claims)))

    def _x(self, rows: Rows, claimed: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, "row both"]:
        return np.hstack([claimed, self._scale * rows.before]) if self._scale else claimed


def fit_before(train: Rows, select: Rows) -> SiteRidge:
    """Ridge regression from the residual before: what of a diff the state tells."""
    return SiteRidge(train.sites, train.before, train.target).select(select.sites, select.before, select.target)


def beyond(rows: Rows, before: SiteRidge) -> Rows:
    """The rows with what the state before does not tell as their target."""
    return replace(rows, target=rows.target - before.predict(rows.sites, rows.before))


def blind_rungs(train: Rows, test: Rows, before: SiteRidge) -> dict[str, Rebuilt]:
    """What is rebuilt without words."""
    means = Means.of(train.sites, train.target)
    tokens = TokenMeans(train.sites, train.last_tokens, train.target)
    return {
        "global mean": np.broadcast_to(means.everywhere, test.target.shape),
        "site mean": means.at(test.sites),
        "token mean": tokens.predict(test.sites, test.last_tokens),
        "before": before.predict(test.sites, test.before),
    }


def gold_rungs(
    train: Rows,
    select: Rows,
    test: Rows,
    features: ClaimFeatures,
    subject: Subject,
    vocabulary: Vocabulary,
    seed: int,
) -> tuple[dict[str, Rebuilt], BagReader, BagReader]:
    """What the measured claims carry for a bag-of-words reader, and what a meaningless codebook carries.

    Returns:
        The rungs, and the readers of measured claims: without and with the residual before.
    """
    gold = train.gold, select.gold
    rotated = [rotated_claims(rows.records, rows.gold, subject, vocabulary, seed) for rows in (train, select, test)]
    plain, with_before = (BagReader(train, select, gold, features, both) for both in (False, True))
    codes, codes_with_before = (
        BagReader(train, select, (rotated[0], rotated[1]), features, both) for both in (False, True)
    )
    rungs = {
        "gold: bag": plain(test, test.gold),
        "gold: bag, before": with_before(test, test.gold),
        "rotated_codebook: bag": codes(test, rotated[2]),
        "rotated_codebook: bag, before": codes_with_before(test, rotated[2]),
    }
    for name, alter in ALTERED.items():
        rungs[f"gold, {name}: bag"] = plain(test, alter(test, test.gold, seed))
    return rungs, plain, with_before


def shuffled(rows: Rows, claims: Sequence[Claims], seed: int) -> list[Claims]:
    """Another row's claims, of the same site."""
    return [claims[i] for i in other_documents(rows.records, seed)]


def empty(rows: Rows, claims: Sequence[Claims], seed: int) -> list[Claims]:
    """None at all."""
    return [[] for _ in claims]


def without_quotes(rows: Rows, claims: Sequence[Claims], seed: int) -> list[Claims]:
    """Without those that name a token of the context."""
    contexts = [set(record.token_ids) for record in rows.records]
    return [[c for c in row if c.said not in context] for row, context in zip(claims, contexts, strict=True)]


def only_quotes(rows: Rows, claims: Sequence[Claims], seed: int) -> list[Claims]:
    """Nothing but those that name a token of the context."""
    contexts = [set(record.token_ids) for record in rows.records]
    return [[c for c in row if c.said in context] for row, context in zip(claims, contexts, strict=True)]


ALTERED: dict[str, Callable[[Rows, Sequence[Claims], int], list[Claims]]] = {
    "shuffled": shuffled,
    "empty": empty,
    "quotes stripped": without_quotes,
    "quotes only": only_quotes,
}
"""What is done to explanations before they are read. A bag reader does not see order and wording."""
