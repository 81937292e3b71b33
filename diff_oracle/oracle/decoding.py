"""How answers are generated."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor


class DistinctLines(LogitsProcessor):
    """No line of an answer begins with a token that an earlier line begins with.

    In a list of one token a line, every token is named once. Without it a reader that sees the diff well names its
    strongest token again and again, long before it learns to leave out what it has named.
    """

    def __init__(self, newline_id: int, prompt_length: int) -> None:
        self._newline, self._prompt_length = newline_id, prompt_length

    def __call__(
        self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row vocab"]
    ) -> Float[Tensor, "row vocab"]:
        """The scores, with −∞ for the tokens that may not come next."""
        before = input_ids[:, self._prompt_length - 1 : -1]  # of each generated token, the one before it
        generated = input_ids[:, self._prompt_length :]
        if generated.shape[1] == 0:
            return scores
        begins = before == self._newline
        begins[:, 0] = True
        used = torch.zeros_like(scores, dtype=torch.bool)
        rows, places = begins.nonzero(as_tuple=True)
        used[rows, generated[rows, places]] = True
        return scores.masked_fill(used & (input_ids[:, -1:] == self._newline), float("-inf"))
