"""The linear probe on made-up rows, where it is known what the vectors hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from diff_oracle.evaluation import probe as probe_module
from diff_oracle.evaluation.probe import LinearProbe, Probes
from diff_oracle.evaluation.readout import RidgeReadout, features
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import DiffDataset, Record
from diff_oracle.tasks import Question, Task
from diff_oracle.tasks.attention import DISTANCES, Attention
from diff_oracle.tasks.claims import NO_CHANGE
from diff_oracle.tasks.layer_skip import SIZES, LayerSkip, LayerSkipConfig
from diff_oracle.tasks.logit_lens import LogitLens, LogitLensConfig
from diff_oracle.tasks.text import token_list
from diff_oracle.training.holdout import HoldoutConfig
from tests.tasks.made import VOCABULARY, attention, layer_skip, make_record, make_rows

D_MODEL, K, NUM_ASKED = 12, 3, 2
SITES = ("L0", "L1", "L2")
NAMES = [int(i) for i in np.flatnonzero(VOCABULARY.allowed.numpy())[100:124]]
Labels = Callable[[np.ndarray], dict]


def make_rows_of(sites: Sequence[str], each: int, labels: dict[str, Labels], seed: int = 0) -> list[Record]:
    """So many rows of every site: a random diff on top of the site's own, and the labels of it."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(each * len(sites)):
        site = sites[i % len(sites)]
        signal = rng.standard_normal(D_MODEL)
        own = 2 * np.random.default_rng(int(site[1:])).standard_normal(D_MODEL)
        diff, before = (signal + own).astype(np.float32), np.full(D_MODEL, 9.0, np.float32)
        records.append(replace(make_record(labels[site](signal), site), diff=diff, before=before, doc_id=f"doc{i}"))
    return records


def shifts(seed: int) -> Labels:
    """Labels of `logit_lens`: a random unembedding's ends."""
    directions = np.random.default_rng(seed).standard_normal((len(NAMES), D_MODEL))

    def labels(signal: np.ndarray) -> dict:
        ranked = [NAMES[i] for i in np.argsort(directions @ signal)]
        scores = [float(i) for i in range(K, 0, -1)]
        ends = {"promoted": ranked[::-1][:K], "suppressed": ranked[:K]}
        return {f"{end}_ids": ids for end, ids in ends.items()} | {f"{end}_scores": scores for end in ends}

    return labels


def lens_task(records: Sequence[Record]) -> LogitLens:
    task = LogitLens(LogitLensConfig(k=K, num_asked=NUM_ASKED))
    task.fit(make_rows(records, "logit_lens", width=D_MODEL), VOCABULARY)
    return task


def swapped(records: Sequence[Record]) -> list[Record]:
    """The same rows, each with the diff of another row of its site."""
    rng, result = np.random.default_rng(3), list(records)
    for site in {record.site for record in records}:
        rows = [i for i, record in enumerate(records) if record.site == site]
        for row, other in zip(rows, rng.permutation(rows), strict=True):
            result[row] = replace(records[row], diff=records[other].diff)
    return result


def fit(task: Task, kind: str, train: Sequence[Record], select: Sequence[Record]) -> LinearProbe:
    train, select = ([row for row in rows if kind in task.kinds_for(row)] for rows in (train, select))
    readout = RidgeReadout(train, [task.targets(row, kind) for row in train])
    return LinearProbe.fit(task, kind, readout, select, vocabulary=VOCABULARY)


def ask(task: Task, kind: str, records: Sequence[Record]) -> list[Question]:
    return [task.question(record, kind, keyed_rng(7, kind, i)) for i, record in enumerate(records)]


def score(probe: LinearProbe, task: Task, kind: str, test: Sequence[Record]) -> float:
    questions = ask(task, kind, test)
    shown = map(VOCABULARY.show, probe.answers(test, questions))
    return float(np.mean([task.score(q, a, VOCABULARY) for q, a in zip(questions, shown, strict=True)]))


