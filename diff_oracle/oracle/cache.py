"""Keys and values of an answer that is being written, in buffers with room ahead.

transformers' own cache is copied whole for every token that is added to it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

_ROOM = 64  # positions, at least


class GrowingLayer(DynamicLayer):
    """`keys` and `values` are views of buffers, which are made anew, half as large again, when they are full."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds positions; returns all keys and values."""
        length = self.get_seq_length()
        if length == 0:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        new, end = (key_states, value_states), length + key_states.shape[-2]
        held = [self.keys, self.values]
        if not self._holds(held) or self._buffers[0].shape[-2] < end:
            room = end + max(_ROOM, end // 2)
            self._buffers = [values.new_empty((*values.shape[:-2], room, values.shape[-1])) for values in held]
            for buffer, values in zip(self._buffers, held, strict=True):
                buffer[..., :length, :] = values
        for buffer, values in zip(self._buffers, new, strict=True):
            buffer[..., length:end, :] = values
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Int[Tensor, "kept"]) -> None:
        """Keeps these rows, in this order; in the buffers, where they are, only what changes its place is copied."""
        if not self._holds([self.keys, self.values]) or len(indices) > len(self.keys):
            super().batch_select_indices(indices)
            return
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().flatten()
        length = self.get_seq_length()
        for buffer in self._buffers:
            buffer[moved, :, :length] = buffer[indices[moved], :, :length]
        self._buffers = [buffer[: len(indices)] for buffer in self._buffers]
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)

    def _holds(self, held: list[Tensor]) -> bool:
        """Whether what is held is the beginning of the buffers: rows may have been chosen, repeated or cut since."""
        return len(self._buffers) == 2 and all(
            values.data_ptr() == buffer.data_ptr()
            and values.shape[:-2] == buffer.shape[:-2]
            and values.stride() == buffer.stride()
            for values, buffer in zip(held, self._buffers, strict=True)
        )

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self._buffers = []


def growing_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache for a model; layers that see a window of the text alone have transformers' own.

    Raises:
        ValueError: A layer of the model keeps something else than keys and values.
    """
    cache = DynamicCache(config=model.config.get_text_config())
    if strange := {type(layer).__name__ for layer in cache.layers} - {"DynamicLayer", "DynamicSlidingWindowLayer"}:
        raise ValueError(f"{type(model).__name__} cannot be asked: it has layers without attention ({strange.pop()})")
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def bytes_a_position(model: PreTrainedModel) -> int:
    """What the keys and values of one position of one row take, over all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize


def sliding_window(model: PreTrainedModel) -> float:
    """Positions that every attention layer of a model sees; infinite where none is limited."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return float("inf") if window is None else float(window)
