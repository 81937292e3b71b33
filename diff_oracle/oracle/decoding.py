"""How answers are generated."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor


class DistinctLines(LogitsProcessor):
    """No line of an answer says what an earlier line says: the token that would make them equal may not come next.

    In a list of one token a line, every token is named once; in an explanation, every claim is made once. Without it a
    reader that sees the diff well names its strongest token again and again, long before it learns to leave out what it
    has named.
    """

    def __init__(self, newline_id: int, prompt_length: int) -> None:
        self._newline, self._prompt_length = newline_id, prompt_length

    def __call__(
        self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row vocab"]
    ) -> Float[Tensor, "row vocab"]:
        """The scores, with −∞ for the tokens that may not come next."""
        generated = input_ids[:, self._prompt_length :]
        length = generated.shape[1]
        if length == 0:
            return scores
        is_break = generated == self._newline
        places = torch.arange(length + 1, device=generated.device)
        # Where the line begins that each place, and what comes next, stands in.
        begins = torch.zeros_like(places).repeat(len(generated), 1)
        begins[:, 1:] = torch.where(is_break, places[1:], 0).cummax(dim=1).values
        # What stands before each place in its line, as a number: tokens times weights of their places, summed.
        weights = torch.randint(1 << 62, (length,), generator=torch.Generator().manual_seed(0)).to(generated.device)
        weighted = (generated + 1) * weights[places[:-1] - begins[:, :-1]]  # wraps around
        sums = torch.nn.functional.pad(weighted.cumsum(dim=1), (1, 0))
        before = sums - sums.gather(1, begins)
        ends = torch.zeros_like(is_break)  # the last token of a line that is over
        ends[:, :-1] = is_break[:, 1:] & ~is_break[:, :-1]
        rows, columns = (ends & (before[:, :-1] == before[:, -1:])).nonzero(as_tuple=True)
        barred = torch.zeros_like(scores, dtype=torch.bool)
        barred[rows, generated[rows, columns]] = True
        return scores.masked_fill(barred, float("-inf"))
