"""Tiny models with random weights, one of each architecture that the definitions must hold on. For tests.

What could hide a mistake is made to differ: shared keys and values, heads that do not fill the residual stream, biases
and norm weights far from their usual start, a window shorter than a text, blocks whose halves run in parallel.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

_GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}

ARCHITECTURES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (
        LlamaForCausalLM,
        LlamaConfig,
        _GROUPED | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "tie_word_embeddings": True},
    ),
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 512}),
    "gpt_neox": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig,
        {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "use_parallel_residual": True,
            "max_position_embeddings": 512,
        },
    ),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config,
        _GROUPED | {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 16},
    ),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        _GROUPED
        | {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}
"""Name -> model class, config class, settings."""


def random_model(architecture: str, vocab_size: int, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A tiny model in eval mode; the same for the same arguments.

    Args:
        architecture: One of `ARCHITECTURES`.
        vocab_size: Rows of the embedding.
        seed: Of its weights.
        overrides: Settings of the Hugging Face config.
    """
    model_class, config_class, settings = ARCHITECTURES[architecture]
    config = config_class(
        vocab_size=vocab_size, bos_token_id=0, eos_token_id=0, pad_token_id=0, **(settings | overrides)
    )
    with torch.random.fork_rng(devices=[]):  # its own initialisation is overwritten below
        model = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim > 1:
                parameter.normal_(0, 0.5 if "emb" in name or "wte" in name else 0.15, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.2, generator=generator)
            elif architecture == "gemma3":  # multiplies by 1 + weight
                parameter.normal_(0, 0.3, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return model.eval()
