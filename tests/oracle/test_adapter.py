"""What the adapter trains, by its rank: a fresh one changes nothing, a saved one comes back."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from diff_oracle.oracle.adapter import LoraOptions, add_adapter, load_adapter
from diff_oracle.subject.loading import SubjectConfig, load_hf_model

IDS = torch.arange(20, 40)[None]


def load(architecture: str) -> PreTrainedModel:
    return load_hf_model(SubjectConfig(source="random", architecture=architecture)).model


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "gpt_neox", "gemma3"])
@pytest.mark.parametrize("rank", [4, 48, 4096])
def test_adapters_of_every_rank(architecture: str, rank: int, tmp_path: Path) -> None:
    base = load(architecture)
    expected = base(input_ids=IDS).logits
    adapted = add_adapter(base, LoraOptions(rank, float(rank)))
    torch.testing.assert_close(adapted(input_ids=IDS).logits, expected, rtol=0, atol=0)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert all(p.ndim == 2 for p in trained.values())
    low_rank = {name for name in trained if "lora_" in name}
    whole = set(trained) - low_rank
    assert all(min(trained[name].shape) <= rank for name in whole)
    assert all(rank in trained[name].shape for name in low_rank)
    assert bool(whole) == (rank > 4)
    assert not (low_rank and rank == 4096)
    assert not any("embed" in name or "lm_head" in name for name in trained)

    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.05 * torch.randn_like(parameter))
        changed = adapted(input_ids=IDS).logits
        assert (changed - expected).abs().max() > 1e-3
        adapted.save_pretrained(str(tmp_path))
        loaded = load_adapter(load(architecture), tmp_path)
        by_peft = PeftModel.from_pretrained(load(architecture), str(tmp_path))
        for other in (loaded, by_peft):
            torch.testing.assert_close(other(input_ids=IDS).logits, changed, rtol=0, atol=1e-6)
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == set(trained)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_full_trains_every_linear_layer_of_the_trained_blocks_whole(architecture: str) -> None:
    base = load(architecture)
    expected = base(input_ids=IDS).logits
    linear = {
        name.removesuffix(".weight")
        for name, p in base.named_parameters()
        if p.ndim == 2 and not any(part in name for part in ("embed", "wte", "wpe", "lm_head"))
    }
    behind = {name for name in linear if ".0." not in name}
    assert 0 < len(behind) < len(linear)
    adapted = add_adapter(base, LoraOptions(kind="full", rank=4, first_block=1))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {f"base_model.model.{name}.modules_to_save.default.weight" for name in behind}
    torch.testing.assert_close(adapted(input_ids=IDS).logits, expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"unknown lora\.kind 'half': choose from lora, full"):
        LoraOptions(kind="half")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_on_a_base_in_bfloat16_trained_weights_stay_float32_when_saved(kind: str, tmp_path: Path) -> None:
    def load_bfloat16() -> PreTrainedModel:
        return load_hf_model(SubjectConfig(source="random", architecture="gpt2", dtype="bfloat16")).model

    adapted = add_adapter(load_bfloat16(), LoraOptions(kind=kind, rank=16))
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.05 * torch.randn_like(parameter))
        changed = adapted(input_ids=IDS).logits
    assert changed.dtype == torch.bfloat16
    adapted.save_pretrained(str(tmp_path))
    loaded = load_adapter(load_bfloat16(), tmp_path)
    assert all(torch.equal(p, trained[name]) for name, p in loaded.named_parameters() if name in trained)
    torch.testing.assert_close(loaded(input_ids=IDS).logits, changed, rtol=0, atol=0)
    loaded(input_ids=IDS).logits.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in loaded.parameters() if p.grad is not None)
    assert {n for n, p in loaded.named_parameters() if p.grad is not None} == set(trained)


@pytest.mark.parametrize("rank", [4, 4096])
def test_blocks_before_the_first_stay_as_they_are(rank: int) -> None:
    adapted = add_adapter(load("llama"), LoraOptions(rank, float(rank), first_block=1))
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert any(".layers.1." in name for name in trained)
    assert not any(".layers.0." in name for name in trained)
    with pytest.raises(ValueError, match=r"lora\.first_block=99, but the model has blocks 0…"):
        add_adapter(load("llama"), LoraOptions(rank, float(rank), first_block=99))
