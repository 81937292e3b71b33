"""What of the model is trained: low-rank updates (LoRA), and whole weights where a layer is no larger than the rank."""

from __future__ import annotations

from dataclasses import dataclass

from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


@dataclass
class LoraOptions:
    """The adapter."""

    rank: int = 128
    """Rank of the updates; every linear layer but the unembedding has one. Where the rank reaches a layer's smaller
    side, two factors would be more than the weight that they make: there the weight itself is trained."""
    alpha: float = 128.0
    """Low-rank updates are scaled by alpha / rank."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"lora.rank must be at least 1 and lora.alpha above 0, got {self.rank} and {self.alpha}")


def add_adapter(model: PreTrainedModel, options: LoraOptions) -> PeftModel:
    """The model with a fresh adapter: it computes what it did before."""
    unembedding = model.get_output_embeddings()
    linear = {
        name: module.weight.shape
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not unembedding
    }
    whole = [name for name, shape in linear.items() if min(shape) <= options.rank]
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules="all-linear" if len(whole) < len(linear) else DUMMY_TARGET_MODULES,
        modules_to_save=whole or None,  # PEFT's word for modules that are trained and saved whole
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.ndim == 2)  # biases stay
    return adapted
