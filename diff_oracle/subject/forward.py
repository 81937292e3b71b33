"""One forward pass, and what it left at the queried points. After the subject, before diffs, attention and skips.

Everything that is measured of a text comes from one `Forward`: activations are taken by hook, at the queried positions
only; what attention labels and skips need besides is kept where it is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite


@dataclass(frozen=True)
class Query:
    """Where a diff is asked for: a row of the batch, a token index in it, and a site."""

    row: int
    position: int
    site: DiffSite


@dataclass(frozen=True)
class Prefix:
    """What a later token needs of the run: every block's keys and values, and which of them each position may see."""

    keys: list[Float[Tensor, "row kv_head pos d_head"]]
    values: list[Float[Tensor, "row kv_head pos d_head"]]
    before: dict[int, Float[Tensor, "row d_model"]]
    """What the block of each site reads at the last position of every row, padding or not."""
    last: Float[Tensor, "row d_model"]
    """What the final norm reads there."""
    masks: list[Tensor]
    """Each block's attention mask, [row, 1 or head, pos, pos]; blocks of one kind share one tensor."""
    bare: bool
    """Whether a block gives its residual and nothing else, so that one can be passed over."""


@dataclass(frozen=True)
class Forward:
    """A batch of texts after one pass. A *place* is one of the different (row, position) pairs of the queries.

    Attributes:
        subject: The model.
        token_ids: Right-padded rows.
        queries: What is asked.
        rows: Each place's row.
        positions: Each place's token index.
        place: Each query's place.
        kept: Hook name -> what it saw at each place, float32.
        patterns: Block -> its heads' attention patterns at each place, where attention was asked for.
        values: Block -> `hook_v` at every position, where attention was asked for.
        prefix: For `skip`, where it was asked for; None, too, where the architecture has no usable cache.
    """

    subject: Subject
    token_ids: Int[Tensor, "row pos"]
    queries: Sequence[Query]
    rows: Int[Tensor, "place"]
    positions: Int[Tensor, "place"]
    place: Int[Tensor, "query"]
    kept: dict[str, Float[Tensor, "place ..."]]
    patterns: dict[int, Float[Tensor, "place head pos"]]
    values: dict[int, Tensor]
    prefix: Prefix | None

    @cached_property
    def by_site(self) -> dict[DiffSite, list[int]]:
        """Each queried site with the indices of its queries."""
        return group_by_site(self.queries)

    @property
    def final(self) -> Float[Tensor, "place d_model"]:
        """The residual that the final norm reads."""
        return self.kept[last_hook(self.subject)]


@torch.no_grad()
def forward(
    subject: Subject,
    token_ids: Int[Tensor, "row pos"],
    queries: Sequence[Query],
    *,
    attention: bool = False,
    prefix: bool = False,
) -> Forward:
    """Runs the model once.

    Args:
        subject: The model.
        token_ids: Right-padded rows. What the padding is does not matter: attention is causal. How long it is does
            where rotary embeddings depend on the length (longrope, dynamic).
        queries: What will be measured; any order, repeats allowed.
        attention: Keep what `attended` needs.
        prefix: Keep what `skip` needs.

    Raises:
        ValueError: A site, row or position is out of range.
    """
    _check(subject, token_ids, queries)
    token_ids = token_ids.to(subject.device)
    places = {place: i for i, place in enumerate(dict.fromkeys((query.row, query.position) for query in queries))}
    rows = torch.tensor([row for row, _ in places], dtype=torch.long, device=subject.device)
    positions = torch.tensor([position for _, position in places], dtype=torch.long, device=subject.device)
    place = torch.tensor([places[q.row, q.position] for q in queries], dtype=torch.long, device=subject.device)
    sites = group_by_site(queries)
    kept: dict[str, Tensor] = {}
    patterns: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}

    def keep(value: Tensor, hook: object, name: str) -> None:
        kept[name] = value[rows, positions].float()

    def keep_pattern(value: Tensor, hook: object, layer: int) -> None:
        patterns[layer] = value[rows, :, positions].float()

    def keep_values(value: Tensor, hook: object, layer: int) -> None:
        values[layer] = value

    attending = attention_layers(sites) if attention else []
    names = dict.fromkeys([last_hook(subject), *(name for site in sites for name in diff_hooks(subject, site))])
    names |= dict.fromkeys(name for layer in attending for name in head_hooks(subject, layer))
    if prefix:  # skips begin at the block of their site
        names |= dict.fromkeys(f"blocks.{site.layer}.hook_resid_pre" for site in sites)
    fwd_hooks: list[Any] = [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in names]
    for layer in attending:
        fwd_hooks += [
            (f"blocks.{layer}.attn.hook_pattern", lambda value, hook, layer=layer: keep_pattern(value, hook, layer)),
            (f"blocks.{layer}.attn.hook_v", lambda value, hook, layer=layer: keep_values(value, hook, layer)),
        ]
    # Without the head: a [row, pos, vocab] of logits nobody reads is the larger part of a small model's work.
    body = subject.hf_model.base_model
    left: Prefix | None = None
    with subject.bridge.hooks(fwd_hooks=fwd_hooks):
        if prefix and "past_key_values" in inspect.signature(body.forward).parameters:
            cache = DynamicCache()  # no config: a layer with a sliding window must keep all of its keys, too
            ends: dict[str, Tensor] = {}

            def keep_end(value: Tensor, hook: object, name: str) -> None:
                ends[name] = value[:, -1].float()

            starts = {site.layer: f"blocks.{site.layer}.hook_resid_pre" for site in sites}
            at_end: list[Any] = [
                (name, lambda value, hook, name=name: keep_end(value, hook, name))
                for name in (*starts.values(), last_hook(subject))
            ]
            with _watching(subject) as (masks, outputs), subject.bridge.hooks(fwd_hooks=at_end):
                body(input_ids=token_ids, past_key_values=cache, use_cache=True)
            before = {layer: ends[name] for layer, name in starts.items()}
            left = _prefix(cache, before, ends[last_hook(subject)], masks, outputs, subject, token_ids)
        else:
            body(input_ids=token_ids, use_cache=False)
    return Forward(subject, token_ids, queries, rows, positions, place, kept, patterns, values, left)


