"""Ways to save memory change nothing else: checkpointed activations, parts of a batch, a base in bfloat16."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.oracle.injection import InjectionConfig, decoder_blocks
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import PromptConfig
from diff_oracle.oracle.storage import OracleConfig
from diff_oracle.subject.loading import SubjectConfig
from diff_oracle.training.sft import TrainingConfig, checkpoint_activations, make_optimizer
from diff_oracle.training.trainer import trained
from tests.helpers import diff_at
from tests.training.job import fresh_oracle, train


def gradients(oracle: Oracle) -> dict[str, torch.Tensor]:
    rng, width = np.random.default_rng(0), oracle.prompts.d_model
    diffs = [diff_at("L1", rng.standard_normal(width).astype(np.float32)) for _ in range(2)]
    batch = oracle.prompts.collate([oracle.prompts.about(diff, ("Which?",)) for diff in diffs], [[300], [301, 302]])
    oracle.train()
    torch.manual_seed(0)  # GPT-2 has dropout
    oracle(**batch)["loss"].backward()
    return {name: parameter.grad for name, parameter in trained(oracle).items() if parameter.grad is not None}


def count_runs(blocks: nn.ModuleList) -> Counter[int]:
    """How often each block is computed, from now on: its first part's hook runs then."""
    counts = Counter[int]()
    for i, block in enumerate(blocks):
        next(block.children()).register_forward_hook(lambda *_, i=i: counts.update([i]))
    return counts


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["embed", "residual"])
def test_checkpointed_activations_give_the_same_gradients(architecture: str, kind: str) -> None:
    config = OracleConfig(LoraOptions(4, 4.0), PromptConfig(), InjectionConfig(kind=kind, block=1))
    found, runs = [], []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        oracle = Oracle.create(SubjectConfig(source="random", architecture=architecture), config)
        for name, parameter in oracle.lm.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        if checkpointed:
            checkpoint_activations(oracle)
        counts = count_runs(decoder_blocks(oracle.lm.get_base_model()))
        found.append(gradients(oracle))
        runs.append([counts[i] for i in range(len(counts))])
    assert any(name.startswith("injector.maps") for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-7)
    assert runs[0] == [1] * len(runs[0])
    assert runs[1] == [1 if kind == "residual" and i == 1 else 2 for i in range(len(runs[1]))]


def test_a_batch_in_parts_has_the_loss_of_the_whole() -> None:
    whole, parts = (
        train(fresh_oracle("llama"), None, steps=4, batch_size=8, evaluations=1, gradient_accumulation=number)
        for number in (1, 4)
    )
    first = ["loss", "grad_norm"]
    assert [parts[0][name] for name in first] == pytest.approx([whole[0][name] for name in first], rel=1e-5)
    for one, other in zip(whole[1:4], parts[1:4], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=2e-4)
    with pytest.raises(ValueError, match="batch_size=8 is not a multiple of 6: 2 processes × .*accumulation=3"):
        TrainingConfig(batch_size=8, gradient_accumulation=3).batch_size_of_process(2)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_is_trained_is_float32_on_a_base_in_bfloat16(kind: str, tmp_path: Path) -> None:
    oracle = fresh_oracle("llama", "bfloat16", kind=kind)
    dtypes = {parameter.dtype for name, parameter in oracle.named_parameters() if not parameter.requires_grad}
    assert torch.bfloat16 in dtypes
    before = {name: parameter.detach().clone() for name, parameter in trained(oracle).items()}
    assert {parameter.dtype for parameter in before.values()} == {torch.float32}
    assert any("lora_B" in name for name in before) == (kind == "lora")

    # Muon's updates have a root mean square of 0.2 × the rate: some 1e-5 of what the weights are.
    train(oracle, None, steps=4, evaluations=1, learning_rate=1e-5)
    after = trained(oracle)
    for name, parameter in before.items():
        now = after[name].detach()
        assert not torch.equal(now, parameter)
        if kind == "full" and "injector" not in name:
            assert (now != parameter).float().mean() > 0.9
            assert (now.bfloat16() == parameter.bfloat16()).float().mean() > 0.9  # there it would be lost

    oracle.save(tmp_path / "oracle")
    loaded = Oracle.from_pretrained(tmp_path / "oracle")
    assert loaded.base.dtype == "bfloat16"
    assert all(torch.equal(parameter, after[name]) for name, parameter in trained(loaded).items())


def test_the_optimiser_s_state_is_float32() -> None:
    oracle = fresh_oracle("llama", "bfloat16", kind="full")
    optimizer = make_optimizer(oracle, TrainingConfig())
    gradients(oracle)
    optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    assert state and {value.dtype for value in state} == {torch.float32}
