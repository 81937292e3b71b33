"""Which claims are true on the model, and how much of what is true they name (design.md §8).

| claim | true where |
|---|---|
| raises, lowers t | t is among the `among` tokens whose direct logit shift by this diff is highest, or lowest |
| reads t | t has at least `min_share` of the attention that is not the sink's |
| reads only the sink | the sink has at least `sink_only` |
| skipped t | t is the likeliest next token of the run without the diff |
| skipped no change | KL(base || skipped) is below `small_kl` |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diff_oracle.records import Record
from diff_oracle.subject.lens import direct_logit_shift, top_tokens
from diff_oracle.subject.model import Subject
from diff_oracle.tasks.attention import AttentionConfig
from diff_oracle.tasks.attention_label import token_shares
from diff_oracle.tasks.claims import NO_CHANGE, ONLY_SINK, Claim
from diff_oracle.tasks.layer_skip import LayerSkipConfig
from diff_oracle.tasks.text import Vocabulary

_ROWS_AT_ONCE = 256


@dataclass
class TruthConfig:
    """What counts as true."""

    among: int = 50
    """A token is raised, or lowered, if it is one of so many."""
    min_share: float = AttentionConfig.min_share
    """Share of the weight that is not the sink's from which a token is read."""
    sink_only: float = AttentionConfig.sink_only
    """Share of the sink from which nothing else is read."""
    small_kl: float = LayerSkipConfig.small_kl
    """KL in nats below which a skip changes nothing."""


@dataclass(frozen=True)
class Measured:
    """What is true of one diff."""

    raised: frozenset[int]
    lowered: frozenset[int]
    read: frozenset[int | str]
    skipped: frozenset[int | str]

    def holds(self, claim: Claim) -> bool:
        """Whether the claim is true."""
        sets = {"raises": self.raised, "lowers": self.lowered, "reads": self.read, "skipped": self.skipped}
        return claim.said in sets[claim.kind]


def measured(
    records: Sequence[Record], subject: Subject, vocabulary: Vocabulary, config: TruthConfig | None = None
) -> list[Measured]:
    """What is true of each record's diff. Labels that a dataset lacks, and an MLP's attention, make no claim true."""
    config = config or TruthConfig()
    result = []
    for start in range(0, len(records), _ROWS_AT_ONCE):
        some = records[start : start + _ROWS_AT_ONCE]
        diffs = torch.from_numpy(np.stack([record.diff for record in some])).to(subject.device)
        # The ranking is the same whatever the final norm's scale.
        shift = direct_logit_shift(subject, diffs, torch.ones(len(some), device=subject.device))
        top = top_tokens(shift, vocabulary.allowed.to(subject.device), config.among)
        for record, raised, lowered in zip(some, top.promoted_ids.tolist(), top.suppressed_ids.tolist(), strict=True):
            read, skipped = _read(record.labels, config), _skipped(record.labels, config)
            result.append(Measured(frozenset(raised), frozenset(lowered), read, skipped))
    return result


def _read(labels: Any, config: TruthConfig) -> frozenset[int | str]:
    sink = labels.get("sink_weight", np.nan)
    if np.isnan(sink):
        return frozenset()
    if sink >= config.sink_only:
        return frozenset([ONLY_SINK])
    return frozenset(token for token, share in token_shares(labels).items() if share >= config.min_share)


def _skipped(labels: Any, config: TruthConfig) -> frozenset[int | str]:
    kl = labels.get("kl", np.nan)
    if np.isnan(kl):
        return frozenset()
    top = int(labels["skipped_ids"][0])
    return frozenset([top, NO_CHANGE]) if kl < config.small_kl else frozenset([top])
