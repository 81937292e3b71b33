"""Labels of task `attention`: the source positions that a site's heads attended to, and the sink's share."""

from __future__ import annotations

from typing import Any, cast

from jaxtyping import Bool
from torch import Tensor

from diff_oracle.subject.attention import Weighting, attended
from diff_oracle.subject.capture import Captured
from diff_oracle.subject.forward import Forward
from diff_oracle.tasks.attention import AttentionConfig


def measure(
    run: Forward, captured: Captured, allowed: Bool[Tensor, "vocab"], config: AttentionConfig
) -> dict[str, list[Any]]:
    """The label columns, one row a query, the most attended position first; a repeated token stands once a position."""
    shares = attended(run, cast(Weighting, config.weighting))  # the config has checked it
    sink, sources = shares[:, 0], shares[:, 1:].nan_to_num(0)
    top = sources.topk(min(config.k, sources.shape[1]))
    positions = top.indices + 1
    ids = run.token_ids[run.rows[run.place][:, None], positions].cpu()
    # Positions without weight fill up the rows of early positions, and those of sites without attention.
    counts = (top.values > 0).sum(-1).tolist()
    columns = {"attended_positions": positions.cpu(), "attended_ids": ids, "attended_weights": top.values.cpu()}
    lists = {name: [row[:n] for row, n in zip(value.numpy(), counts, strict=True)] for name, value in columns.items()}
    return lists | {"sink_weight": [None if share != share else share for share in sink.tolist()]}
