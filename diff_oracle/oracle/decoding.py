"""How answers are generated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, LogitsProcessor, PreTrainedModel

Pick = Callable[[Int[Tensor, "live"], Int[Tensor, "live token"], Float[Tensor, "live vocab"]], Int[Tensor, "live"]]
"""Chooses the next tokens: from the numbers of the rows that have not ended, what these said so far, and the logits."""


@torch.no_grad()
def write_answers(
    model: PreTrainedModel,
    hidden: Float[Tensor, "row d_model"],
    seen: Int[Tensor, "row pos"],
    cache: Cache,
    eos_id: int,
    max_new_tokens: int,
    pick: Pick,
) -> tuple[Int[Tensor, "row token"], Bool[Tensor, "row"]]:
    """Goes on from prompts that were read, token by token; rows that have ended cost nothing more.

    Args:
        model: With its head.
        hidden: What its head reads at the end of each prompt.
        seen: The prompts' attention mask.
        cache: What reading them left; what is written is added to it.
        eos_id: What ends an answer.
        max_new_tokens: Where an answer is cut off.
        pick: Chooses each token.

    Returns:
        The answers, as wide as the longest; the end-of-sequence token stands where they end and behind it. And which
        of them were cut off.
    """
    num_rows, device = len(seen), hidden.device
    ids = torch.full((num_rows, max_new_tokens), eos_id, device=device)
    live = torch.arange(num_rows, device=device)  # the rows that have not ended
    for place in range(max_new_tokens):
        chosen = pick(live, ids[live, :place], model.get_output_embeddings()(hidden).float())
        ids[live, place] = chosen
        going_on = (chosen != eos_id).nonzero().flatten()
        if len(going_on) < len(live):
            live, chosen, seen = live[going_on], chosen[going_on], seen[going_on]
            cache.batch_select_indices(going_on)
        if not len(live) or place == max_new_tokens - 1:
            ids = ids[:, : place + 1]
            break
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
        hidden = model.base_model(
            input_ids=chosen[:, None],
            attention_mask=seen,
            position_ids=seen.sum(dim=1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    cut_off = torch.zeros(num_rows, dtype=torch.bool, device=device)
    cut_off[live] = True
    return ids, cut_off


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
