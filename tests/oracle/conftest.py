from collections.abc import Callable

import numpy as np
import pytest
import torch

from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.oracle.injection import InjectionConfig
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import Prompt, PromptConfig
from diff_oracle.oracle.storage import OracleConfig
from diff_oracle.subject.loading import SubjectConfig
from tests.helpers import diff_at

MakeOracle = Callable[..., Oracle]


@pytest.fixture
def make_oracle() -> MakeOracle:
    """Builds an oracle on a random model; its LoRA is disturbed, so that the adapter does something."""

    def make(architecture: str = "llama", disturb: bool = True, **injection: object) -> Oracle:
        torch.manual_seed(0)
        config = OracleConfig(LoraOptions(rank=4, alpha=4.0), PromptConfig(), InjectionConfig(**injection))  # type: ignore[arg-type]
        oracle = Oracle.create(SubjectConfig(source="random", architecture=architecture), config).eval()
        if disturb:
            for name, parameter in oracle.lm.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.05)
        return oracle

    return make


@pytest.fixture
def make_prompts() -> Callable[[Oracle, int], list[Prompt]]:
    """Prompts of different lengths, each with its own diff."""

    def make(oracle: Oracle, number: int) -> list[Prompt]:
        rng = np.random.default_rng(0)
        questions = ["Why?", "Which tokens become more likely?", "What does this step do, and to which tokens?"]
        return [
            oracle.prompts.about(
                diff_at(f"L{i}", rng.standard_normal(oracle.prompts.d_model).astype(np.float32)), (questions[i % 3],)
            )
            for i in range(number)
        ]

    return make
