"""What the adapter trains, by its rank: a fresh one changes nothing, a saved one comes back."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from diff_oracle.oracle.adapter import LoraOptions, add_adapter
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
        loaded = PeftModel.from_pretrained(load(architecture), str(tmp_path))
        torch.testing.assert_close(loaded(input_ids=IDS).logits, changed, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [4, 4096])
def test_blocks_before_the_first_stay_as_they_are(rank: int) -> None:
    adapted = add_adapter(load("llama"), LoraOptions(rank, float(rank), first_block=1))
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert any(".layers.1." in name for name in trained)
    assert not any(".layers.0." in name for name in trained)
    with pytest.raises(ValueError, match=r"lora\.first_block=99, but the model has blocks 0…"):
        add_adapter(load("llama"), LoraOptions(rank, float(rank), first_block=99))
