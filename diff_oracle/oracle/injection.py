"""Injectors: how vectors get into the oracle, in place of the slot tokens.

`input` says which vectors a diff δ is shown by: δ itself, the residual before it and behind it, or δ and the residual
before it. Each has `num_slots` slots side by side. Only directions are injected, u = x/‖x‖ (the prompt says the size);
slot j of an input gets v_j = A_j(u). A_j is the identity, so that every slot repeats u, or it is learned,
u ↦ W_j u + b_j with b_j = 0 at the start, kept as one matrix [W_j b_j] that multiplies [u 1]: a map for all slots of an
input that starts as the identity, or a map for every slot, with W_j = I, −I, I, … at the start. With both signs side by
side, a question about the lowered tokens is answered by looking at another slot, with the same weights.

Maps are learned in the basis `injection.basis`. In `unembedding` each dimension is multiplied by the final norm's gain
γ before the map and divided by it behind: u = γx/‖γx‖ and v_j = A_j(u)/γ · ‖γx‖/‖x‖, which starts as x/‖x‖ again.
Where gains differ by an order of magnitude, as in Gemma, the stream is small where they are large: a map learned
in the stream's own basis drowns these dimensions in the others, and with them the tokens that a diff raises and lowers.

A vector of zeros has no direction and injects nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

MAPS = ("none", "affine", "per_slot")
BASES = ("residual", "unembedding")
INPUTS = {"diff": 1, "before_after": 2, "diff_before": 2, "text": 0}
"""What an oracle is given -> how many vectors that is."""


@dataclass
class InjectionConfig:
    """What is injected, where and how."""

    kind: str = "embed"
    """`embed` replaces the slots' embeddings, `residual` adds to the residual stream behind a block."""
    input: str = "diff"
    """`diff`; `before_after`, the residual before and behind it; `diff_before`, the diff and the residual before it; or
    `text`: no vector, but the context in the prompt (`prompt.context_tokens`), an oracle to compare with."""
    map: str = "per_slot"
    """What a direction passes through first: `none`, `affine` (learned, one for all slots) or `per_slot`."""
    basis: str = "residual"
    """What maps are learned in: `residual`, the stream as it is, or `unembedding`, each dimension times the final
    norm's gain."""
    num_slots: int = 2
    """Slots that carry each vector."""
    scale: float = 1.0
    """Size of what is injected: in mean embedding norms (`embed`), or in norms of the residual there (`residual`)."""
    block: int = 1
    """`residual`: the block behind whose output is injected."""

    def __post_init__(self) -> None:
        for name, got, known in (
            ("kind", self.kind, INJECTORS),
            ("input", self.input, INPUTS),
            ("map", self.map, MAPS),
            ("basis", self.basis, BASES),
        ):
            if got not in known:
                raise ValueError(f"unknown injection.{name} {got!r}: choose from {', '.join(known)}")
        if self.num_slots < 1:
            raise ValueError(f"injection.num_slots must be at least 1, got {self.num_slots}")
        if self.block < 0:
            raise ValueError(f"injection.block must be at least 0, got {self.block}")

    def vectors(
        self, diff: Float[np.ndarray, "d_model"], before: Float[np.ndarray, "d_model"]
    ) -> Float[np.ndarray, "input d_model"]:
        """What is injected for a diff and the residual that it was added to."""
        shown = {"diff": [diff], "before_after": [before, before + diff], "diff_before": [diff, before], "text": []}
        return np.array(shown[self.input], dtype=np.float32).reshape(-1, len(diff))


