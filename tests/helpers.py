"""Builders that tests share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diff_oracle.subject.capture import Diff
from diff_oracle.subject.loading import LoadedModel, SubjectConfig, identify, load_hf_model
from diff_oracle.subject.model import Subject
from diff_oracle.subject.random_models import random_model

ARCHITECTURES = ("llama", "gpt2", "gpt_neox", "qwen3", "gemma3")


def random_loaded(architecture: str = "llama", seed: int = 0, **overrides: object) -> LoadedModel:
    """A tiny random Hugging Face model; `overrides` go into its config."""
    tokenizer = load_hf_model(SubjectConfig()).tokenizer
    model = random_model(architecture, len(tokenizer), seed, **overrides)
    return LoadedModel(model, tokenizer, identify(f"random-{architecture}", model, tokenizer, "float32"))


def bundled_loaded() -> LoadedModel:
    """The bundled model."""
    return load_hf_model(SubjectConfig())


def random_subject(architecture: str = "llama", seed: int = 0, **overrides: object) -> Subject:
    """A subject on a tiny random model; `overrides` go into its config."""
    return Subject(random_loaded(architecture, seed, **overrides))


def random_tokens(num_rows: int = 2, length: int = 24, seed: int = 0) -> Tensor:
    """[num_rows, length] ordinary token ids."""
    return torch.randint(10, 4000, (num_rows, length), generator=torch.Generator().manual_seed(seed))


def diff_at(site: str, vector: np.ndarray, relative_size: float = 0.2, token_ids: tuple[int, ...] = (1, 2)) -> Diff:
    """A diff made by hand; the residual before it is the same everywhere, of the size that is asked for."""
    size = float(np.linalg.norm(vector)) or 1.0
    before = np.full_like(vector, size / relative_size / np.sqrt(len(vector)))
    return Diff(site, len(token_ids) - 1, token_ids, vector, before)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """The largest ‖got − expected‖ / ‖expected‖ over the last axis."""
    got, expected = got.double(), expected.double()
    return float(((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
