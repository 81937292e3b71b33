import pytest
import torch

from diff_oracle.subject.attention import Weighting, attended
from diff_oracle.subject.forward import Query, forward
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite, expand_sites
from tests.helpers import ARCHITECTURES, bundled_loaded, random_loaded, random_subject, random_tokens
from tests.subject.reference import reference_attention

ALL = ["layers", "components", "heads", "spans"]
PLACES = [(0, 9), (1, 9), (1, 22)]


@pytest.mark.parametrize("weighting", ["value_weighted", "pattern"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "tiny"])
def test_shares_equal_a_slow_computation_with_plain_transformers(architecture: str, weighting: Weighting) -> None:
    token_ids = random_tokens()
    token_ids[:, 3:7] = token_ids[:, 12:16]  # repeated tokens keep their own weights
    load = bundled_loaded if architecture == "tiny" else lambda: random_loaded(architecture)
    layout = "llama" if architecture == "tiny" else architecture
    by_head = reference_attention(load().model, layout, token_ids, weighting)
    subject = Subject(load())
    sites = expand_sites(ALL, subject.n_layers, subject.n_heads)
    queries = [Query(row, position, site) for row, position in PLACES for site in sites]
    shares = attended(forward(subject, token_ids, queries, attention=True), weighting)
    for query, got in zip(queries, shares, strict=True):
        site = query.site
        if site.kind == "mlp":
            assert got.isnan().all()
            continue
        heads = range(subject.n_heads) if site.head is None else [site.head]
        layers = range(site.layer, site.last_layer + 1)
        weights = torch.stack([by_head[layer, h][query.row, query.position] for layer in layers for h in heads]).sum(0)
        torch.testing.assert_close(got, weights / weights.sum(), rtol=1e-3, atol=1e-5)
        assert got.sum() == pytest.approx(1, abs=1e-5)
        assert not got[query.position + 1 :].any()


def test_a_sliding_window_hides_what_lies_behind_it() -> None:
    subject = random_subject("gemma3")  # window 8 in block 0, none in block 2
    queries = [Query(0, 22, DiffSite("attn", layer)) for layer in (0, 2)]
    near, far = attended(forward(subject, random_tokens(), queries, attention=True), "value_weighted")
    assert not near[:15].any() and (near[15:23] > 0).all()
    assert (far[:23] > 0).all()


def test_a_head_that_writes_nothing_attends_to_nothing() -> None:
    loaded = random_loaded("llama")
    with torch.no_grad():
        loaded.model.model.layers[1].self_attn.v_proj.weight.zero_()
    queries = [Query(0, 9, DiffSite.parse(site)) for site in ("L1H0", "L1", "L0H0", "L0:2")]
    shares = attended(forward(Subject(loaded), random_tokens(), queries, attention=True), "value_weighted")
    assert shares[:2].isnan().all()
    assert not shares[2:].isnan().any()


def test_outputs_that_are_not_weighted_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = random_subject()
    run = forward(subject, random_tokens(), [Query(0, 9, DiffSite("head", 1, head=2))], attention=True)
    run.kept["blocks.1.attn.hook_z"] *= 0.5  # as a gate behind the attention would do
    with pytest.raises(ValueError, match=r"block 1 of random-llama .* choose tasks.attention.weighting=pattern"):
        attended(run, "value_weighted")
    assert attended(run, "pattern").sum() == pytest.approx(1)
