"""How answers are generated: several tokens a pass, where an answer goes on as other lines and answers did."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, PreTrainedModel

from diff_oracle.oracle.cache import sliding_window

Pick = Callable[
    [Int[Tensor, "live"], Int[Tensor, "live token"], Int[Tensor, "live"], Float[Tensor, "live vocab"]],
    Int[Tensor, "live"],
]
"""Chooses next tokens: from the numbers of some rows, what these said so far, how long that is, and the logits, which
it may change."""
_NONE = -1  # stands where nothing was drafted
_LONGEST_DRAFT = 16  # more than a claim's words take
_WASTE = 0.5  # tokens drafted in vain, for each that was said, beyond which nothing is drafted


@torch.no_grad()
def write_answers(
    model: PreTrainedModel,
    hidden: Float[Tensor, "row d_model"],
    seen: Int[Tensor, "row pos"],
    cache: Cache,
    eos_id: int,
    newline_id: int,
    max_new_tokens: int,
    pick: Pick,
    like: Sequence[int] = (),
) -> tuple[Int[Tensor, "row token"], Bool[Tensor, "row"]]:
    """Goes on from prompts that were read; rows that have ended cost nothing more.

    Every token is chosen from the logits behind all before it. What `draft` expects a row to say is read together with
    its last token, and kept as far as the row then says it: so a pass of the model writes a claim or a list's line
    (https://arxiv.org/abs/2211.17192, with other lines and answers in place of a smaller model). What is drafted in
    vain costs a pass over it, and a place in the cache: a model whose lines are not alike is left to write by tokens.

    Args:
        model: With its head.
        hidden: What its head reads at the end of each prompt.
        seen: The prompts' attention mask.
        cache: What reading them left; what is written is added to it, and drafts that were not kept, unseen.
        eos_id: What ends an answer.
        newline_id: What ends a line.
        max_new_tokens: Where an answer is cut off.
        pick: Chooses each token.
        like: An answer to the same question, of whatever length; these are expected to be like it.

    Returns:
        The answers, as wide as the longest; the end-of-sequence token stands where they end and behind it. And which
        of them were cut off.
    """
    num_rows, device = len(seen), hidden.device
    # Where attention counts the places of a cache in place of the positions of what is seen, nothing may lie between.
    room = sliding_window(model) if model._supports_attention_backend else 0.0
    ids = torch.full((num_rows, max_new_tokens), eos_id, device=device)
    lengths = torch.zeros(num_rows, dtype=torch.long, device=device)
    live = torch.arange(num_rows, device=device)  # the rows that have not ended
    states, drafts = hidden[:, None], torch.empty((num_rows, 0), dtype=torch.long, device=device)
    wasted = 0  # tokens that were drafted in vain
    while True:
        before, as_drafted = lengths[live], torch.arange(len(live), device=device)  # the rows that say their drafts
        for place in range(states.shape[1]):
            rows = live[as_drafted]
            logits = model.get_output_embeddings()(states[as_drafted, place]).float()
            chosen = pick(rows, ids[rows, : int(lengths.max())], lengths[rows], logits)
            ids[rows, lengths[rows]] = chosen
            lengths[rows] += 1
            if place < drafts.shape[1]:
                as_drafted = as_drafted[chosen == drafts[as_drafted, place]]
            if not len(as_drafted):
                break
        kept = lengths[live] - before - 1
        wasted += drafts.numel() - int(kept.sum())
        seen[:, seen.shape[1] - drafts.shape[1] :] = torch.arange(drafts.shape[1], device=device) < kept[:, None]
        last = ids[live, lengths[live] - 1]
        going_on = _filled_up((last != eos_id) & (lengths[live] < max_new_tokens))
        if not len(going_on):
            break
        if len(going_on) < len(live):
            live, last, seen = live[going_on], last[going_on], seen[going_on]
            cache.batch_select_indices(going_on)
        drafts = torch.empty((len(live), 0), dtype=torch.long, device=device)
        if wasted <= _WASTE * int(lengths.sum()):
            drafts = _drafts(ids[live], lengths[live], newline_id, like)
        if seen.shape[1] + drafts.shape[1] + max_new_tokens > room:
            drafts = drafts[:, :0]
        read = torch.cat([last[:, None], drafts], dim=1)
        seen = torch.cat([seen, (read != _NONE).to(seen.dtype)], dim=1)
        states = model.base_model(
            input_ids=read.clamp(min=0),
            attention_mask=seen,
            position_ids=(seen.cumsum(dim=1) - 1)[:, -read.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
    ended = ids[torch.arange(num_rows, device=device), lengths - 1] == eos_id
    return ids[:, : int(lengths.max())], ~ended


def answer_of(ids: Int[Tensor, "token"], eos_id: int) -> list[int]:
    """A row's answer, without what ends it."""
    return [token for token in ids.tolist() if token != eos_id]


def _filled_up(kept: Bool[Tensor, "row"]) -> Int[Tensor, "kept"]:
    """The rows that are kept, the last of them in the places of those that are not: so few rows change their place."""
    number = int(kept.sum())
    rows = torch.arange(number, device=kept.device)
    rows[~kept[:number]] = number + kept[number:].nonzero().flatten()
    return rows


def _drafts(
    said: Int[Tensor, "row token"], lengths: Int[Tensor, "row"], newline_id: int, like: Sequence[int]
) -> Int[Tensor, "row draft"]:
    """What each row is expected to say next, as wide as the longest; never so long that there is no room behind it."""
    other = lines_of(like, newline_id)
    drafted = [
        draft(row[:length], newline_id, other)[: min(_LONGEST_DRAFT, len(row) - length - 1)]
        for row, length in zip(said.tolist(), lengths.tolist(), strict=True)
    ]
    width = max(map(len, drafted))
    return torch.tensor(
        [tokens + [_NONE] * (width - len(tokens)) for tokens in drafted], dtype=torch.long, device=said.device
    ).reshape(len(drafted), width)


def draft(said: Sequence[int], newline_id: int, other: Sequence[list[int]] = ([],)) -> list[int]:
    """What an answer is expected to say next, up to where it must make up its mind.

    Lines of answers differ in what they name, their last token: what stands before it is expected to be as in a line of
    the other answer, from the same line on, or of this one, from the last one back.

    Args:
        said: So far.
        newline_id: What ends a line.
        other: Lines of another answer, as which this one's are expected to begin.
    """
    *before, line = lines_of(said, newline_id)
    to_come = other[len(before) :]
    for place, expected in enumerate([*to_come, *reversed(before)]):
        begins = expected[:-1]
        if begins[: len(line)] != line[: len(begins)]:
            continue
        if len(line) <= len(begins):
            return begins[len(line) :]
        if place < len(to_come):
            return [newline_id, *to_come[place + 1][:-1]] if place + 1 < len(to_come) else []
        return [newline_id, *begins]
    return [newline_id, *line[:-1]] if before and len(line) == len(before[-1]) else []


def lines_of(said: Sequence[int], newline_id: int) -> list[list[int]]:
    """The tokens of each line, without what ends it; the last one may be empty."""
    lines, begin = list[list[int]](), 0
    for _ in range(said.count(newline_id)):
        end = said.index(newline_id, begin)
        lines.append(list(said[begin:end]))
        begin = end + 1
    return [*lines, list(said[begin:])]


def likeliest(newline_id: int) -> Pick:
    """Chooses the likeliest token that makes no line of an answer what an earlier line is.

    In a list of one token a line, every token is named once; in an explanation, every claim is made once. Without it a
    reader that sees the diff well names its strongest token again and again, long before it learns to leave out what it
    has named.
    """

    def pick(
        _: Int[Tensor, "live"],
        said: Int[Tensor, "live token"],
        lengths: Int[Tensor, "live"],
        logits: Float[Tensor, "live vocab"],
    ) -> Int[Tensor, "live"]:
        logits.index_put_(repeating(said, lengths, newline_id), logits.new_tensor(float("-inf")))
        if logits.device.type == "cpu":  # NumPy compares many numbers at once, PyTorch one after the other
            return torch.from_numpy(logits.numpy().argmax(-1))
        return logits.argmax(-1)

    return pick


def repeating(
    said: Int[Tensor, "row token"], lengths: Int[Tensor, "row"], newline_id: int
) -> tuple[Int[Tensor, "barred"], Int[Tensor, "barred"]]:
    """Rows, and tokens that would make a line of theirs equal to an earlier one; a row ends at its length."""
    is_break = said == newline_id
    places = torch.arange(said.shape[1] + 1, device=said.device)
    is_break &= places[:-1] < lengths[:, None]
    # Where the line begins that each place, and what comes next, stands in.
    begins = pad(torch.where(is_break, places[1:], 0).cummax(dim=1).values, (1, 0))
    # What stands before each place in its line, as a number: tokens times weights of their places, summed.
    weights = torch.randint(1 << 62, (said.shape[1],), generator=torch.Generator().manual_seed(0)).to(said.device)
    weighted = (said + 1) * weights[places[:-1] - begins[:, :-1]]  # wraps around
    sums = pad(weighted.cumsum(dim=1), (1, 0))
    before = sums - sums.gather(1, begins)
    ends = torch.zeros_like(is_break)  # the last token of a line that is over
    ends[:, :-1] = is_break[:, 1:] & ~is_break[:, :-1]
    rows, columns = (ends & (before[:, :-1] == before.gather(1, lengths[:, None]))).nonzero(as_tuple=True)
    return rows, said[rows, columns]
