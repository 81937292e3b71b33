"""Takes a site's update out of a running forward pass. Beside capture, whose diffs are what is taken out; for skips."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor

from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite

Where = tuple[Int[Tensor, "place"], ...]
"""Index into the first axes of an activation: (rows, columns), or (rows,) for all of their positions."""


def removal(subject: Subject, site: DiffSite, at: Where) -> list[tuple[str, Any]]:
    """Hooks that take out what a site adds to the residual at `at`, and nothing else."""
    block, held = f"blocks.{site.layer}", {}

    def hold(value: Tensor, hook: object, name: str) -> None:
        held[name] = value[at].clone()

    def restore(value: Tensor, hook: object) -> Tensor:
        value[at] = held["pre"]
        return value

    def silence(value: Tensor, hook: object) -> Tensor:
        value[at] = 0
        return value

    if site.kind in ("layer", "span"):
        return [
            (f"{block}.hook_resid_pre", lambda value, hook: hold(value, hook, "pre")),
            (f"blocks.{site.last_layer}.hook_resid_post", restore),
        ]
    if site.kind in ("attn", "mlp"):
        return [(f"{block}.hook_{site.kind}_out", silence)]
    norm = subject.attn_post_norm(site.layer)

    def silence_head(value: Tensor, hook: object) -> Tensor:
        value.view(*value.shape[:2], subject.n_heads, -1)[..., site.head, :][at] = 0
        return value

    if norm is None:
        return [(f"{block}.attn.hook_z", silence_head)]

    def subtract(value: Tensor, hook: object) -> Tensor:
        # Silencing z would change the norm's denominator, too, and with it what the other heads add.
        raw = held["raw"].float()
        z = held["z"].float().reshape(*raw.shape[:-1], subject.n_heads, -1)
        write = z[..., site.head, :] @ subject.W_O(site.layer)[site.head]
        value[at] = (value[at].float() - norm.frozen(write, norm.scale(raw))).to(value.dtype)
        return value

    return [
        (f"{block}.attn.hook_z", lambda value, hook: hold(value, hook, "z")),
        (f"{block}.ln1_post.hook_in", lambda value, hook: hold(value, hook, "raw")),
        (f"{block}.hook_attn_out", subtract),
    ]
