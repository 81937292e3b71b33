"""The ladder's lines are what a plain computation gives, and its controls fall where they must."""

from dataclasses import replace

import numpy as np
import pytest

from diff_oracle.nla.ladder import Ladder, Line, random_errors
from diff_oracle.nla.metrics import Means, cosine, spread
from diff_oracle.nla.rows import other_documents
from diff_oracle.nla.rungs import only_quotes, without_quotes
from diff_oracle.randomness import keyed_rng
from diff_oracle.tasks.claims import Claim
from diff_oracle.tasks.truth import Measured
from tests.nla.made import made_rows

ROWS = made_rows(160, seed=3)
MEANS = Means.of(ROWS.sites, ROWS.target)
NOTHING = Measured(frozenset(), frozenset(), frozenset(), frozenset())


def ladder(truth: list[Measured] | None = None) -> Ladder:
    return Ladder(ROWS, MEANS, truth or [NOTHING] * len(ROWS), resamples=300)


def line(lines: list[Line], rung: str, metric: str, group: str = "all") -> Line:
    (found,) = [x for x in lines if (x.rung, x.metric, x.site_group) == (rung, metric, group)]
    return found


def test_fve_of_every_group_is_its_formula() -> None:
    rebuilt = ROWS.target + 0.3 * np.random.default_rng(0).standard_normal(ROWS.target.shape)
    steps = ladder()
    steps.add("noisy", rebuilt)
    steps.add("true", ROWS.target)
    steps.add("mean", MEANS.at(ROWS.sites))
    lines = steps.lines()
    for group in ("all", "heads", "layers"):
        mask = np.array([group in ("all", g) for g in ROWS.groups])
        error = ((rebuilt - ROWS.target) ** 2).mean(axis=1)[mask].sum()
        of_site = spread(ROWS.target, MEANS.at(ROWS.sites))[mask].sum()
        everywhere = spread(ROWS.target, MEANS.everywhere)[mask].sum()
        found = line(lines, "noisy", "fve", group)
        assert found.value == pytest.approx(1 - error / of_site)
        assert found.ci_low < found.value < found.ci_high
        assert line(lines, "noisy", "fve_global", group).value == pytest.approx(1 - error / everywhere)
        assert line(lines, "true", "fve", group).value == pytest.approx(1)
        assert line(lines, "mean", "fve", group).value == pytest.approx(0)
        assert line(lines, "true", "cosine", group).value == pytest.approx(1)
        assert found.n == mask.sum()


def test_a_gain_is_paired() -> None:
    steps = ladder()
    noise = np.random.default_rng(0).standard_normal(ROWS.target.shape)
    steps.add("worse", ROWS.target + 0.31 * noise)
    steps.add("better", ROWS.target + 0.30 * noise)
    (gain, *_) = steps.gains([("better", "worse"), ("better", "not there")])
    assert gain.value == pytest.approx(steps.fve("better") - steps.fve("worse"))
    assert 0 < gain.ci_low < gain.ci_high  # small, but the same sign at every row
    wide = line(steps.lines(), "better", "fve")
    assert gain.ci_high - gain.ci_low < (wide.ci_high - wide.ci_low) / 3


def test_a_share_is_of_the_same_drawn_documents() -> None:
    """Document by document, draw by draw, as slowly as it is said."""
    steps = ladder()
    noise = np.random.default_rng(0).standard_normal((2, *ROWS.target.shape))
    steps.add("part", ROWS.target + 0.5 * noise[0])
    steps.add("whole", ROWS.target + 0.3 * noise[1])
    steps.add("nothing", MEANS.at(ROWS.sites) + 1e-3 * noise[1])
    found = steps.shares([("part", "whole"), ("part", "nothing"), ("part", "not there")])
    assert [(x.rung, x.metric, x.site_group) for x in found] == [
        ("part / whole", "fve_share", group) for group in ("all", "heads", "layers")
    ]
    lost = {
        rung: [np.mean((row - ROWS.target[i]) ** 2) for i, row in enumerate(x)] for rung, x in steps.rebuilt.items()
    }
    there = [np.mean((ROWS.target[i] - mean) ** 2) for i, mean in enumerate(MEANS.at(ROWS.sites))]

    def fve(rung: str, rows: list[int]) -> float:
        return float(1 - sum(lost[rung][i] for i in rows) / sum(there[i] for i in rows))

    for share in found:
        rows = [i for i, group in enumerate(ROWS.groups) if share.site_group in ("all", group)]
        of_doc: dict[str, list[int]] = {}
        for i in rows:
            of_doc.setdefault(ROWS.records[i].doc_id, []).append(i)
        times = keyed_rng(0, "bootstrap").multinomial(len(of_doc), [1 / len(of_doc)] * len(of_doc), size=300)
        draws = []
        for of_draw in times:
            drawn = [i for doc, n in zip(sorted(of_doc), of_draw, strict=True) for i in n * of_doc[doc]]
            draws.append(fve("part", drawn) / fve("whole", drawn))
        assert share.value == pytest.approx(fve("part", rows) / fve("whole", rows))
        assert (share.ci_low, share.ci_high) == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))))


