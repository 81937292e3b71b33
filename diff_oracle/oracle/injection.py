"""Injectors: how a vector gets into the oracle, in place of the slot tokens.

Both work on the direction u = δ/‖δ‖ (the prompt says the size); slot j gets v_j = A_j(u). A_j is the identity, or it is
learned, u ↦ W_j u + b_j with b_j = 0 at the start, kept as one matrix [W_j b_j] that multiplies [u 1]: a map for all
slots that starts as the identity, or a map for every slot, with W_j = I, −I, I, … at the start. With both signs side by
side, a question about the lowered tokens is answered by looking at another slot, with the same weights.
A zero δ has no direction and injects nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

MAPS = ("none", "affine", "per_slot")


@dataclass
class InjectionConfig:
    """Where and how a diff is injected."""

    kind: str = "embed"
    """`embed` replaces the slots' embeddings, `residual` adds to the residual stream behind a block."""
    map: str = "per_slot"
    """What the direction passes through first: `none`, `affine` (learned, one for all slots) or `per_slot`."""
    num_slots: int = 2
    """Slots that carry the vector."""
    scale: float = 1.0
    """Size of what is injected: in mean embedding norms (`embed`), or in norms of the residual there (`residual`)."""
    block: int = 1
    """`residual`: the block behind whose output is injected."""

    def __post_init__(self) -> None:
        for name, got, known in (("kind", self.kind, INJECTORS), ("map", self.map, MAPS)):
            if got not in known:
                raise ValueError(f"unknown injection.{name} {got!r}: choose from {', '.join(known)}")
        if self.num_slots < 1:
            raise ValueError(f"injection.num_slots must be at least 1, got {self.num_slots}")
        if self.block < 0:
            raise ValueError(f"injection.block must be at least 0, got {self.block}")


class Injector(nn.Module):
    """Common part: the map, and a hook on one of the model's modules that is live inside `injecting`."""

    def __init__(self, config: InjectionConfig, d_model: int) -> None:
        super().__init__()
        self.config = config
        number = {"none": 0, "affine": 1, "per_slot": config.num_slots}[config.map]
        signs = [(-1.0) ** j * torch.eye(d_model, d_model + 1) for j in range(number)]
        self.maps = nn.ParameterList(signs)
        self._live: tuple[Bool[Tensor, "row pos"], Float[Tensor, "row d_model"]] | None = None

    def vectors(self, diff: Float[Tensor, "row d_model"]) -> Float[Tensor, "row slot d_model"]:
        """v_j = A_j(δ/‖δ‖)."""
        unit = diff / diff.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        one = unit.new_ones(len(unit), 1)
        mapped = [torch.cat([unit, one], dim=-1) @ matrix.T for matrix in self.maps] or [unit]
        return torch.stack([mapped[j % len(mapped)] for j in range(self.config.num_slots)], dim=1)

    def inject(
        self, hidden: Float[Tensor, "row pos d_model"], vector: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row pos d_model"]:
        """What stands at each position if it is the slot that gets `vector`."""
        raise NotImplementedError

    @contextmanager
    def injecting(self, slot_mask: Bool[Tensor, "row pos"], diff: Float[Tensor, "row d_model"]) -> Iterator[None]:
        """Within, forward passes over these rows have the diff injected at their slots."""
        self._live = slot_mask & (diff.norm(dim=-1) > 0)[:, None], diff
        try:
            yield
        finally:
            self._live = None

    def attach(self, module: nn.Module) -> None:
        """Hooks the module whose output is changed."""
        module.register_forward_hook(self._hook)

    def _hook(
        self, module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]
    ) -> Tensor | tuple[Tensor, ...]:
        if self._live is None:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        mask, diff = self._live
        if hidden.shape[1] == 1 and mask.shape[1] > 1:
            return output  # a step of cached generation: the prompt is in the cache, a generated token is no slot
        if hidden.shape[:2] != mask.shape:
            raise RuntimeError(f"injection for rows of shape {tuple(mask.shape)}, got {tuple(hidden.shape[:2])}")
        slot = (mask.cumsum(-1) - 1).clamp(min=0, max=self.config.num_slots - 1)
        vector = self.vectors(diff).take_along_dim(slot[..., None], dim=1)
        injected = self.inject(hidden, vector).to(hidden.dtype)
        hidden = torch.where(mask[..., None], injected, hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


class EmbedInjector(Injector):
    """Slot embedding := s · v_j, s = scale × the mean norm of the token embeddings."""

    unit: Tensor

    def __init__(self, config: InjectionConfig, model: PreTrainedModel) -> None:
        embedding = model.get_input_embeddings()
        super().__init__(config, embedding.weight.shape[1])
        with torch.no_grad():  # through the module, since some scale what they look up
            ids = torch.arange(embedding.weight.shape[0], device=embedding.weight.device)
            norms = torch.cat([embedding(part).float().norm(dim=-1) for part in ids.split(8192)])
        self.register_buffer("unit", norms.mean() * config.scale)
        self.attach(embedding)

    def inject(
        self, hidden: Float[Tensor, "row pos d_model"], vector: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row pos d_model"]:
        """s · v."""
        return self.unit * vector


class ResidualInjector(Injector):
    """h := h + c · ‖h‖ · v_j behind block m, c = scale."""

    def __init__(self, config: InjectionConfig, model: PreTrainedModel) -> None:
        super().__init__(config, model.get_input_embeddings().weight.shape[1])
        layers = decoder_blocks(model)
        if config.block >= len(layers):
            raise ValueError(f"injection.block={config.block}, but the model has blocks 0…{len(layers) - 1}")
        self.attach(layers[config.block])

    def inject(
        self, hidden: Float[Tensor, "row pos d_model"], vector: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row pos d_model"]:
        """h + c · ‖h‖ · v."""
        size = self.config.scale * hidden.float().norm(dim=-1, keepdim=True)
        return hidden.float() + size * vector


INJECTORS: dict[str, type[Injector]] = {"embed": EmbedInjector, "residual": ResidualInjector}


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The model's transformer blocks, under whatever name its architecture gives them."""
    num_blocks = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_blocks:
            return module
    raise ValueError(f"{type(model).__name__} has no list of {num_blocks} blocks")
