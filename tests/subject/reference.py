"""Diffs, attention and skips once more, from the definitions alone: plain Hugging Face modules and forward hooks, no
TransformerLens, no cache, every skip a run of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel


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


@torch.no_grad()
def reference_attention(
    model: PreTrainedModel, architecture: str, token_ids: Tensor, weighting: str
) -> dict[tuple[int, int], Tensor]:
    """(block, head) -> [row, p, s]: the unnormalised weight of source position s at position p."""
    layout = LAYOUTS[architecture]
    model.set_attn_implementation("eager")
    cache = DynamicCache()
    output = model(input_ids=token_ids, output_attentions=True, past_key_values=cache)
    writes = reference(model, architecture, token_ids).diff
    num_heads = model.config.num_attention_heads
    weights = {}
    for layer, block in enumerate(model.get_submodule(layout.blocks)):
        values = cache.layers[layer].values
        values = values.repeat_interleave(num_heads // values.shape[1], dim=1)
        for head in range(num_heads):
            pattern = output.attentions[layer][:, head]
            weights[layer, head] = pattern
            if weighting == "value_weighted":
                # Every source position's write, [row, p, s, d_model], and its part along the head's whole write.
                parts = (
                    pattern[..., None] * (values[:, head] @ _head_weight(block, architecture, head, num_heads))[:, None]
                )
                if architecture == "gemma3":
                    scale = _post_norm_scale(model, layer, token_ids)
                    parts = parts / scale[:, :, None] * (1 + block.post_attention_layernorm.weight)
                whole = writes[f"L{layer}H{head}"]
                direction = whole / whole.norm(dim=-1, keepdim=True)
                weights[layer, head] = ((parts * direction[:, :, None]).sum(-1)).abs()
    return weights


@torch.no_grad()
def reference_skip(
    model: PreTrainedModel, architecture: str, token_ids: Tensor, site: str, position: int | None
) -> Tensor:
    """The logits, [row, pos, vocab], of a run with a site's update removed at one position (None: at all)."""
    at = slice(None) if position is None else slice(position, position + 1)
    with _without(model, architecture, token_ids, site, at):
        return model(input_ids=token_ids, use_cache=False).logits


@contextmanager
def _without(model: PreTrainedModel, architecture: str, token_ids: Tensor, site: str, at: slice) -> Iterator[None]:
    layout, handles, inputs = LAYOUTS[architecture], [], {}
    blocks = list(model.get_submodule(layout.blocks))

    def change(module: nn.Module, make: object) -> None:
        def hook(_: nn.Module, args: tuple, output: object) -> object:
            value = (output[0] if isinstance(output, tuple) else output).clone()
            value[:, at] = make(value[:, at])
            return (value, *output[1:]) if isinstance(output, tuple) else value

        handles.append(module.register_forward_hook(hook))

    name = site.removeprefix("L")
    if name.isdigit() or ":" in name:
        first, _, end = name.partition(":")
        last = int(end or int(first) + 1) - 1

        def remember(_: nn.Module, args: tuple, kwargs: dict) -> None:
            inputs["pre"] = args[0] if args else kwargs["hidden_states"]

        handles.append(blocks[int(first)].register_forward_pre_hook(remember, with_kwargs=True))
        change(blocks[last], lambda value: inputs["pre"][:, at])
    elif "." in name:
        layer, _, part = name.partition(".")
        where = layout.attention_write if part == "attn" else layout.mlp_write
        change(blocks[int(layer)].get_submodule(where), torch.zeros_like)
    else:
        layer = int(name.partition("H")[0])
        # What comes before the site is as in the unchanged run, and so is what the head writes.
        write = reference(model, architecture, token_ids).diff[site][:, at]
        change(blocks[layer].get_submodule(layout.attention_write), lambda value: value - write)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _head_weight(block: nn.Module, architecture: str, head: int, num_heads: int) -> Tensor:
    layout = LAYOUTS[architecture]
    weight = block.get_submodule(layout.attention).get_submodule(layout.output).weight
    weight = weight if architecture == "gpt2" else weight.T
    width = weight.shape[0] // num_heads
    return weight[head * width : (head + 1) * width]


def _post_norm_scale(model: PreTrainedModel, layer: int, token_ids: Tensor) -> Tensor:
    """Gemma's post-attention norm's denominator at every position, [row, pos, 1]."""
    norm, seen = model.model.layers[layer].post_attention_layernorm, []
    handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(input_ids=token_ids, use_cache=False)
    handle.remove()
    return (seen[0].pow(2).mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt()
