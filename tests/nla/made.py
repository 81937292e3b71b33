"""Hand-made rows for tests of the diff-NLA: diffs that are sums of what their claims stand for, and noise."""

from __future__ import annotations

import numpy as np

from diff_oracle.nla.metrics import unit_scale
from diff_oracle.nla.rows import Rows
from diff_oracle.records import Record
from diff_oracle.tasks.claims import Claim

WIDTH, SITES, VOCABULARY_SIZE = 12, ("L0H1", "L1"), 40


def made_rows(number: int, seed: int, noise: float = 0.05) -> Rows:
    """Each site rotates what the claimed tokens stand for in its own way; every document has four rows."""
    shared = np.random.default_rng(0)
    embedding = shared.standard_normal((VOCABULARY_SIZE, WIDTH))
    turns = {site: np.linalg.qr(shared.standard_normal((WIDTH, WIDTH)))[0] for site in SITES}
    offsets = {site: shared.standard_normal(WIDTH) for site in SITES}
    rng = np.random.default_rng(seed)
    records, gold = [], []
    for i in range(number):
        site = SITES[i % 2]
        raised, lowered = rng.choice(VOCABULARY_SIZE, (2, 2), replace=False).tolist()
        vector = embedding[raised].sum(axis=0) - embedding[lowered].sum(axis=0) + offsets[site]
        diff = (turns[site] @ vector + noise * rng.standard_normal(WIDTH)).astype(np.float32)
        before = rng.standard_normal(WIDTH).astype(np.float32)
        context = (1, *rng.choice(VOCABULARY_SIZE, 6).tolist())
        records.append(Record(site, 6, context, diff, before, f"{seed}-{i // 4}", {}))
        gold.append([*(Claim("raises", t) for t in raised), *(Claim("lowers", t) for t in lowered)])
    diffs, befores = (np.stack(x).astype(np.float64) for x in zip(*((r.diff, r.before) for r in records), strict=True))
    return Rows(records, gold, unit_scale(diffs), unit_scale(befores))


EMBEDDING = np.random.default_rng(0).standard_normal((VOCABULARY_SIZE, WIDTH))