def prior(task: Task, kind: str, test: Sequence[Record]) -> float:
    questions = ask(task, kind, test)
    shown = [VOCABULARY.show(task.prior_answer(r.site, q)) for r, q in zip(test, questions, strict=True)]
    return float(np.mean([task.score(q, a, VOCABULARY) for q, a in zip(questions, shown, strict=True)]))


SAME_EVERYWHERE = {site: shifts(1) for site in (*SITES, "L3")}
TRAIN, SELECT, TEST = (make_rows_of(SITES, n, SAME_EVERYWHERE, i) for i, n in enumerate((400, 60, 100)))


@pytest.mark.parametrize(
    ("kind", "least"), [("promoted", 0.65), ("suppressed", 0.65), ("yes_no", 0.85), ("choice", 0.95)]
)
def test_what_the_vectors_hold_is_found(kind: str, least: float) -> None:
    task = lens_task(TRAIN)
    found = score(fit(task, kind, TRAIN, SELECT), task, kind, TEST)
    assert found > least > prior(task, kind, TEST) + 0.2


@pytest.mark.parametrize("kind", ["promoted", "suppressed", "yes_no", "choice"])
def test_what_the_vectors_lack_is_answered_as_the_site_usually_is(kind: str) -> None:
    task = lens_task(TRAIN)
    probe = fit(task, kind, swapped(TRAIN), swapped(SELECT))
    assert score(probe, task, kind, swapped(TEST)) == pytest.approx(prior(task, kind, TEST), abs=0.08)
    assert score(probe, task, kind, TEST) < 0.6


def test_sites_may_say_the_same_in_their_own_ways() -> None:
    labels = {site: shifts(10 + i) for i, site in enumerate(SITES)}
    train, select, test = (make_rows_of(SITES, n, labels, i) for i, n in enumerate((400, 60, 100)))
    task = lens_task(train)
    probe = fit(task, "choice", train, select)
    pooled = replace(probe, site_penalty=np.inf)
    assert score(probe, task, "choice", test) > 0.9 > score(pooled, task, "choice", test) + 0.1


def test_a_new_site_is_read_like_the_others() -> None:
    task = lens_task(TRAIN)
    probe = fit(task, "choice", TRAIN, SELECT)
    # The new site's own mean is not known, so its rows lie off the training rows' centre.
    assert score(probe, task, "choice", make_rows_of(["L3"], 150, SAME_EVERYWHERE, 5)) > 0.65


def test_a_token_that_one_site_alone_has_is_found_there_and_not_named_elsewhere() -> None:
    rare, axis = int(np.flatnonzero(VOCABULARY.allowed.numpy())[400]), 0

    def with_rare(signal: np.ndarray) -> dict:
        labels = shifts(1)(signal)
        return labels | ({"promoted_ids": [rare, *labels["promoted_ids"][:-1]]} if signal[axis] > 0 else {})

    labels = {"L0": shifts(1), "L1": with_rare, "L2": shifts(1)}
    train, select, test = (make_rows_of(SITES, n, labels, i) for i, n in enumerate((400, 60, 100)))
    task = lens_task(train)
    answers = fit(task, "promoted", train, select).answers(test, ask(task, "promoted", test))
    named = np.array([rare in answer for answer in answers])
    at_home = np.array([record.site == "L1" for record in test])
    truly = np.array([rare in record.labels["promoted_ids"] for record in test])
    assert not named[~at_home].any()
    assert (named == truly)[at_home].mean() > 0.85


def sizes(signal: np.ndarray) -> dict:
    """Labels of `layer_skip`: how much changes is one direction of the diff, what is gained and lost are others."""
    gained, lost = NAMES[int(signal[1] > 0)], NAMES[2 + int(signal[2] > 0)]
    runs = {gained: 0.2, lost: 0.5, NAMES[9]: 0.3}, {gained: 0.5, lost: 0.2, NAMES[9]: 0.3}
    return layer_skip(*runs, kl=float(np.select([signal[0] < -0.6, signal[0] < 0.6], [0.01, 0.1], 1.0)))


