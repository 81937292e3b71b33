"""A dataset of a few made-up rows, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_gen.parts import writing
from diff_oracle.records import schema

COLUMNS = schema(4, ["logit_lens"])
SUBJECT = {"name": "toy", "weights_hash": "w" * 64, "tokenizer_hash": "t" * 64}


def toy_rows(splits: Sequence[str]) -> dict[str, list[Any]]:
    n = len(splits)
    return {
        "doc_id": [f"doc{i}" for i in range(n)],
        "split": list(splits),
        "site": ["L0"] * n,
        "position": [8] * n,
        "token_ids": [list(range(9))] * n,
        "diff": [np.full(4, i, np.float32) for i in range(n)],
        "before": [np.ones(4, np.float32)] * n,
        "diff_norm": [1.0] * n,
        "before_norm": [2.0] * n,
        "promoted_ids": [[1, 2]] * n,
        "promoted_scores": [[2.0, 1.0]] * n,
        "suppressed_ids": [[3, 4]] * n,
        "suppressed_scores": [[-2.0, -1.0]] * n,
    }


def write_toy(
    path: Path,
    parts: Sequence[Sequence[str]] = (("train", "test", "train"), ("select", "test")),
    card: str = "A toy.\n",
) -> Path:
    """Writes parts of rows in these splits, and closes the dataset."""
    with writing(path, COLUMNS) as writer:
        for part, splits in enumerate(parts):
            writer.write(part, toy_rows(splits), {"documents": len(splits)})
        writer.close(writer.manifest(len(parts), {"subject": SUBJECT}), card)
    return path
