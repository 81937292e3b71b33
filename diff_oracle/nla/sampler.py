"""Samples explanations for reinforcement learning, and says how likely the oracle finds given ones.

A prompt is read once, with its diff injected; its keys and values are repeated for the samples of its group, which go
on from there with nothing injected: what the slots hold is in the cache. Tokens are drawn from the model's own
distribution (temperature 1, nothing cut off, nothing penalised), so that their log-probabilities are those that
`log_probs` gives, with gradients, for the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from diff_oracle.oracle.cache import growing_cache
from diff_oracle.oracle.decoding import write_answers
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import Prompt


@dataclass(frozen=True)
class Samples:
    """Sampled answers, one a row; those of a prompt stand side by side."""

    prompts: list[Prompt]
    """Each row's."""
    ids: Int[Tensor, "sample token"]
    """The answers, end-of-sequence tokens included and repeated behind them."""
    mask: Bool[Tensor, "sample token"]
    """What was sampled: the answer and the token that ends it."""
    log_probs: Float[Tensor, "sample token"]
    """Of each sampled token, when it was drawn; 0 elsewhere."""
    entropy: Float[Tensor, "sample token"]
    """Of what it was drawn from, in nats; 0 elsewhere."""
    cut_off: Bool[Tensor, "sample"]
    """Whether the answer had not ended when there was no more room."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> Int[Tensor, "sample"]:
        """Sampled tokens of each answer."""
        return self.mask.sum(dim=1)

    def take(self, rows: Sequence[int]) -> Samples:
        """Some rows, as wide as the longest of them."""
        kept = torch.tensor(rows, device=self.ids.device)
        width = int(self.lengths[kept].max())
        return Samples(
            prompts=[self.prompts[i] for i in rows],
            ids=self.ids[kept, :width],
            mask=self.mask[kept, :width],
            log_probs=self.log_probs[kept, :width],
            entropy=self.entropy[kept, :width],
            cut_off=self.cut_off[kept],
        )

    def texts(self, oracle: Oracle) -> list[str]:
        """The answers, as people read them."""
        return [oracle.vocabulary.decode(row) for row in self.ids.tolist()]


@torch.no_grad()
def sample(
    oracle: Oracle,
    prompts: Sequence[Prompt],
    group_size: int,
    max_new_tokens: int,
    generator: torch.Generator | None,
) -> Samples:
    """Samples a group of answers to each prompt.

    Args:
        oracle: Answers.
        prompts: What is asked.
        group_size: Answers to each.
        max_new_tokens: Where an answer is cut off.
        generator: Where tokens are drawn from, on the oracle's device. None: always the likeliest token.
    """
    base = oracle.lm.get_base_model()
    cache = growing_cache(base)
    hidden, seen = oracle.read(prompts, cache)
    cache.batch_repeat_interleave(group_size)
    hidden, seen = (tensor.repeat_interleave(group_size, dim=0) for tensor in (hidden, seen))
    shape, device = (len(seen), max_new_tokens), oracle.device
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    log_probs, entropy = torch.zeros(shape, device=device), torch.zeros(shape, device=device)

    def pick(
        rows: Int[Tensor, "live"],
        said: Int[Tensor, "live token"],
        places: Int[Tensor, "live"],
        logits: Float[Tensor, "live vocab"],
    ) -> Int[Tensor, "live"]:
        scores = logits.log_softmax(dim=-1)
        drawn = scores.argmax(dim=-1) if generator is None else _draw(scores, generator)
        mask[rows, places] = True
        log_probs[rows, places] = scores.gather(1, drawn[:, None])[:, 0]
        entropy[rows, places] = -(scores.exp() * scores).sum(dim=-1)
        return drawn

    eos_id, newline_id = oracle.prompts.eos_id, oracle.vocabulary.newline[-1]
    ids, cut_off = write_answers(base, hidden, seen, cache, eos_id, newline_id, max_new_tokens, pick)
    width = ids.shape[1]
    of_rows = [prompt for prompt in prompts for _ in range(group_size)]
    return Samples(of_rows, ids, mask[:, :width], log_probs[:, :width], entropy[:, :width], cut_off)


def log_probs(oracle: Oracle, samples: Samples) -> Float[Tensor, "sample token"]:
    """The log-probability of every sampled token, with gradients; 0 where none was sampled.

    As at sampling, a prompt is read once for all its answers; logits are computed only where a token was sampled.
    """
    base, ids, mask = oracle.lm.get_base_model(), samples.ids, samples.mask
    prompts = list({id(prompt): prompt for prompt in samples.prompts}.values())
    place = {id(prompt): i for i, prompt in enumerate(prompts)}
    rows = torch.tensor([place[id(prompt)] for prompt in samples.prompts], device=ids.device)
    cache = DynamicCache(config=base.config.get_text_config())  # whose keys and values have gradients
    last, seen = oracle.read(prompts, cache)
    cache.batch_select_indices(rows)
    before = last[rows, None]  # each token is read off the place before it
    if ids.shape[1] > 1:
        start, seen = seen.shape[1], torch.cat([seen[rows], mask[:, :-1].long()], dim=1)
        answers = base.base_model(
            input_ids=ids[:, :-1],
            attention_mask=seen,
            position_ids=(seen.cumsum(dim=-1) - 1)[:, start:],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        before = torch.cat([before, answers], dim=1)
    logits = base.get_output_embeddings()(before[mask]).float()
    found = -torch.nn.functional.cross_entropy(logits, ids[mask], reduction="none")
    return torch.zeros(ids.shape, device=found.device).masked_scatter(mask, found)


def drift(samples: Samples, again: Float[Tensor, "sample token"]) -> float:
    """Mean |Δ| between the log-probabilities at sampling and those that `log_probs` gives for the same weights."""
    return float((again.detach() - samples.log_probs)[samples.mask].abs().mean())


def _draw(scores: Float[Tensor, "row vocab"], generator: torch.Generator) -> Int[Tensor, "row"]:
    return torch.multinomial(scores.exp(), 1, generator=generator)[:, 0]