def skip_rows() -> tuple[LayerSkip, list[list[Record]]]:
    splits = [make_rows_of(SITES, n, dict.fromkeys(SITES, sizes), i) for i, n in enumerate((400, 60, 100))]
    task = LayerSkip(LayerSkipConfig(num_asked=1))
    task.fit(make_rows(splits[0], "layer_skip", width=D_MODEL), VOCABULARY)
    return task, splits


def test_classes_are_told_and_one_that_training_lacks_is_never_named() -> None:
    task, (train, select, test) = skip_rows()
    assert score(fit(task, "size", train, select), task, "size", test) > 0.75
    fewer = [record for record in train if record.labels["kl"] > 0.02]
    answers = fit(task, "size", fewer, select).answers(test, ask(task, "size", test))
    assert {size for (size,) in answers} == set(SIZES) - {"small"}


@pytest.mark.parametrize("kind", ["gained", "lost"])
def test_lists_are_written_as_the_task_writes_them(kind: str) -> None:
    task, (train, select, test) = skip_rows()
    probe = fit(task, kind, train, select)
    questions = ask(task, kind, test)
    answers = probe.answers(test, questions)
    mark = "-" if kind == "lost" else ""
    assert {answer for answer in answers if answer != (NO_CHANGE,)} <= {token_list([name], mark) for name in NAMES[:4]}
    right = np.array([answer == question.answer for answer, question in zip(answers, questions, strict=True)])
    unchanged = np.array([question.answer == (NO_CHANGE,) for question in questions])
    assert right[unchanged].mean() > 0.6 and right[~unchanged].mean() > 0.7


def test_a_distance_is_told_and_without_it_the_commonest_is_said() -> None:
    def labels(signal: np.ndarray) -> dict:
        place = int(np.searchsorted([-0.3, 1.0], signal[0]))  # "previous" is the commonest
        position = (8, 7, 3)[place]
        return attention([position], [500 + position], [0.9])

    train, select, test = (
        make_rows_of(SITES, n, dict.fromkeys(SITES, labels), i) for i, n in enumerate((400, 60, 100))
    )
    task = Attention()
    task.fit(make_rows(train, "attention", width=D_MODEL), VOCABULARY)
    assert score(fit(task, "distance", train, select), task, "distance", test) > 0.75
    blind = fit(task, "distance", swapped(train), swapped(select))
    answers = blind.answers(swapped(test), ask(task, "distance", test))
    assert np.mean([answer == (DISTANCES[1][0],) for answer in answers]) > 0.9


@pytest.mark.parametrize("site_penalty", [np.inf, 4.0, 0.3])
def test_the_readout_is_ridge_regression(site_penalty: float) -> None:
    records = TRAIN[:90] + make_rows_of(["L3"], 5, SAME_EVERYWHERE, 9)  # one site has fewer rows than the diff is wide
    targets = [tuple(record.labels["promoted_ids"].tolist()) for record in records]
    readout = RidgeReadout(records, targets)
    y = np.array([[name in row for name in readout.names] for row in targets], dtype=float)
    x, sites = features(records), np.array([record.site for record in records])
    centred = x - np.stack([x[sites == site].mean(axis=0) for site in sites])
    pooled = Ridge(alpha=7.0, fit_intercept=False).fit(centred, y)
    weights = readout.weights(7.0)
    np.testing.assert_allclose(weights, pooled.coef_.T, atol=1e-9)
    test = features(TEST[:20])
    for site in np.unique(sites):
        rows = sites == site
        expected = (test - x[rows].mean(axis=0)) @ pooled.coef_.T
        if np.isfinite(site_penalty):
            rest = y[rows] - centred[rows] @ pooled.coef_.T
            own = Ridge(alpha=site_penalty).fit(x[rows], rest)
            expected += own.predict(test) - rest.mean(axis=0)
        np.testing.assert_allclose(
            readout.raised(np.array([site] * 20), test, weights, site_penalty), expected, atol=1e-9
        )
    new = readout.raised(np.array(["L9"] * 20), test, weights, 1.0)
    np.testing.assert_allclose(new, (test - x.mean(axis=0)) @ weights, atol=1e-9)


