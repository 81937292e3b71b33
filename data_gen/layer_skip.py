"""Labels of task `layer_skip`: the next-token distribution with and without a diff."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from diff_oracle.subject.capture import Captured
from diff_oracle.subject.forward import Forward
from diff_oracle.subject.lens import top_tokens
from diff_oracle.subject.skip import skip
from diff_oracle.tasks.layer_skip import LayerSkipConfig

_CHUNK_FLOATS = 2**25  # of one [query, vocab] tensor; bounds memory


@torch.no_grad()
def measure(
    run: Forward, captured: Captured, allowed: Bool[Tensor, "vocab"], config: LayerSkipConfig
) -> dict[str, list[Any]]:
    """The label columns, one row a query, strongest token first."""
    subject, residuals = run.subject, skip(run, config.scope)
    columns: dict[str, list[Any]] = {}
    chunk = max(1, _CHUNK_FLOATS // len(allowed))
    for start in range(0, len(residuals), chunk):
        place = run.place[start : start + chunk]
        places, which = place.unique(return_inverse=True)  # one base distribution serves every site of a place
        base = subject.unembed(run.final[places]).log_softmax(-1)
        skipped = subject.unembed(residuals[start : start + chunk]).log_softmax(-1)
        kl = (base.exp()[which] * (base[which] - skipped)).sum(-1).clamp_min(0)  # rounding may make it negative
        base, skipped = base.exp_(), skipped.exp_()
        likeliest = base.masked_fill(~allowed, -1).topk(config.k)
        after = skipped.masked_fill(~allowed, -1).topk(config.k)
        change = top_tokens(skipped - base[which], allowed, config.k)
        values = {
            "base_ids": likeliest.indices[which],
            "base_probs": likeliest.values[which],
            "skipped_ids": after.indices,
            "skipped_probs": after.values,
            "kl": kl,
            "gained_ids": change.promoted_ids,
            "gained_deltas": change.promoted_scores,
            "lost_ids": change.suppressed_ids,
            "lost_deltas": change.suppressed_scores,
        }
        for name, value in values.items():
            columns.setdefault(name, []).extend(value.cpu().numpy())
    return columns
