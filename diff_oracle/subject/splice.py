"""The model's next-token distribution with something else in place of a site's diff; for reconstructions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diff_oracle.subject.capture import Diff
from diff_oracle.subject.forward import last_hook
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite

_TOKENS_AT_ONCE = 2**12


@torch.no_grad()
def spliced_log_probs(
    subject: Subject, diffs: Sequence[Diff], instead: Float[Tensor, "diff d_model"]
) -> Float[Tensor, "diff vocab"]:
    """Log-probabilities of the token behind each diff's position, with `instead` in its place and all behind it run.

    The residual gets `instead` − diff on top at the diff's own position, where its site writes; the true diff thus
    gives what the model does, and zeros what it does without it.

    Args:
        subject: The model.
        diffs: Where, and what stood there.
        instead: Raw, in the residual's units.
    """
    result = torch.empty(len(diffs), subject.identity.vocab_size, device=subject.device)
    order = sorted(range(len(diffs)), key=lambda i: len(diffs[i].token_ids))
    at_once = max(1, _TOKENS_AT_ONCE // len(diffs[order[-1]].token_ids)) if order else 1
    for start in range(0, len(order), at_once):
        batch = order[start : start + at_once]
        some = [diffs[i] for i in batch]
        true = torch.stack([torch.as_tensor(diff.diff) for diff in some]).to(subject.device)
        final = _final_residual(subject, some, instead[batch].to(subject.device) - true)
        result[batch] = subject.unembed(final).log_softmax(-1)
    return result


def _final_residual(
    subject: Subject, diffs: Sequence[Diff], change: Float[Tensor, "diff d_model"]
) -> Float[Tensor, "diff d_model"]:
    """What the final norm reads at each diff's position; nothing behind it is run."""
    width = max(len(diff.token_ids) for diff in diffs)
    token_ids = torch.zeros(len(diffs), width, dtype=torch.long, device=subject.device)
    for row, diff in enumerate(diffs):
        token_ids[row, : len(diff.token_ids)] = torch.tensor(diff.token_ids)
    positions = torch.tensor([diff.position for diff in diffs], device=subject.device)
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, diff in enumerate(diffs):
        rows_of[_hook(DiffSite.parse(diff.site))].append(row)
    seen: list[Tensor] = []

    def adder(rows: Tensor):  # type: ignore[no-untyped-def]
        def add(value: Tensor, hook: object) -> Tensor:
            value[rows, positions[rows]] += change[rows].to(value.dtype)
            return value

        return add

    hooks = [(name, adder(torch.tensor(rows, device=subject.device))) for name, rows in rows_of.items()]
    hooks.append((last_hook(subject), lambda value, hook: seen.append(value.float())))
    with subject.bridge.hooks(fwd_hooks=hooks):
        subject.hf_model.base_model(input_ids=token_ids, use_cache=False)
    return seen[0][torch.arange(len(diffs), device=subject.device), positions]


def _hook(site: DiffSite) -> str:
    """The activation that is, or ends with, what a site writes."""
    if site.kind in ("layer", "span"):
        return f"blocks.{site.last_layer}.hook_resid_post"
    return f"blocks.{site.layer}.hook_{'mlp' if site.kind == 'mlp' else 'attn'}_out"


def kl_divergence(base: Float[Tensor, "row vocab"], other: Float[Tensor, "row vocab"]) -> Float[Tensor, "row"]:
    """KL(base || other) in nats, of log-probabilities."""
    return (base.exp() * (base - other)).sum(-1)
