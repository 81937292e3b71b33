"""Labels of task `logit_lens`: the ends of the direct logit shift."""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool
from torch import Tensor

from diff_oracle.subject.capture import Captured
from diff_oracle.subject.forward import Forward
from diff_oracle.subject.lens import direct_logit_shift, top_tokens
from diff_oracle.tasks.logit_lens import LogitLensConfig

_CHUNK_FLOATS = 2**24  # of one [query, vocab] tensor: bounds memory; large enough to go back to the system at once


def measure(
    run: Forward, captured: Captured, allowed: Bool[Tensor, "vocab"], config: LogitLensConfig
) -> dict[str, list[Any]]:
    """The label columns, one row a query, strongest token first."""
    columns: dict[str, list[Any]] = {}
    chunk = max(1, _CHUNK_FLOATS // len(allowed))
    for start in range(0, len(captured.diff), chunk):
        part = slice(start, start + chunk)
        shift = direct_logit_shift(run.subject, captured.diff[part], captured.final_scale[part])
        tops = top_tokens(shift, allowed, config.k)
        for name in ("promoted_ids", "promoted_scores", "suppressed_ids", "suppressed_scores"):
            columns.setdefault(name, []).extend(getattr(tops, name).cpu().numpy())
    return columns
