"""What a site's heads attended to. After the forward pass, before records.

A head's output is a sum over source positions, Σ_s a_s W_O v_s. `pattern` weighs a position by a_s alone;
`value_weighted` by how much of the head's write comes from it: |a_s W_O v_s · ŵ|, ŵ the direction of the write (through
the frozen post-norm where there is one). W_O v_s is never made for all positions: W_O ŵ is one d_head vector a head.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from diff_oracle.subject.capture import head_outputs, post_norm_scale, through_post_norm
from diff_oracle.subject.forward import Forward, attention_layers
from diff_oracle.subject.sites import DiffSite

Weighting = Literal["value_weighted", "pattern"]

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


@torch.no_grad()
def attended(run: Forward, weighting: Weighting) -> Float[Tensor, "query pos"]:
    """Each source position's share in what the site attended to: its weight summed over the site's heads and blocks.

    Rows sum to 1; position 0 is the sink. All nan where there is nothing to attend with: at an MLP, and where every
    head of the site writes nothing.

    Args:
        run: A pass with `attention=True`.
        weighting: `value_weighted` or `pattern`.

    Raises:
        ValueError: The architecture's head outputs are not what pattern and values give.
    """
    by_layer = {layer: _head_weights(run, layer, weighting) for layer in attention_layers(run.by_site)}
    shares = torch.full((len(run.queries), run.token_ids.shape[1]), torch.nan, device=run.subject.device)
    for site, indices in run.by_site.items():
        if site.kind != "mlp":
            weights = _of_site(by_layer, site)
            shares[indices] = (weights / weights.sum(-1, keepdim=True))[run.place[indices]]
    return shares


def _of_site(by_layer: dict[int, Float[Tensor, "place head pos"]], site: DiffSite) -> Float[Tensor, "place pos"]:
    if site.head is not None:
        return by_layer[site.layer][:, site.head]
    weights = [by_layer[layer].sum(1) for layer in range(site.layer, site.last_layer + 1)]
    return torch.stack(weights).sum(0)


def _head_weights(run: Forward, layer: int, weighting: Weighting) -> Float[Tensor, "place head pos"]:
    """The weight of every source position in each head of a block; 0 behind the place's own position."""
    pattern = run.patterns[layer]
    if weighting == "pattern":
        return pattern
    z, W_O = head_outputs(run, layer), run.subject.W_O(layer)
    write = through_post_norm(
        run, layer, einsum(z, W_O, "place head d_head, head d_head d_model -> place head d_model")
    )
    norm, scale = run.subject.attn_post_norm(layer), post_norm_scale(run, layer)
    size = write.norm(dim=-1)
    direction = write / size.clamp_min(torch.finfo(write.dtype).tiny)[..., None]
    if norm is not None and scale is not None:
        direction = norm.frozen_adjoint(direction, scale[:, None])
    reader = einsum(W_O, direction, "head d_head d_model, place head d_model -> place head d_head")
    values = run.values[layer].float()
    kv_heads = values.shape[2]
    # Heads that share keys and values stand side by side.
    reader = rearrange(reader, "place (kv group) d_head -> place kv group d_head", kv=kv_heads)
    along = einsum(reader, values[run.rows], "place kv group d_head, place pos kv d_head -> place kv group pos")
    signed = pattern * rearrange(along, "place kv group pos -> place (kv group) pos")
    bound = _TOLERANCE[run.subject.hf_model.dtype] * float(size.max())
    error = float((signed.sum(-1) - size).abs().max())
    if not error <= bound:
        raise ValueError(
            f"block {layer} of {run.subject.identity.name} ({run.subject.identity.architecture}) does more to a head's "
            f"output than weigh its values by its pattern (they differ by {error:.2g}, expected at most {bound:.2g}): "
            "choose tasks.attention.weighting=pattern"
        )
    return signed.abs()
