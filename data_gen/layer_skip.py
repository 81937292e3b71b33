"""Labels of task `layer_skip`: the next-token distribution with and without a diff."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diff_oracle.subject.capture import Captured
from diff_oracle.subject.forward import Forward
from diff_oracle.subject.skip import Scope, skip
from diff_oracle.tasks.layer_skip import LayerSkipConfig

_CHUNK_FLOATS = 2**24  # of one [query, vocab] tensor: bounds memory; large enough to go back to the system at once


@torch.no_grad()
def measure(
    run: Forward, captured: Captured, allowed: Bool[Tensor, "vocab"], config: LayerSkipConfig
) -> dict[str, list[Any]]:
    """The label columns, one row a query, strongest token first."""
    residuals = skip(run, cast(Scope, config.scope))  # the config has checked it
    order = run.place.argsort(stable=True)  # a place's queries side by side: they share the base distribution
    columns: dict[str, list[Tensor]] = {}
    for part in order.split(max(1, _CHUNK_FLOATS // len(allowed))):
        for name, value in _effects(run, part, residuals[part], ~allowed, config.k).items():
            columns.setdefault(name, []).append(value)
    back = order.argsort()
    return {name: list(torch.cat(values)[back].cpu().numpy()) for name, values in columns.items()}


def _effects(
    run: Forward,
    queries: Int[Tensor, "query"],
    residuals: Float[Tensor, "query d_model"],
    barred: Bool[Tensor, "vocab"],
    k: int,
) -> dict[str, Tensor]:
    """The labels of a few queries, sorted by place. Works in place: memory traffic is most of the cost."""
    places, which, counts = run.place[queries].unique_consecutive(return_inverse=True, return_counts=True)
    log_probs = run.subject.unembed(torch.cat([run.final[places], residuals])).log_softmax(-1)
    base, skipped = log_probs.split([len(places), len(queries)])
    base_probs = base.exp()
    groups = list(zip(base, base_probs, skipped.split(counts.tolist()), strict=True))
    kl = torch.cat([(log_p - log_q) @ p for log_p, p, log_q in groups])
    likeliest = base_probs.masked_fill(barred, -1).topk(k)
    after = skipped.exp_().masked_fill_(barred, -2).topk(k)  # as a change, too, it is then below any other
    for _, p, change in groups:
        change -= p
    gained = skipped.topk(k)
    lost = skipped.masked_fill_(barred, 2).topk(k, largest=False)
    return {
        "base_ids": likeliest.indices[which],
        "base_probs": likeliest.values[which],
        "skipped_ids": after.indices,
        "skipped_probs": after.values,
        "kl": kl.clamp_min(0),  # rounding may make it negative
        "gained_ids": gained.indices,
        "gained_deltas": gained.values,
        "lost_ids": lost.indices,
        "lost_deltas": lost.values,
    }
