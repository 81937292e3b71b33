"""A control that carries as much and means nothing: claims named by a randomly rotated unembedding (research.md §5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from diff_oracle.nla.rows import Claims
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import Record
from diff_oracle.subject.lens import direct_logit_shift, top_tokens
from diff_oracle.subject.model import Subject
from diff_oracle.tasks.claims import Claim
from diff_oracle.tasks.text import Vocabulary

_ROWS_AT_ONCE = 256


def rotated_claims(
    records: Sequence[Record],
    explanations: Sequence[Claims],
    subject: Subject,
    vocabulary: Vocabulary,
    seed: int,
) -> list[Claims]:
    """The explanations with other tokens raised and lowered: those that the rotated diff would raise and lower.

    As many as before, in their places; one rotation for all. Other claims stay.
    """
    rotation = torch.from_numpy(_rotation(subject.d_model, seed)).to(subject.device)
    allowed = vocabulary.allowed.to(subject.device)
    result: list[Claims] = []
    for start in range(0, len(records), _ROWS_AT_ONCE):
        some = records[start : start + _ROWS_AT_ONCE]
        claims = explanations[start : start + _ROWS_AT_ONCE]
        diffs = torch.from_numpy(np.stack([record.diff for record in some])).to(subject.device) @ rotation
        shift = direct_logit_shift(subject, diffs, torch.ones(len(some), device=subject.device))
        most = max(1, *(sum(c.kind == kind for c in row) for row in claims for kind in ("raises", "lowers")))
        top = top_tokens(shift, allowed, most)
        for row, raised, lowered in zip(claims, top.promoted_ids.tolist(), top.suppressed_ids.tolist(), strict=True):
            named = {"raises": iter(raised), "lowers": iter(lowered)}
            result.append(tuple(Claim(c.kind, next(named[c.kind])) if c.kind in named else c for c in row))
    return result


def _rotation(d_model: int, seed: int) -> Float[np.ndarray, "d_model d_model"]:
    """Drawn evenly from all rotations."""
    from scipy.stats import special_ortho_group  # takes most of a second to import, in every command

    return special_ortho_group.rvs(d_model, random_state=keyed_rng(seed, "rotation")).astype(np.float32)
