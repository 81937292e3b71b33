"""A forward pass -> the diffs at (row, position, site). After the forward pass, before labels and records.

`before` is the residual that the diff was added to: resid_pre of the first block; for an MLP resid_mid, or resid_pre
where a block's halves run in parallel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diff_oracle.subject.forward import Forward, Query, before_hook, forward
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite, expand_sites


@dataclass(frozen=True)
class Diff:
    """What one site added to the residual stream at one position of a text."""

    site: str
    """The site's name, e.g. L3H2."""
    position: int
    """Token index in the context, its last."""
    token_ids: tuple[int, ...]
    """The context 0…p, as the subject saw it."""
    diff: np.ndarray
    """[d_model] float32, raw."""
    before: np.ndarray
    """[d_model] float32, the residual that the diff was added to."""

    @property
    def relative_size(self) -> float:
        """‖diff‖ / ‖before‖."""
        return float(np.linalg.norm(self.diff) / max(float(np.linalg.norm(self.before)), 1e-12))


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


def diffs_of_text(
    subject: Subject, text: str, sites: Sequence[str], positions: Sequence[int] | None = None
) -> list[Diff]:
    """The diffs of a text, by position and then by site, from one forward pass.

    Args:
        subject: The model.
        text: As the tokenizer reads it, with whatever it puts before a text.
        sites: Single sites (`L3H2`) or sets of them (`heads`), as `expand_sites` takes them.
        positions: Token indices, negative ones from the end; by default the last. Position 0 is never one.

    Raises:
        ValueError: A site or position is out of range, the text has too few tokens, or an activation is not finite.
    """
    ids = [int(i) for i in subject.tokenizer(text)["input_ids"]]
    wanted = [p + len(ids) if p < 0 else p for p in ([-1] if positions is None else positions)]
    if bad := [p for p in wanted if not 0 < p < len(ids)]:
        raise ValueError(
            f"position {bad[0]} is out of range: the text has {len(ids)} tokens, and position 0 has no diff to explain"
        )
    expanded = expand_sites(sites, subject.n_layers, subject.n_heads)
    queries = [Query(0, position, site) for position in wanted for site in expanded]
    captured = capture(subject, torch.tensor([ids], device=subject.device), queries)
    vectors = zip(captured.diff.cpu().numpy(), captured.before.cpu().numpy(), strict=True)
    return [
        Diff(str(query.site), query.position, tuple(ids[: query.position + 1]), diff, before)
        for query, (diff, before) in zip(queries, vectors, strict=True)
    ]


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
