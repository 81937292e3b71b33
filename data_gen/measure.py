"""Windows of text -> rows of a dataset: one forward pass, and each task's labels. Between corpus and parquet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from data_gen import attention, layer_skip, logit_lens
from diff_oracle.records import Split
from diff_oracle.subject.capture import read_diffs
from diff_oracle.subject.forward import Query, forward
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite
from diff_oracle.tasks.base import Task

MEASURES: dict[str, Callable[..., dict[str, list[Any]]]] = {
    "logit_lens": logit_lens.measure,
    "attention": attention.measure,
    "layer_skip": layer_skip.measure,
}
"""Task -> what makes its label columns of a forward pass, its diffs, the tokens a label may name, and its config."""


@dataclass(frozen=True)
class Window:
    """A stretch of a document, as the subject sees it."""

    doc_id: str
    split: Split
    token_ids: list[int]
    queries: list[tuple[int, DiffSite]]


def measure(
    subject: Subject, windows: tuple[Window, ...], tasks: list[Task], allowed: Bool[Tensor, "vocab"]
) -> dict[str, list[Any]]:
    """One forward pass over right-padded windows; the rows of all their queries."""
    width = max(len(window.token_ids) for window in windows)
    token_ids = torch.zeros(len(windows), width, dtype=torch.long, device=subject.device)
    for row, window in enumerate(windows):
        token_ids[row, : len(window.token_ids)] = torch.tensor(window.token_ids)
    queries = [Query(row, p, site) for row, window in enumerate(windows) for p, site in window.queries]
    asked = {task.name for task in tasks}
    run = forward(subject, token_ids, queries, attention="attention" in asked, prefix="layer_skip" in asked)
    captured = read_diffs(run)
    owners = [windows[query.row] for query in queries]
    columns: dict[str, list[Any]] = {
        "doc_id": [w.doc_id for w in owners],
        "split": [w.split for w in owners],
        "site": [str(query.site) for query in queries],
        "position": [query.position for query in queries],
        "token_ids": [w.token_ids[: query.position + 1] for w, query in zip(owners, queries, strict=True)],
        "diff": list(captured.diff.cpu().numpy()),
        "before": list(captured.before.cpu().numpy()),
        "diff_norm": captured.diff.norm(dim=-1).tolist(),
        "before_norm": captured.before.norm(dim=-1).tolist(),
    }
    for task in tasks:
        columns |= MEASURES[task.name](run, captured, allowed, task.config)
    return columns
