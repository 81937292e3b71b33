"""What of the model is trained: low-rank updates (LoRA), and whole weights where a layer is no larger than the rank."""

from __future__ import annotations

from dataclasses import dataclass

from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from diff_oracle.oracle.injection import decoder_blocks


@dataclass
class LoraOptions:
    """The adapter."""

    rank: int = 128
    """Rank of the updates; every linear layer but the unembedding has one. Where the rank reaches a layer's smaller
    side, two factors would be more than the weight that they make: there the weight itself is trained."""
    alpha: float = 128.0
    """Low-rank updates are scaled by alpha / rank."""
    first_block: int = 0
    """Blocks before this one stay as they are. With `injection=residual` behind the last of them, training then needs
    no backward pass through them."""

    def __post_init__(self) -> None:
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
    whole = [name for name, shape in linear.items() if min(shape) <= options.rank]
    low_rank = [name for name in linear if name not in whole]
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=low_rank or DUMMY_TARGET_MODULES,
        modules_to_save=whole or None,  # PEFT's word for modules that are trained and saved whole
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.ndim == 2)  # biases stay
    return adapted
