"""The growing cache gives what transformers' own gives, whatever is done to its rows in between."""

from copy import deepcopy

import pytest
import torch
from transformers import DynamicCache

from diff_oracle.oracle.cache import GrowingLayer, bytes_a_position, growing_cache
from tests.helpers import ARCHITECTURES, random_loaded


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_are_those_of_the_usual_cache(architecture: str) -> None:
    model = random_loaded(architecture).model.eval()
    ids = torch.randint(300, 400, (3, 7), generator=torch.Generator().manual_seed(0))
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 90, "do_sample": False, "pad_token_id": 0}
    usual = model.generate(ids, past_key_values=DynamicCache(config=model.config.get_text_config()), **options)
    growing = growing_cache(model)
    assert torch.equal(model.generate(ids, past_key_values=growing, **options), usual)
    assert growing.get_seq_length() == usual.shape[1] - 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_position_takes_so_many_bytes(architecture: str) -> None:
    model, cache = random_loaded(architecture).model.eval(), DynamicCache()
    model(torch.full((2, 5), 300), past_key_values=cache, use_cache=True)
    held = sum(values.nbytes for layer in cache.layers for values in (layer.keys, layer.values))
    assert bytes_a_position(model) == held / 10


def test_rows_are_chosen_repeated_cut_and_copied() -> None:
    def states(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(rows, 2, length, 4), torch.randn(rows, 2, length, 4)

    torch.manual_seed(0)
    growing, usual = GrowingLayer(), DynamicCache().layer_class_to_replicate()
    kept: list[tuple[GrowingLayer, torch.Tensor]] = []
    for rows, change in (
        (2, lambda layer: layer.batch_repeat_interleave(2)),
        (4, lambda layer: layer.batch_select_indices(torch.tensor([3, 0, 1]))),
        (3, lambda layer: layer.crop(-2)),
        (3, lambda layer: layer.batch_select_indices(torch.tensor([0, 1]))),
        (2, lambda layer: None),
    ):
        for length in (5, 1, 1, 70, 1):
            new = states(rows, length)
            for found, expected in zip(growing.update(*new), usual.update(*new), strict=True):
                assert torch.equal(found, expected)
        copy = deepcopy(growing)  # the one goes on, the other stays as it was
        kept.append((copy, usual.keys.clone()))
        for layer in (growing, usual):
            change(layer)
        assert growing.get_seq_length() == usual.get_seq_length()
    for copy, expected in kept:
        assert torch.equal(copy.keys, expected)
        copy.update(*states(len(expected), 1))
        assert torch.equal(copy.keys[..., :-1, :], expected)
    growing.reset()
    assert growing.get_seq_length() == 0
    new = states(1, 3)
    assert torch.equal(growing.update(*new)[0], new[0])
