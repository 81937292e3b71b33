"""How answers are generated."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor


class DistinctLines(LogitsProcessor):
    """No line of an answer names a token that an earlier line names: its first one, or the one behind its minus.

    In a list of one token a line, every token is named once. Without it a reader that sees the diff well names its
    strongest token again and again, long before it learns to leave out what it has named. A line that is a minus and
    nothing else names the token "-".
    """

    def __init__(self, newline_id: int, minus_id: int, prompt_length: int) -> None:
        self._newline, self._minus, self._prompt_length = newline_id, minus_id, prompt_length

    def __call__(
        self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row vocab"]
    ) -> Float[Tensor, "row vocab"]:
        """The scores, with −∞ for the tokens that may not come next."""
        generated = input_ids[:, self._prompt_length :]
        if generated.shape[1] == 0:
            return scores
        begins = generated.new_ones(len(generated), generated.shape[1] + 1, dtype=torch.bool)  # with what comes next
        begins[:, 1:] = generated == self._newline
        marked = begins[:, :-1] & (generated == self._minus)
        marked[:, :-1] &= generated[:, 1:] != self._newline
        bare, behind_minus = begins.clone(), torch.zeros_like(begins)
        bare[:, :-1] &= ~marked
        behind_minus[:, 1:] = marked
        barred = torch.zeros_like(scores, dtype=torch.bool)
        for names in (bare, behind_minus):
            rows, places = names[:, :-1].nonzero(as_tuple=True)
            used = torch.zeros_like(barred)
            used[rows, generated[rows, places]] = True
            barred |= used & names[:, -1:]
        return scores.masked_fill(barred, float("-inf"))
