"""One forward pass -> the diffs at (row, position, site). After the subject, before labels and records.

Activations are taken by hook, at the queried positions only. `before` is the residual that the diff was added to:
resid_pre of the first block; for an MLP resid_mid, or resid_pre where a block's halves run in parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite


@dataclass(frozen=True)
class Query:
    """Where a diff is asked for: a row of the batch, a token index in it, and a site."""

    row: int
    position: int
    site: DiffSite


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


@torch.no_grad()
def capture(subject: Subject, token_ids: Int[Tensor, "row pos"], queries: Sequence[Query]) -> Captured:
    """Measures diffs in one forward pass.

    Args:
        subject: The model.
        token_ids: Right-padded rows. What the padding is does not matter: attention is causal.
        queries: What to measure; any order, repeats allowed.

    Raises:
        ValueError: A site, row or position is out of range, or an activation is not finite.
    """
    _check(subject, token_ids, queries)
    kept, points = _run(subject, token_ids, queries, lambda site: _hooks(subject, site))
    diff = torch.empty(len(queries), subject.d_model, device=subject.device)
    before = torch.empty_like(diff)
    for site, indices in _by_site(queries).items():
        at = points[indices]
        write, base = _write(subject, kept, site), kept[_before_hook(subject, site)]
        diff[indices], before[indices] = write[at], base[at]
    final_scale = subject.final_norm.scale(kept[_last(subject)])[points]
    finite = diff.isfinite().all(-1) & before.isfinite().all(-1) & final_scale.isfinite()
    if not finite.all():
        query = queries[int((~finite).nonzero()[0])]
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
    _check(subject, token_ids, queries)
    kept, points = _run(subject, token_ids, queries, lambda site: _post_norm_hooks(subject, site.layer))
    write = torch.empty(len(queries), subject.d_model, device=subject.device)
    for site, indices in _by_site(queries).items():
        bias = subject.b_O(site.layer).expand(len(kept[_last(subject)]), -1)
        write[indices] = _through_post_norm(subject, kept, site.layer, bias)[points[indices]]
    return write


def _check(subject: Subject, token_ids: Tensor, queries: Sequence[Query]) -> None:
    num_rows, width = token_ids.shape
    for query in queries:
        query.site.check(subject.n_layers, subject.n_heads)
        if not 0 <= query.row < num_rows:
            raise ValueError(f"row {query.row} is out of range: the batch has rows 0…{num_rows - 1}")
        if not 0 < query.position < width:
            raise ValueError(
                f"position {query.position} is out of range: choose from 1…{width - 1} (position 0, the attention "
                "sink, is never used)"
            )


def _run(
    subject: Subject, token_ids: Tensor, queries: Sequence[Query], hooks: Callable[[DiffSite], list[str]]
) -> tuple[dict[str, Tensor], Tensor]:
    """Runs the model once.

    Returns:
        Hook name -> what it saw at each point, [point, ...] float32, for the hooks of every site and the last residual;
        and each query's point. Points are the different (row, position) pairs.
    """
    places = {place: i for i, place in enumerate(dict.fromkeys((query.row, query.position) for query in queries))}
    rows, positions = (
        torch.tensor(list(axis), dtype=torch.long, device=subject.device) for axis in _axes(list(places))
    )
    kept: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: object, name: str) -> None:
        kept[name] = value[rows, positions].float()

    names = dict.fromkeys([_last(subject), *(name for site in _by_site(queries) for name in hooks(site))])
    fwd_hooks = [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in names]
    with subject.bridge.hooks(fwd_hooks=fwd_hooks):
        # Without the head: a [row, pos, vocab] of logits nobody reads is the larger part of a small model's work.
        subject.hf_model.base_model(input_ids=token_ids.to(subject.device), use_cache=False)
    points = torch.tensor(
        [places[query.row, query.position] for query in queries], dtype=torch.long, device=subject.device
    )
    return kept, points


def _axes(places: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [row for row, _ in places], [position for _, position in places]


def _by_site(queries: Sequence[Query]) -> dict[DiffSite, list[int]]:
    groups: dict[DiffSite, list[int]] = {}
    for i, query in enumerate(queries):
        groups.setdefault(query.site, []).append(i)
    return groups


def _last(subject: Subject) -> str:
    """The hook of the residual that the final norm reads."""
    return f"blocks.{subject.n_layers - 1}.hook_resid_post"


def _before_hook(subject: Subject, site: DiffSite) -> str:
    """The hook of the residual that a site's diff was added to."""
    mid = f"blocks.{site.layer}.hook_resid_mid"
    # TransformerLens gives parallel blocks no hook_resid_mid: there is no such residual.
    return mid if site.kind == "mlp" and mid in subject.hook_names else f"blocks.{site.layer}.hook_resid_pre"


def _hooks(subject: Subject, site: DiffSite) -> list[str]:
    """The hooks that a site's diff is made of, `_before_hook` first."""
    names = [_before_hook(subject, site)]
    if site.kind in ("layer", "span"):
        names.append(f"blocks.{site.last_layer}.hook_resid_post")
    elif site.kind == "head":
        names += [f"blocks.{site.layer}.attn.hook_z", *_post_norm_hooks(subject, site.layer)]
    else:
        names.append(f"blocks.{site.layer}.hook_{site.kind}_out")
    return names


def _post_norm_hooks(subject: Subject, layer: int) -> list[str]:
    """The hook that a block's post-attention norm reads, where there is one."""
    return [] if subject.attn_post_norm(layer) is None else [f"blocks.{layer}.ln1_post.hook_in"]


def _write(subject: Subject, kept: dict[str, Tensor], site: DiffSite) -> Float[Tensor, "point d_model"]:
    """What a site adds to the residual at every point."""
    if site.kind in ("layer", "span"):
        return kept[f"blocks.{site.last_layer}.hook_resid_post"] - kept[f"blocks.{site.layer}.hook_resid_pre"]
    if site.kind in ("attn", "mlp"):
        return kept[f"blocks.{site.layer}.hook_{site.kind}_out"]
    assert site.head is not None
    z = kept[f"blocks.{site.layer}.attn.hook_z"]  # with an axis for heads or flat, as the architecture has it
    z = z.reshape(len(z), subject.n_heads, -1)[:, site.head]
    return _through_post_norm(subject, kept, site.layer, z @ subject.W_O(site.layer)[site.head])


def _through_post_norm(
    subject: Subject, kept: dict[str, Tensor], layer: int, write: Float[Tensor, "point d_model"]
) -> Float[Tensor, "point d_model"]:
    """A part of an attention output as it reaches the residual.

    A post-attention norm (Gemma) acts on the whole output; with its denominator held at the value that it really had it
    is linear, so the parts add up to what attention adds.
    """
    norm = subject.attn_post_norm(layer)
    if norm is None:
        return write
    return norm.frozen(write, norm.scale(kept[f"blocks.{layer}.ln1_post.hook_in"]))