def test_shares_of_a_site_are_drawn_towards_those_of_all_and_never_certain() -> None:
    records = TRAIN[:30] + make_rows_of(["L3"], 2, SAME_EVERYWHERE, 9)
    readout = RidgeReadout(records, [("always",) + (("here",) if record.site == "L3" else ()) for record in records])
    assert readout.share("L3") == pytest.approx([1 - 0.5 / 32, (2 + 8 * 2 / 32) / (2 + 8)])
    assert readout.share("L9") == pytest.approx([1 - 0.5 / 32, 2 / 32])


def dataset(train: Sequence[Record], select: Sequence[Record], *tasks: str) -> DiffDataset:
    splits = {"train": train, "select": select}
    rows = {split: make_rows(records, *tasks, width=D_MODEL) for split, records in splits.items()}
    return DiffDataset(Path("made"), {"counts": {}}, rows)


def test_kinds_with_the_same_targets_share_a_readout_and_answer_as_if_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(probe_module, "RidgeReadout", lambda *given: made.append(RidgeReadout(*given)) or made[-1])
    task, few = lens_task(TRAIN), TEST[:40]
    probes = Probes(dataset(TRAIN, SELECT, "logit_lens"), VOCABULARY, 900, HoldoutConfig(), 3)
    fitted = {kind: probes.fit(task, kind) for kind in task.kinds}
    assert all(fitted.values()) and len(made) == 2
    readouts = {kind: probe.readout for kind, probe in fitted.items() if probe}
    assert readouts["promoted"] is readouts["yes_no"] is readouts["choice"] is not readouts["suppressed"]
    for kind, probe in fitted.items():
        alone = Probes(dataset(TRAIN, SELECT, "logit_lens"), VOCABULARY, 900, HoldoutConfig(), 3).fit(task, kind)
        assert probe and alone and probe.answers(few, ask(task, kind, few)) == alone.answers(few, ask(task, kind, few))


def test_a_kind_of_few_rows_is_read_by_the_readout_of_one_that_all_of_them_can_be_asked() -> None:
    task, (train, select, _) = skip_rows()
    probes = Probes(dataset(train, select, "layer_skip"), VOCABULARY, 10**6, HoldoutConfig(), 0)
    gained, yes_no, lost, size = (probes.fit(task, kind) for kind in ("gained", "yes_no", "lost", "size"))
    assert gained and yes_no and lost and size
    assert yes_no.readout is gained.readout  # where nothing changes, only the lists and the size can be asked
    assert len({id(probe.readout) for probe in (gained, lost, size)}) == 3


def test_sites_held_out_of_training_are_not_fitted() -> None:
    task = lens_task(TRAIN)
    probes = Probes(dataset(TRAIN, SELECT, "logit_lens"), VOCABULARY, 10**6, HoldoutConfig(layers=[1, 2]), 0)
    probe, alone = probes.fit(task, "choice"), [record for record in TRAIN if record.site == "L0"]
    assert probe is not None
    expected = RidgeReadout(alone, [task.targets(record, "choice") for record in alone])
    np.testing.assert_allclose(np.sort(probe.readout.share("L1")), np.sort(expected.share("L1")))
    np.testing.assert_allclose(np.sort(probe.readout.share("L0")), np.sort(expected.share("L0")))


def test_a_kind_that_no_row_can_be_asked_has_no_probe(caplog: pytest.LogCaptureFixture) -> None:
    task, (train, select, _) = skip_rows()
    still = [record for record in select if record.labels["kl"] < 0.02]
    probes = Probes(dataset(train, still, "layer_skip"), VOCABULARY, 10**6, HoldoutConfig(), 0)
    assert probes.fit(task, "yes_no") is None
    assert "no linear probe of layer_skip/yes_no" in caplog.text
    assert probes.fit(task, "size") is not None