class Injector(nn.Module):
    """Common part: the maps, and a hook on one of the model's modules that is live inside `injecting`."""

    gains: Tensor

    def __init__(self, config: InjectionConfig, model: PreTrainedModel) -> None:
        super().__init__()
        self.config = config
        d_model = model.get_input_embeddings().weight.shape[1]
        gains = final_gains(model) if config.basis == "unembedding" else torch.ones(d_model)
        self.register_buffer("gains", gains, persistent=False)
        signs = {"none": [], "affine": [1.0], "per_slot": [(-1.0) ** j for j in range(config.num_slots)]}[config.map]
        starts = [sign * torch.eye(d_model, d_model + 1) for _ in range(INPUTS[config.input]) for sign in signs]
        self.maps = nn.ParameterList(starts)
        self._live: dict[int, tuple[Bool[Tensor, "row pos"], Float[Tensor, "row input d_model"]]] = {}  # by thread

    def directions(self, vectors: Float[Tensor, "row input d_model"]) -> Float[Tensor, "row slot d_model"]:
        """v_j of the module's docstring, all slots of the first input before those of the second.

        In float32 under autocast too: bfloat16 does not tell the residual behind a small diff from the one before it.
        """
        seen = vectors * self.gains
        size = seen.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        unit, back = seen / size, size / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-30) / self.gains
        with_one = torch.cat([unit, torch.ones_like(unit[..., :1])], dim=-1)
        of_input = len(self.maps) // INPUTS[self.config.input]
        mapped: list[Tensor] = []
        for i in range(unit.shape[1]):
            maps = list(self.maps)[i * of_input : (i + 1) * of_input]
            with torch.autocast(unit.device.type, enabled=False):
                different = [with_one[:, i] @ matrix.T * back[:, i] for matrix in maps] or [unit[:, i] * back[:, i]]
            mapped += [different[j % len(different)] for j in range(self.config.num_slots)]
        return torch.stack(mapped, dim=1)

    def inject(
        self, hidden: Float[Tensor, "row pos d_model"], vector: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row pos d_model"]:
        """What stands at each position if it is the slot that gets `vector`."""
        raise NotImplementedError

    @contextmanager
    def injecting(
        self, slot_mask: Bool[Tensor, "row pos"], vectors: Float[Tensor, "row input d_model"]
    ) -> Iterator[None]:
        """Within, this thread's forward passes over these rows have the vectors injected at their slots."""
        self._live[get_ident()] = slot_mask, vectors
        try:
            yield
        finally:
            del self._live[get_ident()]

    def attach(self, module: nn.Module) -> None:
        """Hooks the module whose output is changed."""
        module.register_forward_hook(self._hook)

    def _hook(
        self, module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]
    ) -> Tensor | tuple[Tensor, ...]:
        live = self._live.get(get_ident())
        if live is None or not live[1].shape[1]:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        mask, vectors = live
        if hidden.shape[1] == 1 and mask.shape[1] > 1:
            return output  # a step of cached generation: the prompt is in the cache, a generated token is no slot
        if hidden.shape[:2] != mask.shape:
            raise RuntimeError(f"injection for rows of shape {tuple(mask.shape)}, got {tuple(hidden.shape[:2])}")
        directions = self.directions(vectors)
        slot = (mask.cumsum(-1) - 1).clamp(min=0, max=directions.shape[1] - 1)
        has_direction = (vectors.norm(dim=-1) > 0).take_along_dim(slot // self.config.num_slots, dim=1)
        injected = self.inject(hidden, directions.take_along_dim(slot[..., None], dim=1)).to(hidden.dtype)
        hidden = torch.where((mask & has_direction)[..., None], injected, hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


class EmbedInjector(Injector):
    """Slot embedding := s · v_j, s = scale × the mean norm of the token embeddings."""

    unit: Tensor

    def __init__(self, config: InjectionConfig, model: PreTrainedModel) -> None:
        embedding = model.get_input_embeddings()
        super().__init__(config, model)
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
        super().__init__(config, model)
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


@torch.no_grad()
def final_gains(model: PreTrainedModel) -> Float[Tensor, "d_model"]:
    """What the final norm multiplies each dimension by, behind its division by the scale.

    Raises:
        ValueError: The model has no such norm, or gains of zero.
    """
    norms = [m for m in model.base_model.children() if getattr(getattr(m, "weight", None), "ndim", 0) == 1]
    if len(norms) != 1:
        raise ValueError(f"{type(model).__name__} has no final norm to be found: take injection.basis=residual")
    weight = norms[0].weight
    # Of mean 0 and size 1, so that a LayerNorm centres and scales nothing; its bias falls out of the difference.
    ones = torch.ones(len(weight), dtype=weight.dtype, device=weight.device)
    ones[1::2] = -1
    gains = ((norms[0](ones[None]) - norms[0](-ones[None]))[0] / 2 * ones).float()
    if not bool((gains.isfinite() & (gains != 0)).all()):
        raise ValueError(f"{type(model).__name__}'s final norm has gains of zero: take injection.basis=residual")
    return gains


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The model's transformer blocks, under whatever name its architecture gives them."""
    num_blocks = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_blocks:
            return module
    raise ValueError(f"{type(model).__name__} has no list of {num_blocks} blocks")
