"""Closed forms equal textbook computations."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from diff_oracle.nla import rungs
from diff_oracle.nla.bag import ClaimFeatures
from diff_oracle.nla.linear import PENALTIES, SiteRidge, TokenMeans
from diff_oracle.nla.metrics import Means
from diff_oracle.nla.rows import Rows
from diff_oracle.nla.rungs import STATE_SCALES, BagReader, beyond, blind_rungs, fit_before, shuffled, site_habit
from diff_oracle.subject.sites import DiffSite
from diff_oracle.tasks.claims import NO_CHANGE, Claim
from tests.nla.made import EMBEDDING, SITES, WIDTH, made_rows

TRAIN, SELECT, TEST = (made_rows(number, seed) for seed, number in enumerate((400, 120, 120)))


def test_each_site_is_ridge_regression_with_the_best_penalty() -> None:
    features = ClaimFeatures(EMBEDDING)
    x = [features(rows.gold) for rows in (TRAIN, SELECT, TEST)]
    found = SiteRidge(TRAIN.sites, x[0], TRAIN.target).select(SELECT.sites, x[1], SELECT.target)
    predicted = found.predict(TEST.sites, x[2])
    for site in SITES:
        of = [np.array(rows.sites) == site for rows in (TRAIN, SELECT, TEST)]
        centred = x[0][of[0]] - x[0][of[0]].mean(axis=0)
        scale = np.sum(centred**2) / centred.shape[1]
        slow = [Ridge(alpha=p * scale, solver="cholesky").fit(x[0][of[0]], TRAIN.target[of[0]]) for p in PENALTIES]
        errors = [np.mean((model.predict(x[1][of[1]]) - SELECT.target[of[1]]) ** 2) for model in slow]
        best = slow[int(np.argmin(errors))]
        np.testing.assert_allclose(predicted[of[2]], best.predict(x[2][of[2]]), atol=1e-6)


def test_a_site_without_rows_is_read_by_all_sites_together() -> None:
    features = ClaimFeatures(EMBEDDING)
    x = features(TRAIN.gold)
    found = SiteRidge(TRAIN.sites, x, TRAIN.target).select(SELECT.sites, features(SELECT.gold), SELECT.target)
    strange = found.predict(["L9"] * 5, x[:5])
    pooled = SiteRidge(["one"] * len(TRAIN), x, TRAIN.target)
    pooled.select(["one"] * len(SELECT), features(SELECT.gold), SELECT.target)
    assert strange.shape == (5, WIDTH)
    assert np.isfinite(strange).all()
    assert not np.allclose(strange, found.predict(TRAIN.sites[:5], x[:5]))


def test_token_means_by_hand() -> None:
    y = np.array([[1.0], [3.0], [8.0], [10.0]])
    means = TokenMeans(["a", "a", "a", "b"], [7, 7, 9, 7], y, weight=2.0)
    np.testing.assert_allclose(means.predict(["a"], [7]), [[(1 + 3 + 2 * 4) / 4]])
    np.testing.assert_allclose(means.predict(["a"], [5]), [[4.0]])
    np.testing.assert_allclose(means.predict(["c"], [7]), [[5.5]])


def test_features_are_sums_of_unit_embeddings_by_kind() -> None:
    features = ClaimFeatures(EMBEDDING)
    row = features([[Claim("raises", 3), Claim("raises", 4), Claim("reads", 3), Claim("skipped", NO_CHANGE)]])[0]
    centred = EMBEDDING - EMBEDDING.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    raised, lowered, read, skipped = row[: 4 * WIDTH].reshape(4, WIDTH)
    np.testing.assert_allclose(raised, unit[3] + unit[4])
    np.testing.assert_allclose(read, unit[3])
    assert not lowered.any() and not skipped.any()
    assert row[4 * WIDTH :].tolist() == [0.0, 1.0]
    assert not features([[]]).any()


@pytest.mark.parametrize("conditioned", [False, True])
def test_a_bag_reader_rebuilds_what_the_claims_make_and_nothing_from_others(conditioned: bool) -> None:
    before = fit_before(TRAIN, SELECT)
    blind = blind_rungs(TRAIN, TEST, before)
    gold = TRAIN.gold, SELECT.gold
    reader = BagReader(TRAIN, SELECT, gold, ClaimFeatures(EMBEDDING), conditioned)
    mean = Means.of(TRAIN.sites, TRAIN.target).at(TEST.sites)

    def fve(rebuilt: np.ndarray) -> float:
        return 1 - float(((rebuilt - TEST.target) ** 2).sum() / ((mean - TEST.target) ** 2).sum())

    assert fve(reader(TEST, TEST.gold)) > 0.85
    assert fve(reader(TEST, shuffled(TEST, TEST.gold, 0))) < -0.3
    assert fve(reader(TEST, [[] for _ in TEST.gold])) == pytest.approx(0, abs=0.1)
    assert fve(blind["site mean"]) == 0.0
    assert fve(blind["before"]) < 0.1  # the residual before was drawn at random


def test_claims_and_the_residual_before_are_read_in_one_regression() -> None:
    state = np.random.default_rng(0).standard_normal((WIDTH, WIDTH))
    train, select, test = (replace(r, target=r.target + 0.1 * r.before @ state) for r in (TRAIN, SELECT, TEST))
    features = ClaimFeatures(EMBEDDING)
    found = BagReader(train, select, (train.gold, select.gold), features, True)(test, test.gold)
    x = [features(rows.gold) for rows in (train, select, test)]
    unit = np.sqrt(np.mean(x[0] ** 2) / np.mean(train.before**2))
    errors: dict[str, list[float]] = {}
    tried = []
    for scale in STATE_SCALES:
        rebuilt = np.empty_like(test.target)
        for site in SITES:
            of = [np.array(rows.sites) == site for rows in (train, select, test)]
            both = [
                np.hstack([claimed, scale * unit * rows.before])[mask]
                for claimed, rows, mask in zip(x, (train, select, test), of, strict=True)
            ]
            alpha = np.sum((both[0] - both[0].mean(axis=0)) ** 2) / both[0].shape[1]
            of_site = []
            for penalty in PENALTIES:
                slow = Ridge(alpha=penalty * alpha, solver="cholesky").fit(both[0], train.target[of[0]])
                error = np.sum((slow.predict(both[1]) - select.target[of[1]]) ** 2)
                of_site.append((error, slow.predict(both[2])))
            error, rebuilt[of[2]] = min(of_site, key=lambda one: one[0])
            errors.setdefault(site, []).append(error)
        tried.append(rebuilt)
    for site in SITES:
        like_it = [errors[other] for other in SITES if DiffSite.parse(other).group == DiffSite.parse(site).group]
        rows_of_site = np.array(test.sites) == site
        expected = tried[int(np.sum(like_it, axis=0).argmin())]
        np.testing.assert_allclose(found[rows_of_site], expected[rows_of_site], atol=1e-6)

    def far(rebuilt: np.ndarray) -> float:
        return float(((rebuilt - test.target) ** 2).sum())

    alone = BagReader(train, select, (train.gold, select.gold), features)(test, test.gold)
    told = fit_before(train, select).predict(test.sites, test.before)
    assert far(found) < 0.7 * min(far(alone), far(told))


def test_of_each_kind_of_site_the_state_is_read_as_large_as_select_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words make the diffs of heads, the state makes those of layers."""
    state = np.random.default_rng(0).standard_normal((WIDTH, WIDTH))

    def mixed(rows: Rows) -> Rows:
        head = np.arange(len(rows)) % 2 == 0
        records = [replace(r, site="L0H1" if is_head else "L0") for r, is_head in zip(rows.records, head, strict=True)]
        return replace(rows, records=records, target=np.where(head[:, None], rows.target, rows.before @ state))

    train, select = mixed(TRAIN), mixed(SELECT)
    args = (train, select, (train.gold, select.gold), ClaimFeatures(EMBEDDING), True)
    heads = np.array(select.sites) == "L0H1"

    def errors() -> tuple[float, float]:
        wrong = ((BagReader(*args)(select, select.gold) - select.target) ** 2).sum(axis=1)
        return float(wrong[heads].sum()), float(wrong[~heads].sum())

    both = errors()
    alone = []
    for scale in STATE_SCALES:
        monkeypatch.setattr(rungs, "STATE_SCALES", (scale,))
        alone.append(errors())
    of_heads, of_layers = zip(*alone, strict=True)
    assert len(STATE_SCALES) == 3 and of_heads[0] == min(of_heads) and of_layers[-1] == min(of_layers)
    assert both == pytest.approx((of_heads[0], of_layers[-1]))


def test_a_site_s_habit_is_what_its_training_rows_share() -> None:
    shared = Claim("raises", 3)
    gold = [
        [shared, Claim("lowers", i)] if record.site == SITES[0] else [Claim("lowers", i)]
        for i, record in enumerate(TRAIN.records)
    ]
    train = replace(TRAIN, gold=gold)
    habits = {site: {tuple(row) for row, at in zip(site_habit(train, TEST), TEST.sites, strict=True) if at == site}
              for site in SITES}  # fmt: skip
    assert all(len(found) == 1 for found in habits.values())  # whatever the row
    assert habits[SITES[0]].pop()[0] == shared
    assert shared not in habits[SITES[1]].pop()
    elsewhere = replace(TEST, records=[replace(record, site="L9") for record in TEST.records])
    assert site_habit(train, elsewhere)[0][0] == shared


def test_what_the_state_does_not_tell_is_what_it_leaves() -> None:
    before = fit_before(TRAIN, SELECT)
    left = beyond(TEST, before)
    np.testing.assert_allclose(left.target + before.predict(TEST.sites, TEST.before), TEST.target)
    assert left.records is TEST.records
