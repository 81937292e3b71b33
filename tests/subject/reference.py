"""The diffs once more, from the definitions alone: plain Hugging Face modules and forward hooks, no TransformerLens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass
class Layout:
    """Where an architecture keeps its parts; names within a block."""

    blocks: str
    attention: str
    output: str
    attention_write: str
    mlp_write: str
    norm: str
    parallel: bool = False


_LLAMA = Layout("model.layers", "self_attn", "o_proj", "self_attn", "mlp", "model.norm")
LAYOUTS = {
    "llama": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": Layout("transformer.h", "attn", "c_proj", "attn", "mlp", "transformer.ln_f"),
    "gpt_neox": Layout(
        "gpt_neox.layers", "attention", "dense", "attention", "mlp", "gpt_neox.final_layer_norm", parallel=True
    ),
    "gemma3": Layout(
        "model.layers", "self_attn", "o_proj", "post_attention_layernorm", "post_feedforward_layernorm", "model.norm"
    ),
}


@dataclass
class Reference:
    """Site name -> [row, pos, d_model]; `final` is the final norm's input, `logits` the model's."""

    diff: dict[str, Tensor]
    before: dict[str, Tensor]
    final: Tensor
    logits: Tensor


@torch.no_grad()
def reference(model: PreTrainedModel, architecture: str, token_ids: Tensor) -> Reference:
    """Every site of the model at every position."""
    layout = LAYOUTS[architecture]
    blocks = list(model.get_submodule(layout.blocks))
    seen: dict[tuple[str, int], Tensor] = {}

    def watch(module: nn.Module, what: str, layer: int, side: str) -> None:
        def hook(_: nn.Module, args: tuple, kwargs: dict, output: object = None) -> None:
            value = output if side == "out" else (args[0] if args else kwargs["hidden_states"])
            seen[what, layer] = value[0] if isinstance(value, tuple) else value

        if side == "out":
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
        else:
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    handles: list = []
    for layer, block in enumerate(blocks):
        attention = block.get_submodule(layout.attention)
        watch(block, "pre", layer, "in")
        watch(block, "post", layer, "out")
        watch(attention, "raw_attn", layer, "out")
        watch(attention.get_submodule(layout.output), "z", layer, "in")
        watch(block.get_submodule(layout.attention_write), "attn", layer, "out")
        watch(block.get_submodule(layout.mlp_write), "mlp", layer, "out")
    watch(model.get_submodule(layout.norm), "final", 0, "in")
    model.set_attn_implementation("eager")
    logits = model(input_ids=token_ids, use_cache=False).logits
    for handle in handles:
        handle.remove()

    diff, before = {}, {}
    num_heads = model.config.num_attention_heads
    for layer, block in enumerate(blocks):
        pre, attn, mlp = seen["pre", layer], seen["attn", layer], seen["mlp", layer]
        diff[f"L{layer}"], before[f"L{layer}"] = seen["post", layer] - pre, pre
        diff[f"L{layer}.attn"], before[f"L{layer}.attn"] = attn, pre
        diff[f"L{layer}.mlp"], before[f"L{layer}.mlp"] = mlp, pre if layout.parallel else pre + attn
        for end in range(layer + 2, min(layer + 4, len(blocks)) + 1):
            diff[f"L{layer}:{end}"], before[f"L{layer}:{end}"] = seen["post", end - 1] - pre, pre
        weight = block.get_submodule(layout.attention).get_submodule(layout.output).weight
        if architecture != "gpt2":  # whose weights lie the other way round
            weight = weight.T
        z = seen["z", layer]
        width = z.shape[-1] // num_heads
        for head in range(num_heads):
            part = slice(head * width, (head + 1) * width)
            write = z[..., part] @ weight[part]
            if architecture == "gemma3":
                raw = seen["raw_attn", layer]
                denominator = (raw.pow(2).mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt()
                write = write / denominator * (1 + block.post_attention_layernorm.weight)
            diff[f"L{layer}H{head}"], before[f"L{layer}H{head}"] = write, pre
    return Reference(diff, before, seen["final", 0], logits)
