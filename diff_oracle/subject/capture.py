"""A forward pass -> the diffs at (row, position, site). After the forward pass, before labels and records.

`before` is the residual that the diff was added to: resid_pre of the first block; for an MLP resid_mid, or resid_pre
where a block's halves run in parallel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diff_oracle.subject.forward import Forward, Query, before_hook, forward
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite


@dataclass(frozen=True)
class Captured:
    """What was measured, one row a query, float32, on the subject's device.

    Attributes:
        diff: What the site added to the residual, raw.
        before: The residual it was added to.
        final_scale: σ of the model's final norm at the position.
    """

    diff: Float[Tensor, "query d_model"]
    before: Float[Tensor, "query d_model"]
    final_scale: Float[Tensor, "query"]


def capture(subject: Subject, token_ids: Int[Tensor, "row pos"], queries: Sequence[Query]) -> Captured:
    """Measures diffs in one forward pass, as `forward` and `read_diffs` do.

    Raises:
        ValueError: A site, row or position is out of range, or an activation is not finite.
    """
    return read_diffs(forward(subject, token_ids, queries))


@torch.no_grad()
def read_diffs(run: Forward) -> Captured:
    """The diffs of a run.

    Raises:
        ValueError: An activation is not finite.
    """
    diff = torch.empty(len(run.queries), run.subject.d_model, device=run.subject.device)
    before = torch.empty_like(diff)
    for site, indices in run.by_site.items():
        at = run.place[indices]
        write, base = _write(run, site), run.kept[before_hook(run.subject, site)]
        diff[indices], before[indices] = write[at], base[at]
    final_scale = run.subject.final_norm.scale(run.final)[run.place]
    finite = diff.isfinite().all(-1) & before.isfinite().all(-1) & final_scale.isfinite()
    if not finite.all():
        query = run.queries[int((~finite).nonzero()[0])]
        raise ValueError(
            f"activations are not finite at row {query.row}, position {query.position}, site {str(query.site)!r}: the "
            "weights are damaged or overflow at this precision; load them anew, or with model.dtype=float32"
        )
    return Captured(diff, before, final_scale)


@torch.no_grad()
def attention_bias_write(
    subject: Subject, token_ids: Int[Tensor, "row pos"], queries: Sequence[Query]
) -> Float[Tensor, "query d_model"]:
    """What the bias of each queried block's attention output adds to the residual; no head has a share of it.

    With it the heads close: Σ_h L7H{h} + bias = L7.attn.
    """
    heads = [Query(query.row, query.position, DiffSite("head", query.site.layer, head=0)) for query in queries]
    run = forward(subject, token_ids, heads)
    write = torch.empty(len(queries), subject.d_model, device=subject.device)
    for site, indices in run.by_site.items():
        bias = subject.b_O(site.layer).expand(len(run.rows), -1)
        write[indices] = through_post_norm(run, site.layer, bias)[run.place[indices]]
    return write


def head_outputs(run: Forward, layer: int) -> Float[Tensor, "place head d_head"]:
    """z of a block's heads: their attention-weighted values."""
    z = run.kept[f"blocks.{layer}.attn.hook_z"]  # with an axis for heads or flat, as the architecture has it
    return z.reshape(len(z), run.subject.n_heads, -1)


def post_norm_scale(run: Forward, layer: int) -> Float[Tensor, "place"] | None:
    """The denominator of a block's post-attention norm (Gemma); None where there is no such norm."""
    norm = run.subject.attn_post_norm(layer)
    return None if norm is None else norm.scale(run.kept[f"blocks.{layer}.ln1_post.hook_in"])


def through_post_norm(
    run: Forward, layer: int, write: Float[Tensor, "place *part d_model"]
) -> Float[Tensor, "place *part d_model"]:
    """Parts of an attention output as they reach the residual.

    A post-attention norm (Gemma) acts on the whole output; with its denominator held at the value that it really had it
    is linear, so the parts add up to what attention adds.
    """
    norm, scale = run.subject.attn_post_norm(layer), post_norm_scale(run, layer)
    if norm is None or scale is None:
        return write
    return norm.frozen(write, scale.reshape(-1, *(1,) * (write.ndim - 2)))


def _write(run: Forward, site: DiffSite) -> Float[Tensor, "place d_model"]:
    """What a site adds to the residual at every place."""
    if site.kind in ("layer", "span"):
        before = run.kept[f"blocks.{site.layer}.hook_resid_pre"]
        return run.kept[f"blocks.{site.last_layer}.hook_resid_post"] - before
    if site.kind in ("attn", "mlp"):
        return run.kept[f"blocks.{site.layer}.hook_{site.kind}_out"]
    assert site.head is not None
    write = head_outputs(run, site.layer)[:, site.head] @ run.subject.W_O(site.layer)[site.head]
    return through_post_norm(run, site.layer, write)
