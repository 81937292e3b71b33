"""A claim is true where the model says so, computed anew from its weights and from the labels."""

import numpy as np
import pytest
import torch

from diff_oracle.subject.loading import SubjectConfig, load_hf_model
from diff_oracle.subject.model import Subject
from diff_oracle.tasks.claims import NO_CHANGE, ONLY_SINK, Claim
from diff_oracle.tasks.truth import Measured, TruthConfig, measured
from tests.tasks.made import VOCABULARY, attention, layer_skip, make_record


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(load_hf_model(SubjectConfig()))


def truths(subject: Subject, labels: dict, diff: np.ndarray | None = None, **config: float) -> Measured:  # type: ignore[type-arg]
    record = make_record(labels)
    vector = np.ones(subject.d_model, np.float32) if diff is None else diff
    record = type(record)(**{**record.__dict__, "diff": vector})
    (result,) = measured([record], subject, VOCABULARY, TruthConfig(**config))  # type: ignore[arg-type]
    return result


def test_the_tokens_raised_are_those_with_the_largest_dot_products(subject: Subject) -> None:
    diff = np.random.default_rng(0).standard_normal(subject.d_model).astype(np.float32)
    model = load_hf_model(SubjectConfig()).model
    scaled = torch.from_numpy(diff) * model.model.norm.weight.detach().float()
    products = {
        i: float(model.lm_head.weight[i].detach().float() @ scaled) for i in range(4096) if VOCABULARY.allowed[i]
    }
    ranked = sorted(products, key=lambda i: -products[i])
    found = truths(subject, {}, diff, among=20)
    assert found.raised == set(ranked[:20])
    assert found.lowered == set(ranked[-20:])
    assert found.holds(Claim("raises", ranked[19]))
    assert not found.holds(Claim("raises", ranked[20]))
    assert not found.holds(Claim("lowers", ranked[19]))


def test_what_is_read_has_its_share_of_what_is_not_the_sinks(subject: Subject) -> None:
    labels = attention([3, 5, 4, 6], [500, 501, 500, 502], [0.02, 0.0175, 0.01, 0.0025], sink=0.5)
    assert truths(subject, labels).read == {500}  # 0.03 and 0.0175 of 0.5
    assert truths(subject, labels, min_share=0.03).read == {500, 501}
    assert truths(subject, labels, sink_only=0.4).read == {ONLY_SINK}
    assert truths(subject, attention([], [], [], sink=None)).read == set()
    assert truths(subject, {}).read == set()


def test_the_skipped_runs_top_is_true_and_so_is_no_change(subject: Subject) -> None:
    base, skipped = {600: 0.6, 601: 0.4}, {600: 0.4, 601: 0.6}
    assert truths(subject, layer_skip(base, skipped, kl=0.1)).skipped == {601}
    assert truths(subject, layer_skip(base, base, kl=0.01)).skipped == {600, NO_CHANGE}
    assert truths(subject, layer_skip(base, base, kl=0.01), small_kl=0.005).skipped == {600}
    assert not truths(subject, {}).holds(Claim("skipped", NO_CHANGE))
