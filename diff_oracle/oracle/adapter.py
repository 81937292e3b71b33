"""What of the model is trained: low-rank updates (LoRA) or whole weights, in float32 whatever the base's precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from diff_oracle.oracle.injection import decoder_blocks

KINDS = ("lora", "full")


@dataclass
class LoraOptions:
    """The adapter."""

    rank: int = 128
    """Rank of the updates. Where it reaches a layer's smaller side, two factors would be more than the weight that they
    make: there the weight itself is trained."""
    alpha: float = 128.0
    """Low-rank updates are scaled by alpha / rank."""
    first_block: int = 0
    """Blocks before this one stay as they are. With `injection=residual` behind the last of them, training then needs
    no backward pass through them."""
    kind: str = "lora"
    """`lora`: every linear layer but the unembedding has a low-rank update. `full`: its weight itself is trained.
    Embeddings, norms and biases stay as they are either way."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown lora.kind {self.kind!r}: choose from {', '.join(KINDS)}")
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"lora.rank must be at least 1 and lora.alpha above 0, got {self.rank} and {self.alpha}")
        if self.first_block < 0:
            raise ValueError(f"lora.first_block must be at least 0, got {self.first_block}")


def add_adapter(model: PreTrainedModel, options: LoraOptions) -> PeftModel:
    """The model with a fresh adapter: it computes what it did before.

    Raises:
        ValueError: The model has no block `first_block`.
    """
    blocks = decoder_blocks(model)
    if options.first_block >= len(blocks):
        raise ValueError(f"lora.first_block={options.first_block}, but the model has blocks 0…{len(blocks) - 1}")
    left_alone = {model.get_output_embeddings(), *(m for b in blocks[: options.first_block] for m in b.modules())}
    linear = {
        name: module.weight.shape
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module not in left_alone
    }
    whole = [name for name, shape in linear.items() if options.kind == "full" or min(shape) <= options.rank]
    low_rank = [name for name in linear if name not in whole]
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=low_rank or DUMMY_TARGET_MODULES,
        modules_to_save=whole or None,  # PEFT's word for modules that are trained and saved whole
        task_type="CAUSAL_LM",
    )
    return _adapted(model, config)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with the adapter that `save_pretrained` wrote into a folder.

    PEFT's own way would round whole weights to the base's precision.
    """
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False
    adapted = _adapted(model, config)
    adapted.load_adapter(str(folder), adapted.active_adapter, is_trainable=True)
    return adapted


def _adapted(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    adapted = get_peft_model(model, config)  # makes low-rank updates in float32, but copies whole layers as they are
    for wrapper in adapted.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            layer = wrapper.modules_to_save[adapted.active_adapter]
            if layer.weight.dtype != torch.float32:
                _run_in_float32(layer)
    for parameter in adapted.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.ndim == 2)  # biases stay
    return adapted


def _run_in_float32(layer: nn.Linear | Conv1D) -> None:
    """Makes a layer's weights float32, between inputs and outputs of the precision it had."""
    dtype = layer.weight.dtype

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(value.float() for value in args)

    def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.to(dtype)

    layer.float()
    layer.register_forward_pre_hook(before)
    layer.register_forward_hook(after)
