"""What a pair's reconstructor makes of free explanations. Behind the answers, before explanations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from diff_oracle.explain.explanations import Reconstruction, six_digits
from diff_oracle.nla.metrics import cosine, unit_scale
from diff_oracle.nla.pair import DiffNLA, as_read, parsed_claims
from diff_oracle.records import Record
from diff_oracle.subject.lens import direct_logit_shift, top_tokens
from diff_oracle.subject.model import Subject

_NUM_TOKENS = 5
CONVENTIONS = {
    "cosine": "of the diff and of what the pair's reconstructor rebuilds from the claims of the explanation",
    "rebuilt": "share of the diff's squared size, 1 − ‖q − p‖² / ‖q‖²: p the reconstruction, q the diff at the size "
    "that reconstructions are made for, a root mean square of 1",
    "without words": "the same of what the reconstructor makes of no claim at all",
    "carried": "the share of the diff that the words brought: rebuilt less without words, where that is above 0; "
    "0 where nothing was claimed",
}


def reconstructions(
    pair: DiffNLA,
    records: Sequence[Record],
    explanations: Sequence[str],
    subject: Subject,
    allowed: Bool[Tensor, "vocab"],
) -> list[Reconstruction]:
    """Each diff rebuilt from its explanation.

    Args:
        pair: Rebuilds.
        records: The diffs.
        explanations: What was said of each; lines that are no claim are not read.
        subject: The model that the diffs are of.
        allowed: The tokens that may be named, on the subject's device.
    """
    claims = [as_read(parsed_claims(text, pair.av)) for text in explanations]
    rebuilt = pair.ar.reconstruct(records, claims)
    nothing = pair.ar.reconstruct(records, [()] * len(records))
    target = unit_scale(np.stack([record.diff for record in records]).astype(np.float64))
    share, without_words = (1 - np.mean((target - p) ** 2, axis=1) for p in (rebuilt, nothing))
    # A reader that is lost without words does not make them carry more.
    carried = np.where([len(text) > 0 for text in claims], share - np.maximum(without_words, 0), 0)
    vectors = torch.from_numpy(rebuilt).float().to(subject.device)
    # Which tokens come first is the same whatever the final norm's scale.
    shift = direct_logit_shift(subject, vectors, torch.ones(len(vectors), device=subject.device))
    top, tokens = top_tokens(shift, allowed, _NUM_TOKENS), pair.av.vocabulary.texts
    return [
        Reconstruction(
            cosine=six_digits(near),
            share=six_digits(with_words),
            without_words=six_digits(without),
            carried=six_digits(brought),
            promoted=[tokens[token] for token in promoted],
            suppressed=[tokens[token] for token in suppressed],
        )
        for near, with_words, without, brought, promoted, suppressed in zip(
            cosine(rebuilt, target),
            share,
            without_words,
            carried,
            top.promoted_ids.tolist(),
            top.suppressed_ids.tolist(),
            strict=True,
        )
    ]