def group_by_site(queries: Sequence[Query]) -> dict[DiffSite, list[int]]:
    """Each site with the indices of its queries."""
    groups: dict[DiffSite, list[int]] = {}
    for i, query in enumerate(queries):
        groups.setdefault(query.site, []).append(i)
    return groups


def attention_layers(sites: Sequence[DiffSite] | dict[DiffSite, list[int]]) -> list[int]:
    """The blocks whose heads belong to a site; an MLP has none."""
    return sorted({layer for site in sites if site.kind != "mlp" for layer in range(site.layer, site.last_layer + 1)})


def last_hook(subject: Subject) -> str:
    """The hook of the residual that the final norm reads."""
    return f"blocks.{subject.n_layers - 1}.hook_resid_post"


def before_hook(subject: Subject, site: DiffSite) -> str:
    """The hook of the residual that a site's diff was added to."""
    mid = f"blocks.{site.layer}.hook_resid_mid"
    # TransformerLens gives parallel blocks no hook_resid_mid: there is no such residual.
    return mid if site.kind == "mlp" and mid in subject.hook_names else f"blocks.{site.layer}.hook_resid_pre"


def diff_hooks(subject: Subject, site: DiffSite) -> list[str]:
    """The hooks that a site's diff is made of, `before_hook` first."""
    names = [before_hook(subject, site)]
    if site.kind in ("layer", "span"):
        names.append(f"blocks.{site.last_layer}.hook_resid_post")
    elif site.kind == "head":
        names += head_hooks(subject, site.layer)
    else:
        names.append(f"blocks.{site.layer}.hook_{site.kind}_out")
    return names


def head_hooks(subject: Subject, layer: int) -> list[str]:
    """The hooks that the writes of a block's heads are made of."""
    post_norm = [] if subject.attn_post_norm(layer) is None else [f"blocks.{layer}.ln1_post.hook_in"]
    return [f"blocks.{layer}.attn.hook_z", *post_norm]


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


@contextmanager
def _watching(subject: Subject) -> Iterator[tuple[list[Any], list[type]]]:
    """Gives two lists that fill, block by block, with attention masks and with the types of what blocks return."""
    masks: list[Any] = []
    outputs: list[type] = []
    handles = []
    for block in subject.bridge.blocks:
        handles += [
            block.attn.register_forward_pre_hook(
                lambda module, args, kwargs: masks.append(kwargs.get("attention_mask")), with_kwargs=True
            ),
            block.register_forward_hook(lambda module, args, output: outputs.append(type(output))),
        ]
    try:
        yield masks, outputs
    finally:
        for handle in handles:
            handle.remove()


def _prefix(
    cache: DynamicCache,
    before: dict[int, Tensor],
    last: Tensor,
    masks: list[Any],
    outputs: list[type],
    subject: Subject,
    token_ids: Tensor,
) -> Prefix | None:
    """What the run left, or None where it is not keys, values and a mask for every block and position."""
    num_rows, width = token_ids.shape
    keys, values = [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
    whole = all(
        isinstance(x, Tensor) and x.ndim == 4 and (x.shape[0], x.shape[2]) == (num_rows, width) for x in keys + values
    )
    masked = all(isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[2:] == (width, width) for mask in masks)
    if not whole or not masked or not len(keys) == len(masks) == subject.n_layers:
        return None
    return Prefix(keys, values, before, last, masks, bare=all(issubclass(kind, Tensor) for kind in outputs))