def test_claims_are_counted_as_they_are_true() -> None:
    truth = [Measured(frozenset([5]), frozenset([6]), frozenset(), frozenset())] * len(ROWS)
    steps = ladder(truth)
    said = [[Claim("raises", 5), Claim("lowers", 5), Claim("raises", 7)] for _ in range(len(ROWS))]
    steps.add("said", ROWS.target, said)
    lines = steps.lines()
    assert line(lines, "said", "claims").value == 3
    assert line(lines, "said", "true_claims").value == pytest.approx(1 / 3)
    named = sum(len(set(s) & set(g)) for s, g in zip(said, ROWS.gold, strict=True))
    assert line(lines, "said", "coverage").value == pytest.approx(named / (4 * len(ROWS)))
    quoted = sum((5 in r.token_ids) * 2 + (7 in r.token_ids) for r in ROWS.records)
    assert line(lines, "said", "quotes").value == pytest.approx(quoted / (3 * len(ROWS)))
    assert steps.true_claims(said)[0] == [Claim("raises", 5)]


def test_quotes_are_claims_about_tokens_of_the_context() -> None:
    kept, quoted = (alter(ROWS, ROWS.gold, 0) for alter in (without_quotes, only_quotes))
    for row, rest, own, record in zip(ROWS.gold, kept, quoted, ROWS.records, strict=True):
        assert {*rest, *own} == set(row)
        assert all(c.said in record.token_ids for c in own)
        assert not any(c.said in record.token_ids for c in rest)


def test_the_best_rungs_of_every_kind_of_site() -> None:
    steps, heads = ladder(), np.array(ROWS.groups) == "heads"
    assert 0 < heads.sum() < len(heads)
    noise = np.random.default_rng(0).standard_normal(ROWS.target.shape)
    for name, rows in (("for heads", heads), ("for others", ~heads), ("for none", np.zeros_like(heads))):
        steps.add(name, ROWS.target + np.where(rows[:, None], 0.1, 0.5) * noise)
    assert set(steps.best(["for heads", "for others", "for none", "not there"])) == {"for heads", "for others"}


def test_others_are_of_the_same_site_in_another_document() -> None:
    for i, j in enumerate(other_documents(ROWS.records, 0)):
        assert ROWS.records[i].site == ROWS.records[j].site
        assert ROWS.records[i].doc_id != ROWS.records[j].doc_id
    few = [replace(ROWS.records[i], site=site, doc_id=doc) for i, (site, doc) in enumerate(
        [("L0H1", "a"), ("L0H1", "a"), ("L3H2", "b"), ("L2", "b"), ("L2", "c")])]  # fmt: skip
    others = [other_documents(few, seed) for seed in range(20)]
    assert {tuple(of[:3]) for of in others} == {(2, 2, 0), (2, 2, 1)}  # another head, of another document
    assert {of[4] for of in others} == {3} and {of[3] for of in others} == {4}
    alone = [*few[:2], few[4]]
    assert other_documents(alone, 0)[0] == 2  # there is no other head
    with pytest.raises(ValueError, match=r"every row is of one document \(a\)"):
        other_documents(few[:2], 0)


def test_random_errors_are_as_large_as_asked() -> None:
    rng = np.random.default_rng(0)
    true = np.stack([record.diff for record in ROWS.records]).astype(np.float64)
    rebuilt = true + 0.5 * rng.standard_normal(true.shape)
    size = np.linalg.norm(rebuilt - true, axis=1)
    made = random_errors(true, rebuilt, ROWS.target, rng)
    for name in ("isotropic", "like diffs"):
        error = made[f"error of the same size, {name}"] - true
        np.testing.assert_allclose(np.linalg.norm(error, axis=1), size)
    np.testing.assert_allclose(cosine(made["same cosine, isotropic"], true), cosine(rebuilt, true), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(made["same cosine, isotropic"], axis=1), np.linalg.norm(true, axis=1))


def test_random_errors_have_the_covariance_of_diffs_where_they_say_so() -> None:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    directions = rng.standard_normal((3000, 6)) * [5, 2, 1, 0.5, 0.1, 0.1] @ turn
    true = np.full((3000, 6), 100.0)
    made = random_errors(true, true + rng.standard_normal(true.shape), directions, rng)
    for name, like in (("like diffs", directions), ("isotropic", rng.standard_normal(true.shape))):
        error = made[f"error of the same size, {name}"] - true
        along = error / np.linalg.norm(error, axis=1, keepdims=True)
        expected = like / np.linalg.norm(like, axis=1, keepdims=True)
        np.testing.assert_allclose(np.cov(along.T), np.cov(expected.T), atol=0.03)
