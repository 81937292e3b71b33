"""Attention of cached generation on a CPU: heads that share keys and values are computed together.

PyTorch's kernel for CPUs works on one head at a time. A few new positions are little work for it, so that what it does
once a head counts: the queries of the heads that share keys and values stand as more positions of one head here.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_together"


def attend_together(
    module: torch.nn.Module,
    query: Float[Tensor, "row head pos width"],
    key: Float[Tensor, "row shared seen width"],
    value: Float[Tensor, "row shared seen depth"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "row pos head depth"], None]:
    """As transformers' own function for `sdpa`, which it calls in training, on a GPU, and for what is not done here."""
    shared = query.shape[1] // key.shape[1]
    special = options.get("dropout") or any(options.get(x) is not None for x in ("softcap", "position_bias", "cache"))
    one_mask = attention_mask is not None and attention_mask.shape[1] == 1  # for all heads
    if query.device.type != "cpu" or torch.is_grad_enabled() or not one_mask or shared == 1 or special:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    assert attention_mask is not None
    rows, heads, new, width = query.shape
    found = scaled_dot_product_attention(
        query.reshape(rows, heads // shared, shared * new, width),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, shared, 1),
        scale=scaling,
    )
    return found.reshape(rows, heads, new, value.shape[-1]).transpose(1, 2).contiguous(), None


def use_together(model: PreTrainedModel) -> None:
    """Has a model that uses `sdpa` attend in this way."""
    AttentionInterface.register(NAME, attend_together)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
