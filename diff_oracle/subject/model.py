"""The subject: a language model on a TransformerBridge, with the parts that measurements need.

Raw weights: nothing is folded or centred, so activations are the model's own. A subject is checked when it is loaded;
what does not reproduce the Hugging Face model's logits is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import PreTrainedModel

from diff_oracle.subject.loading import LoadedModel, SubjectConfig, load_hf_model

_PROBE = "The quick brown fox jumps over the lazy dog, and then it looks back once more."
# Largest difference between logits that should be equal, relative to the largest logit.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Norm:
    """A LayerNorm or an RMSNorm: x ↦ centre(x) / σ · γ + β, σ = √(mean(centre(x)²) + ε).

    Attributes:
        centred: Whether the mean is taken off first (LayerNorm).
        gamma: The factor as it is applied: Gemma's 1 + weight.
        beta: The offset; zero where the model has none.
        eps: ε.
    """

    centred: bool
    gamma: Float[Tensor, "d_model"]
    beta: Float[Tensor, "d_model"]
    eps: float

    def centre(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What is divided by σ."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def scale(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """σ, the denominator at x."""
        return (self.centre(x).square().mean(-1) + self.eps).sqrt()

    def frozen(
        self, x: Float[Tensor, "*batch d_model"], scale: Float[Tensor, "*#batch"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The linear part of the norm with its denominator held at `scale`: additive in x."""
        return self.centre(x) / scale[..., None] * self.gamma

    def frozen_adjoint(
        self, x: Float[Tensor, "*batch d_model"], scale: Float[Tensor, "*#batch"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The transpose of `frozen`, with which frozen(a) · x = a · (what this gives)."""
        return self.centre(x / scale[..., None] * self.gamma)

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The whole norm."""
        return self.frozen(x, self.scale(x)) + self.beta


class Subject:
    """The model under study.

    Attributes:
        hf_model: The Hugging Face model; wrapped in place by the bridge.
        bridge: The same model with TransformerLens's hook names.
        tokenizer: Its tokenizer.
        identity: Which model it is.
        d_model: Width of the residual stream.
        n_layers: Blocks.
        n_heads: Attention heads of a block.
        device: Where it is.
        softcap: The model's head gives softcap · tanh(logits / softcap); None where it does not.
    """

    hf_model: PreTrainedModel
    bridge: TransformerBridge

    def __init__(self, loaded: LoadedModel) -> None:
        """Wraps a loaded model, which from then on belongs to this subject.

        Raises:
            ValueError: TransformerLens does not know the architecture or does not reproduce the model's logits, or they
                are not finite.
        """
        self.hf_model, self.tokenizer, self.identity = loaded.model, loaded.tokenizer, loaded.identity
        self.d_model, self.n_layers = loaded.identity.d_model, loaded.identity.n_layers
        self.n_heads = loaded.identity.n_heads
        self.device = loaded.model.device
        self.hf_model.requires_grad_(False)
        self.hf_model.set_attn_implementation("eager")  # hooks see no attention pattern otherwise
        self.softcap: float | None = getattr(self.hf_model.config.get_text_config(), "final_logit_softcapping", None)
        head = self.hf_model.get_output_embeddings()
        self._head_weight: Tensor = head.weight
        self._head_bias: Tensor | None = getattr(head, "bias", None)
        token_ids = torch.tensor([self.tokenizer.encode(_PROBE)], device=self.device)
        with torch.no_grad():
            expected = self.hf_model(input_ids=token_ids, use_cache=False).logits
        if not expected.isfinite().all():
            raise ValueError(
                f"the logits of {self.identity.name} are not finite: its weights are damaged or overflow at this "
                "precision; load it anew, or with model.dtype=float32"
            )
        # No tokenizer for the bridge: it would load one anew and rewrite its special tokens.
        self.bridge = build_bridge_from_module(
            self.hf_model, loaded.identity.architecture, hf_config=self.hf_model.config, model_name=loaded.identity.name
        )
        self._verify(token_ids, expected)

    @classmethod
    def load(cls, config: SubjectConfig, device: str = "cpu") -> Subject:
        """Loads and checks the subject that a config names.

        Raises:
            ValueError: As `load_hf_model`; or TransformerLens does not reproduce the model's logits.
        """
        return cls(load_hf_model(config, device))

    @cached_property
    def hook_names(self) -> frozenset[str]:
        """Every hook of the model, aliases included."""
        return frozenset(self.bridge.hook_dict)

    @cached_property
    def final_norm(self) -> Norm:
        """The norm before the unembedding, in float32."""
        return _read_norm(self.bridge.ln_final)

    @cached_property
    def W_U(self) -> Float[Tensor, "d_model vocab"]:
        """The unembedding, in float32."""
        return self._head_weight.detach().float().T

    @cached_property
    def b_U(self) -> Float[Tensor, "vocab"] | None:
        """The unembedding's bias, in float32; None for most models."""
        return None if self._head_bias is None else self._head_bias.detach().float()

    def W_O(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """How each head of a block writes into the residual stream (before any post-norm), in float32."""
        return self.bridge.blocks[layer].attn.W_O.detach().float()

    def b_O(self, layer: int) -> Float[Tensor, "d_model"]:
        """The bias of a block's attention output, in float32; zero where there is none."""
        bias = self.bridge.blocks[layer].attn.b_O
        return torch.zeros(self.d_model, device=self.device) if bias is None else bias.detach().float()

    def attn_post_norm(self, layer: int) -> Norm | None:
        """The norm between a block's attention and the residual stream (Gemma), or None."""
        block = self.bridge.blocks[layer]
        return _read_norm(block.ln1_post) if "ln1_post" in block.submodules else None

    def unembed(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """The logits that the model's head gives for a residual: norm, unembedding, bias and softcap."""
        logits = self.final_norm(residual) @ self.W_U
        if self.b_U is not None:
            logits = logits + self.b_U
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    @torch.no_grad()
    def _verify(self, token_ids: Tensor, expected: Tensor) -> None:
        """Compares the bridge with the plain model, the lens's head with the model's, and sums of parts with wholes."""
        seen: dict[str, Tensor] = {}
        parts = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post", "attn.hook_z")
        names = [f"blocks.{layer}.{part}" for layer in range(self.n_layers) for part in parts]
        if missing := [name for name in names if name not in self.hook_names]:
            raise ValueError(
                f"{self.identity.name} ({self.identity.architecture}) has no {missing[0]} in TransformerLens: its "
                "blocks are not all attention and MLP; choose a model of another architecture"
            )
        names += [f"blocks.{layer}.ln1_post.hook_in" for layer in range(self.n_layers) if self.attn_post_norm(layer)]
        logits = self.bridge.run_with_hooks(
            token_ids,
            fwd_hooks=[(name, lambda value, hook, name=name: seen.update({name: value.float()})) for name in names],
        )
        self._compare("TransformerLens's bridge", logits, expected)
        last = seen[f"blocks.{self.n_layers - 1}.hook_resid_post"]
        self._compare("this package's logit lens", self.unembed(last), expected)
        for layer in range(self.n_layers):
            self._verify_sums(layer, seen, _TOLERANCE[expected.dtype])

    def _verify_sums(self, layer: int, seen: dict[str, Tensor], tolerance: float) -> None:
        """Compares a block's heads with its attention, and its halves with the block."""
        block = f"blocks.{layer}"
        attn, mlp, after = (seen[f"{block}.hook_{part}"] for part in ("attn_out", "mlp_out", "resid_post"))
        heads = seen[f"{block}.attn.hook_z"].flatten(2) @ self.W_O(layer).flatten(0, 1) + self.b_O(layer)
        norm = self.attn_post_norm(layer)
        if norm is not None:
            heads = norm.frozen(heads, norm.scale(seen[f"{block}.ln1_post.hook_in"]))
        update = after - seen[f"{block}.hook_resid_pre"]
        for parts, total, whole in (("halves", attn + mlp.view_as(attn), update), ("heads", heads, attn)):
            error = float((total - whole).norm() / after.norm())
            if not error <= tolerance:
                raise ValueError(
                    f"the {parts} of block {layer} of {self.identity.name} ({self.identity.architecture}) do not add "
                    f"up (they miss {error:.2g} of the residual): its writes are scaled in a way that this package "
                    "does not know; choose a model of another architecture"
                )

    def _compare(self, what: str, got: Tensor, expected: Tensor) -> None:
        error = (got.float() - expected.float()).abs().max().item()
        bound = _TOLERANCE[expected.dtype] * expected.abs().max().item()
        if not error <= bound:  # so that a NaN fails
            raise ValueError(
                f"{what} does not reproduce the logits of {self.identity.name} ({self.identity.architecture}): they "
                f"differ by up to {error:.2g}, expected at most {bound:.2g}; choose a model of another architecture"
            )


def _read_norm(bridge: Any) -> Norm:
    """A norm of the bridge as plain numbers."""
    weight = bridge.weight.detach().float()
    # Models call it by different names, but all of them keep ε in the module that computes.
    module = bridge.original_component
    eps = next(getattr(module, name) for name in ("variance_epsilon", "eps") if hasattr(module, name))
    beta = None if bridge.uses_rms_norm else getattr(module, "bias", None)
    return Norm(
        centred=not bridge.uses_rms_norm,
        gamma=1 + weight if bridge.uses_weight_offset else weight,
        beta=torch.zeros_like(weight) if beta is None else beta.detach().float(),
        eps=eps,
    )
