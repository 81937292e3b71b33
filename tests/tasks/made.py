"""Hand-made rows for tests of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from diff_oracle.records import LABEL_COLUMNS, Record, RecordSet, schema
from diff_oracle.subject.loading import SubjectConfig, load_hf_model
from diff_oracle.tasks.text import Vocabulary

WIDTH = 4


def tiny_vocabulary() -> Vocabulary:
    """The bundled model's."""
    loaded = load_hf_model(SubjectConfig())
    return Vocabulary(loaded.tokenizer, loaded.identity.vocab_size)


VOCABULARY = tiny_vocabulary()
(NO_ID,) = VOCABULARY.encode(("no",))
(LINE_BREAK,) = VOCABULARY.newline


def make_record(labels: Mapping[str, Any], site: str = "L1", context: Sequence[int] = range(500, 509)) -> Record:
    """A record at the last token of the context."""
    vector = np.ones(WIDTH, np.float32)
    arrays = {name: _as_stored(value) for name, value in labels.items()}
    return Record(site, len(context) - 1, tuple(context), vector, vector, "doc", arrays)


def _as_stored(value: Any) -> Any:
    """Datasets hold 32 bits: a probability must compare as it does there."""
    if isinstance(value, list):
        return np.array(value, dtype=np.float32 if any(isinstance(x, float) for x in value) else np.int64)
    return np.float32(value) if isinstance(value, float) else value


def make_rows(records: Sequence[Record], *tasks: str, per_document: int = 4, width: int = WIDTH) -> RecordSet:
    """Rows as a dataset on disk has them, every document with so many of them; each row has a vector of its own."""
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "doc_id": [f"doc{i // per_document}" for i in range(len(records))],
        "split": ["train"] * len(records),
        "site": [record.site for record in records],
        "position": [record.position for record in records],
        "token_ids": [list(record.token_ids) for record in records],
        "diff": list(rng.standard_normal((len(records), width)).astype(np.float32)),
        "before": list(rng.standard_normal((len(records), width)).astype(np.float32)),
        "diff_norm": [1.0] * len(records),
        "before_norm": [1.0] * len(records),
    }
    for name in (name for task in tasks for name in LABEL_COLUMNS[task]):
        values = [record.labels[name] for record in records]
        columns[name] = [None if np.isscalar(value) and np.isnan(value) else value for value in values]
    table = schema(width, tasks)
    return RecordSet(pa.table({f.name: pa.array(columns[f.name], type=f.type) for f in table}))


def attention(positions: list[int], ids: list[int], weights: list[float], sink: float | None = 0.0) -> dict[str, Any]:
    """Labels of task `attention`; a sink of None is an MLP's."""
    return {
        "attended_positions": positions,
        "attended_ids": ids,
        "attended_weights": weights,
        "sink_weight": np.nan if sink is None else sink,
    }


def layer_skip(base: Mapping[int, float], skipped: Mapping[int, float], kl: float, k: int = 10) -> dict[str, Any]:
    """Labels of task `layer_skip` from the two runs' probabilities."""
    deltas = {t: skipped.get(t, 0.0) - base.get(t, 0.0) for t in {**base, **skipped}}
    rising = sorted(deltas, key=lambda t: -deltas[t])
    runs = {"base": base, "skipped": skipped}
    ranked = {name: sorted(run, key=lambda t, run=run: -run[t])[:k] for name, run in runs.items()}
    labels: dict[str, Any] = {"kl": kl}
    for name, run in runs.items():
        labels |= {f"{name}_ids": ranked[name], f"{name}_probs": [run[t] for t in ranked[name]]}
    for name, order in (("gained", rising), ("lost", rising[::-1])):
        labels |= {f"{name}_ids": order[:k], f"{name}_deltas": [deltas[t] for t in order[:k]]}
    return labels


def mixed_records(number: int, seed: int = 0) -> list[Record]:
    """Rows with labels of every task: layers, heads, and MLPs, which have no attention label."""
    rng = np.random.default_rng(seed)
    names = np.flatnonzero(VOCABULARY.allowed.numpy())[:80]
    rows = []
    for i in range(number):
        site = ("L1", "L0H1", "L1.mlp")[i % 3]
        context = [1, *rng.choice(names, 12).tolist()]
        weights = rng.dirichlet(np.full(13, 0.4))
        positions = sorted(range(1, 13), key=lambda p, weights=weights: -weights[p])[:10]
        ends = rng.choice(names, 16, replace=False).tolist()
        runs = [dict(zip(rng.choice(names, 6, replace=False).tolist(), rng.dirichlet(np.ones(6)), strict=True))] * 2
        runs[1] = {**runs[0], **dict(zip(rng.choice(names, 3, replace=False).tolist(), rng.random(3), strict=True))}
        total = sum(runs[1].values())
        runs[1] = {token: share / total for token, share in runs[1].items()}
        seen = attention(positions, [context[p] for p in positions], weights[positions].tolist(), float(weights[0]))
        labels = {
            "promoted_ids": ends[:8],
            "promoted_scores": [1.0] * 8,
            "suppressed_ids": ends[8:],
            "suppressed_scores": [-1.0] * 8,
            **(attention([], [], [], sink=None) if site == "L1.mlp" else seen),
            **layer_skip(*runs, kl=float(rng.choice([0.01, 0.2, 1.0]))),
        }
        rows.append(make_record(labels, site, context))
    return rows
