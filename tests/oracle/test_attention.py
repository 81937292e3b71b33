"""Heads computed together give what transformers' own attention gives."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from diff_oracle.oracle import attention
from diff_oracle.oracle.attention import NAME, attend_together, use_together
from tests.helpers import random_loaded


def made(shared: int, kind: torch.dtype) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """A module, as attention functions get it; queries, keys, values and a mask that hides some of the past."""
    torch.manual_seed(0)
    module = torch.nn.Identity()
    module.num_key_value_groups = shared  # type: ignore[assignment]
    query, key, value = torch.randn(3, 4, 5, 8), *torch.randn(2, 3, 4 // shared, 9, 8)
    mask = torch.ones(5, 9).tril(4).bool().repeat(3, 1, 1, 1)
    mask[1, ..., :3] = False
    if kind != torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    return module, [query, key, value, mask]


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
@pytest.mark.parametrize("shared", [1, 2, 4])
def test_it_is_the_usual_attention(shared: int, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    module, inputs = made(shared, kind)
    expected = sdpa_attention_forward(module, *inputs, scaling=0.3)[0]
    if shared > 1:  # without the usual function
        monkeypatch.setattr(attention, "sdpa_attention_forward", None)
    with torch.no_grad():
        torch.testing.assert_close(attend_together(module, *inputs, scaling=0.3)[0], expected)


def test_what_is_not_done_together_is_left_to_the_usual_function(monkeypatch: pytest.MonkeyPatch) -> None:
    module, inputs = made(2, torch.bool)
    usual = torch.zeros(3, 5, 4, 8)
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *_, **__: (usual, None))
    with torch.no_grad():
        for option in ({"dropout": 0.1}, {"softcap": 3.0}, {"position_bias": inputs[3]}):
            assert attend_together(module, *inputs, **option)[0] is usual
        assert attend_together(module, *inputs[:3], None)[0] is usual
        assert attend_together(module, *inputs[:3], inputs[3].repeat(1, 4, 1, 1))[0] is usual  # a mask for every head
    assert attend_together(module, *inputs)[0] is usual  # with gradients


def test_only_a_model_with_sdpa_is_changed() -> None:
    model = random_loaded("llama").model
    model.set_attn_implementation("eager")
    use_together(model)
    assert model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    use_together(model)
    assert model.config._attn_implementation == NAME
