"""Every label equals a slow computation: plain transformers, one full run a skip, no cache, no TransformerLens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_gen.measure import Window, measure
from diff_oracle.subject.lens import label_tokens
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite
from diff_oracle.tasks import make_tasks
from tests.helpers import ARCHITECTURES, bundled_loaded, random_loaded, random_tokens
from tests.subject.reference import reference, reference_attention, reference_skip

SITES = ["L1", "L0:2", "L1.attn", "L2.mlp", "L1H3", "L0H0"]
PLACES = [(0, 9), (0, 20), (1, 22)]
K = 5


def rows_of(architecture: str, tasks: dict[str, Any]) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
    """Each query's label row, the texts, and the tokens that a label may name."""
    subject = Subject(load(architecture))
    token_ids = random_tokens()
    token_ids[:, 3:7] = token_ids[:, 12:16]
    windows = tuple(
        Window(
            doc_id=f"text {row}",
            split="train",
            token_ids=token_ids[row].tolist(),
            queries=[(p, DiffSite.parse(site)) for r, p in PLACES if r == row for site in SITES],
        )
        for row in range(len(token_ids))
    )
    allowed = label_tokens(subject.tokenizer, subject.identity.vocab_size)
    columns = measure(subject, windows, make_tasks(tasks), allowed)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    assert [(row["doc_id"], row["position"], row["site"]) for row in rows] == [
        (f"text {r}", p, site) for r, p in PLACES for site in SITES
    ]
    return rows, token_ids, allowed


def load(architecture: str) -> Any:
    return bundled_loaded() if architecture == "tiny" else random_loaded(architecture)


def layout_of(architecture: str) -> str:
    return "llama" if architecture == "tiny" else architecture


def assert_top(ids: Any, values: Any, expected: Tensor, allowed: Tensor) -> None:
    """The ids are the K with the highest expected values, exactly but for ties."""
    ranked = expected.masked_fill(~allowed, -torch.inf).sort(descending=True)
    np.testing.assert_allclose(values, ranked.values[:K], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(values, expected[list(ids)], rtol=1e-3, atol=1e-4)
    tie = 1e-5 + 1e-3 * ranked.values[K - 1].abs()
    sure = ranked.indices[:K][ranked.values[:K] > ranked.values[K] + tie].tolist()
    assert set(sure) <= set(ids.tolist())
    assert len(set(ids.tolist())) == K


@pytest.mark.parametrize("scope", ["position", "sequence"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "tiny"])
def test_layer_skip_labels(architecture: str, scope: str) -> None:
    rows, token_ids, allowed = rows_of(architecture, {"layer_skip": {"k": K, "num_asked": 3, "scope": scope}})
    model, layout = load(architecture).model, layout_of(architecture)
    with torch.no_grad():
        base_logits = model(input_ids=token_ids, use_cache=False).logits
    for row in rows:
        text, position = int(row["doc_id"].split()[1]), row["position"]
        skip_at = position if scope == "position" else None
        logits = reference_skip(model, layout, token_ids, row["site"], skip_at)[text, position]
        base, skipped = base_logits[text, position].double().softmax(-1), logits.double().softmax(-1)
        assert_top(row["base_ids"], row["base_probs"], base, allowed)
        assert_top(row["skipped_ids"], row["skipped_probs"], skipped, allowed)
        assert_top(row["gained_ids"], row["gained_deltas"], skipped - base, allowed)
        assert_top(row["lost_ids"], -row["lost_deltas"], base - skipped, allowed)
        kl = float((base * (base.log() - skipped.log())).sum())
        assert row["kl"] == pytest.approx(kl, abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("weighting", ["value_weighted", "pattern"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "tiny"])
def test_attention_labels(architecture: str, weighting: str) -> None:
    rows, token_ids, _ = rows_of(architecture, {"attention": {"k": K, "num_asked": 3, "weighting": weighting}})
    model, layout = load(architecture).model, layout_of(architecture)
    by_head = reference_attention(model, layout, token_ids, weighting)
    for row in rows:
        text, position, site = int(row["doc_id"].split()[1]), row["position"], DiffSite.parse(row["site"])
        if site.kind == "mlp":
            assert row["sink_weight"] is None
            assert not len(row["attended_positions"])
            continue
        heads = range(model.config.num_attention_heads) if site.head is None else [site.head]
        layers = range(site.layer, site.last_layer + 1)
        weights = torch.stack([by_head[layer, head][text, position] for layer in layers for head in heads]).sum(0)
        shares = (weights / weights.sum()).double()
        assert row["sink_weight"] == pytest.approx(float(shares[0]), abs=1e-4)
        everywhere = torch.ones(len(shares), dtype=torch.bool)
        everywhere[0] = False
        assert_top(row["attended_positions"], row["attended_weights"], shares, everywhere)
        assert row["attended_ids"].tolist() == token_ids[text, row["attended_positions"]].tolist()
        assert max(row["attended_positions"]) <= position


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "tiny"])
def test_logit_lens_labels(architecture: str) -> None:
    rows, token_ids, allowed = rows_of(architecture, {"logit_lens": {"k": K, "num_asked": 3}})
    model, layout = load(architecture).model, layout_of(architecture)
    seen = reference(model, layout, token_ids)
    norm, head = model.get_submodule(layout_norm(layout)), model.get_output_embeddings().weight
    for row in rows:
        text, position = int(row["doc_id"].split()[1]), row["position"]
        diff, final = seen.diff[row["site"]][text, position].double(), seen.final[text, position].double()
        gamma = norm.weight.double() + (1 if layout == "gemma3" else 0)
        if layout in ("gpt2", "gpt_neox"):  # LayerNorm
            diff, final = diff - diff.mean(), final - final.mean()
        eps = next(getattr(norm, name) for name in ("variance_epsilon", "eps") if hasattr(norm, name))
        shift = head.double() @ (diff * gamma / (final.square().mean() + eps).sqrt())
        shift = (shift - shift.mean()).detach()
        assert_top(row["promoted_ids"], row["promoted_scores"], shift, allowed)
        assert_top(row["suppressed_ids"], -row["suppressed_scores"], -shift, allowed)


def layout_norm(architecture: str) -> str:
    return {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}.get(architecture, "model.norm")


def test_early_positions_have_shorter_lists_and_one_pass_serves_all_tasks() -> None:
    subject = Subject(bundled_loaded())
    passes = []
    handle = subject.hf_model.base_model.register_forward_hook(lambda *_: passes.append(1))
    window = Window("a", "train", random_tokens(1)[0].tolist(), [(2, DiffSite("layer", 1)), (9, DiffSite("mlp", 1))])
    tasks = make_tasks({"logit_lens": {}, "attention": {"k": 4}, "layer_skip": {"scope": "position"}})
    allowed = label_tokens(subject.tokenizer, subject.identity.vocab_size)
    rows = measure(subject, (window,), tasks, allowed)
    handle.remove()
    assert len(passes) == 2  # the text, and all skips together
    assert [len(ids) for ids in rows["attended_ids"]] == [2, 0]
    assert rows["sink_weight"][0] > 0 and rows["sink_weight"][1] is None
