"""The losses of GRPO (Shao et al. 2024, arXiv:2402.03300), as functions of tensors.

Of the group of samples i of one diff, with rewards r_i:

    advantage A_i = (r_i − mean r) / std r        0 for a whole group whose std is tiny: it says nothing but noise
    ratio ρ_t     = π(token t) / π_sampling(token t)
    loss_t        = −min(ρ_t A, clip(ρ_t, 1 − ε, 1 + ε) A) + β · k3_t
    k3_t          = e^{d} − d − 1, d = log π_ref − log π        an estimate of KL(π ‖ π_ref) that is never negative
                                                            (as a loss, its gradient is that of KL(π_ref ‖ π))

What is minimised is the mean over all sampled tokens of an update, so that a long answer's tokens weigh as much as a
short one's.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def advantages(rewards: Float[Tensor, "group sample"], min_spread: float) -> Float[Tensor, "group sample"]:
    """How much better each sample is than its group, in the group's standard deviations; 0 where these are tiny.

    Args:
        rewards: Of the samples.
        min_spread: A group whose standard deviation is not above it is dropped.
    """
    spread = rewards.std(dim=1, correction=0, keepdim=True)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return torch.where(spread > min_spread, centred / spread.clamp(min=1e-12), 0.0)


def clipped_losses(
    log_probs: Float[Tensor, "sample token"],
    old: Float[Tensor, "sample token"],
    advantage: Float[Tensor, "sample token"],
    clip: float,
) -> Float[Tensor, "sample token"]:
    """−min(ρ A, clip(ρ) A) of every token.

    Args:
        log_probs: Under the policy as it is, with gradients.
        old: Under the policy as it was when the tokens were sampled.
        advantage: Of every token.
        clip: ε.
    """
    ratio = (log_probs - old).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def k3(
    log_probs: Float[Tensor, "sample token"], reference: Float[Tensor, "sample token"]
) -> Float[Tensor, "sample token"]:
    """The k3 estimate of KL(policy ‖ reference), in nats, of every token."""
    difference = reference - log_probs
    return difference.exp() - difference - 1


def share_clipped(
    log_probs: Float[Tensor, "sample token"],
    old: Float[Tensor, "sample token"],
    mask: Bool[Tensor, "sample token"],
    clip: float,
) -> float:
    """The share of sampled tokens whose ratio is outside of 1 ± ε."""
    ratio = (log_probs.detach() - old).exp()[mask]
    return float(((ratio - 1).abs() > clip).float().mean())
