import warnings
from dataclasses import replace

import pytest
import torch

from diff_oracle.subject import skip as skip_module
from diff_oracle.subject.attention import attended
from diff_oracle.subject.forward import Query, forward
from diff_oracle.subject.loading import SubjectConfig, load_hf_model
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite, expand_sites
from diff_oracle.subject.skip import Scope, skip
from tests.helpers import ARCHITECTURES, bundled_loaded, random_loaded, random_subject, random_tokens, relative_error
from tests.subject.reference import reference_skip

ALL = ["layers", "components", "heads", "spans"]
PLACES = [(0, 9), (1, 9), (1, 22)]
VARIANTS = [*((name, {}) for name in ARCHITECTURES), ("gpt_neox", {"use_parallel_residual": False}), ("tiny", {})]


@pytest.mark.parametrize("scope", ["position", "sequence"])
@pytest.mark.parametrize(("architecture", "overrides"), VARIANTS)
def test_every_skip_equals_a_full_run_with_plain_transformers(architecture: str, overrides: dict, scope: Scope) -> None:
    token_ids = random_tokens()  # longer than Gemma's window of 8
    load = bundled_loaded if architecture == "tiny" else lambda: random_loaded(architecture, **overrides)
    layout = "llama" if architecture == "tiny" else architecture
    plain, subject = load().model, Subject(load())
    sites = expand_sites(ALL, subject.n_layers, subject.n_heads)
    queries = [Query(row, position, site) for row, position in PLACES for site in sites]
    run = forward(subject, token_ids, queries, prefix=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the fast way was taken
        probs = subject.unembed(skip(run, scope)).softmax(-1)
    base = subject.unembed(run.final).softmax(-1)[run.place]
    slow = {}
    changed = 0
    for i, query in enumerate(queries):
        position = query.position if scope == "position" else None
        key = (str(query.site), position)
        if key not in slow:
            # GPT-NeoX with sequential blocks: what its MLP reads follows its attention.
            slow[key] = reference_skip(plain, layout, token_ids, *key)
        expected = slow[key][query.row, query.position].softmax(-1)
        torch.testing.assert_close(probs[i], expected, rtol=0, atol=1e-4)
        kl = (base[i] * (base[i].log() - probs[i].log())).sum()
        expected_kl = (base[i] * (base[i].log() - expected.log())).sum()
        assert kl == pytest.approx(expected_kl.item(), abs=1e-4, rel=1e-3)
        changed += float(kl) > 1e-2
    assert changed > len(queries) / 4  # there was something to get wrong


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_many_small_passes_equal_one(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, token_ids = random_subject(architecture), random_tokens(3)
    sites = expand_sites(ALL, subject.n_layers, subject.n_heads)
    queries = [Query(row, p, site) for row, p in [(2, 9), (0, 21), (0, 8), (2, 23)] for site in sites[:: row + 1]]
    run = forward(subject, token_ids, queries, prefix=True)
    expected = skip(run, "position")
    assert run.prefix is not None and run.prefix.bare  # so that late passes leave out early blocks
    monkeypatch.setattr(skip_module, "_TOKENS", {"cpu": 10})
    monkeypatch.setattr(skip_module, "_BRANCHES", 7)
    assert relative_error(skip(run, "position"), expected) < 1e-4


def test_order_and_repeats_do_not_matter() -> None:
    subject, token_ids = random_subject(), random_tokens()
    sites = expand_sites(ALL, subject.n_layers, subject.n_heads)
    queries = [Query(row, position, site) for row, position in PLACES for site in sites]
    order = [*reversed(range(len(queries))), 3, 3]
    for scope in ("position", "sequence"):
        straight = skip(forward(subject, token_ids, queries, prefix=True), scope)
        shuffled = skip(forward(subject, token_ids, [queries[i] for i in order], prefix=True), scope)
        assert relative_error(shuffled, straight[order]) < 1e-5


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_without_a_usable_cache_every_skip_runs_anew_and_says_so(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, token_ids = random_subject(architecture), random_tokens()
    sites = expand_sites(ALL, subject.n_layers, subject.n_heads)
    queries = [Query(row, position, site) for row, position in PLACES for site in sites]
    expected = skip(forward(subject, token_ids, queries, prefix=True), "position")
    with pytest.warns(UserWarning, match="no cache that skips could share"):
        slow = skip(forward(subject, token_ids, queries), "position")
    assert relative_error(slow, expected) < 1e-4
    # A cache that does not hold all that a later token depends on: the branch that skips nothing tells.
    run = forward(subject, token_ids, queries, prefix=True)
    assert run.prefix is not None
    run.prefix.values[1][1] += 0.5  # in one row
    with pytest.warns(UserWarning, match="no cache that skips could share"):
        slow = skip(run, "position")
    assert relative_error(slow, expected) < 1e-4


def test_nothing_is_left_behind() -> None:
    subject, token_ids = random_subject(), random_tokens()
    queries = [Query(0, 9, DiffSite("layer", 1)), Query(1, 12, DiffSite("head", 2, head=1))]
    before = subject.hf_model(input_ids=token_ids).logits
    run = forward(subject, token_ids, queries, prefix=True)
    for scope in ("position", "sequence"):
        skip(run, scope)
    assert not [name for name, hook in subject.bridge.hook_dict.items() if hook.fwd_hooks]
    assert torch.equal(subject.hf_model(input_ids=token_ids).logits, before)


def test_the_last_layer_s_skip_leaves_what_it_was_added_to() -> None:
    subject, token_ids = random_subject(), random_tokens()
    run = forward(subject, token_ids, [Query(0, 9, DiffSite("layer", 3))], prefix=True)
    torch.testing.assert_close(skip(run, "position"), run.kept["blocks.3.hook_resid_pre"])


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_bfloat16_subjects_are_skipped_the_fast_way_too(architecture: str) -> None:
    loaded = load_hf_model(SubjectConfig(source="random", architecture=architecture, dtype="bfloat16"))
    subject, token_ids = Subject(loaded), random_tokens()
    sites = expand_sites(ALL, subject.n_layers, subject.n_heads)
    queries = [Query(row, position, site) for row, position in PLACES for site in sites]
    run = forward(subject, token_ids, queries, attention=True, prefix=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = skip(run, "position")
    with pytest.warns(UserWarning, match="no cache that skips could share"):
        slow = skip(replace(run, prefix=None), "position")
    assert fast.dtype == torch.float32
    assert relative_error(fast, slow) < 0.02
    shares = attended(run, "value_weighted")
    labelled = torch.tensor([query.site.kind != "mlp" for query in queries])
    torch.testing.assert_close(shares[labelled].sum(-1), torch.ones(int(labelled.sum())))


def test_rotary_embeddings_that_depend_on_the_length_see_the_same_length(monkeypatch: pytest.MonkeyPatch) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    overrides = {"rope_parameters": rope, "max_position_embeddings": 16}
    plain, token_ids = random_loaded("llama", **overrides).model, random_tokens(2, 40)
    subject = random_subject("llama", **overrides)
    queries = [
        Query(0, 39, DiffSite.parse("L1")),
        Query(1, 9, DiffSite.parse("L1.attn")),
        Query(1, 9, DiffSite("mlp", 2)),
    ]
    run = forward(subject, token_ids, queries, prefix=True)
    monkeypatch.setattr(skip_module, "_TOKENS", {"cpu": 1})  # early positions in a pass of their own
    for scope in ("position", "sequence"):
        probs = subject.unembed(skip(run, scope)).softmax(-1)
        for query, got in zip(queries, probs, strict=True):
            at = query.position if scope == "position" else None
            logits = reference_skip(plain, "llama", token_ids, str(query.site), at)
            torch.testing.assert_close(got, logits[query.row, query.position].softmax(-1), rtol=0, atol=1e-4)


def test_nothing_asked_is_nothing_skipped() -> None:
    subject = random_subject()
    assert skip(forward(subject, random_tokens(), [], prefix=True), "position").shape == (0, subject.d_model)
