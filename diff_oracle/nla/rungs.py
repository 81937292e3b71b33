"""The rungs of the ladder: baselines that know no words, readers in closed form, and what is done to explanations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from diff_oracle.nla.bag import ClaimFeatures
from diff_oracle.nla.codebook import rotated_claims
from diff_oracle.nla.linear import SiteRidge, TokenMeans, rows_by_site
from diff_oracle.nla.metrics import Means
from diff_oracle.nla.rows import Claims, Rows, other_documents
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite
from diff_oracle.tasks.text import Vocabulary
from diff_oracle.tasks.usual import best_constant

Rebuilt = Float[np.ndarray, "row d_model"]

DIFF_BLIND = ("site mean", "token mean", "before", "site habit: bag", "text: AR", "text: explained", "text: prompted")
"""Rungs that never saw the diff."""

STATE_SCALES = (0.3, 1.0, 3.0)
"""How large the state may be read beside claims, in root mean squares of theirs."""


class BagReader:
    """The bag-of-words reconstructor: claims in, diffs out; fitted in closed form.

    Args:
        train, select: What is rebuilt; the penalties are chosen on `select`, for each site.
        claims: What is read of the rows of each.
        features: Claims as vectors.
        with_before: Reads the residual before beside the claims, in one regression, whose penalty shrinks the smaller
            features more. The residual's mean square is theirs times the square of one of `STATE_SCALES`, whichever
            does better on `select` for the kind of site: of a layer's diff the state tells more than words do, of a
            head's less.
    """

    def __init__(
        self,
        train: Rows,
        select: Rows,
        claims: tuple[Sequence[Claims], Sequence[Claims]],
        features: ClaimFeatures,
        with_before: bool = False,
    ) -> None:
        self._features = features
        claimed, asked = (features(of_split) for of_split in claims)
        unit = float(np.sqrt(np.mean(claimed**2) / np.mean(train.before**2))) if with_before else 0.0
        self._scales = [unit * scale for scale in STATE_SCALES] if with_before else [0.0]
        self._readers = [
            SiteRidge(train.sites, _beside(claimed, scale, train), train.target).select(
                select.sites, _beside(asked, scale, select), select.target
            )
            for scale in self._scales
        ]
        self._best: dict[str, int] = {}
        if with_before:
            tried = [self._read(i, select, asked) for i in range(len(self._scales))]
            errors = np.array([np.sum((rebuilt - select.target) ** 2, axis=1) for rebuilt in tried])
            kinds = np.array(_kinds(select))
            self._best = {kind: int(errors[:, kinds == kind].sum(axis=1).argmin()) for kind in np.unique(kinds)}

    def __call__(self, rows: Rows, claims: Sequence[Claims]) -> Rebuilt:
        """The reconstructions of rows from claims."""
        claimed = self._features(claims)
        chosen = np.array([self._best.get(kind, 0) for kind in _kinds(rows)])
        tried = [self._read(i, rows, claimed) for i in range(len(self._scales))]
        return np.select([chosen[:, None] == i for i in range(len(tried))], tried)

    def _read(self, i: int, rows: Rows, claimed: Float[np.ndarray, "row feature"]) -> Rebuilt:
        return self._readers[i].predict(rows.sites, _beside(claimed, self._scales[i], rows))


def _beside(claimed: Float[np.ndarray, "row feature"], scale: float, rows: Rows) -> Float[np.ndarray, "row both"]:
    return np.hstack([claimed, scale * rows.before]) if scale else claimed


def _kinds(rows: Rows) -> list[str]:
    return [DiffSite.parse(site).group for site in rows.sites]


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
) -> tuple[dict[str, Rebuilt], BagReader, BagReader, BagReader]:
    """What the measured claims carry for a bag-of-words reader, and what a meaningless codebook carries.

    Returns:
        The rungs; the readers of measured claims, without and with the residual before; and that of the codebook.
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
    return rungs, plain, with_before, codes


def site_habit(train: Rows, rows: Rows) -> list[Claims]:
    """For each row what explains its site's training rows best, whatever its own diff does."""
    most = max(map(len, train.gold))
    usual = {site: best_constant([train.gold[i] for i in of_site], most) for site, of_site in rows_by_site(train.sites)}
    everywhere = best_constant(train.gold, most)
    return [list(usual.get(site, everywhere)) for site in rows.sites]


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
