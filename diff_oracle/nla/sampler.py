"""Samples explanations for reinforcement learning, and says how likely the oracle finds given ones.

A prompt is read once, with its diff injected; its keys and values are repeated for the samples of its group, which go
on from there with nothing injected: what the slots hold is in the cache. Tokens are drawn from the model's own
distribution (temperature 1, nothing cut off, nothing penalised), so that their log-probabilities are those that
`log_probs` gives, with gradients, for the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diff_oracle.oracle.cache import growing_cache
from diff_oracle.oracle.decoding import write_answers
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import Batch, Prompt


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
    batch, base = _on_device(oracle, prompts), oracle.lm.get_base_model()
    cache = growing_cache(base)
    with oracle.injector.injecting(batch["slot_mask"], batch["vectors"]):
        hidden = base.base_model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    cache.batch_repeat_interleave(group_size)
    hidden, seen = (t.repeat_interleave(group_size, dim=0) for t in (hidden, batch["attention_mask"]))
    shape, device = (len(seen), max_new_tokens), oracle.device
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    log_probs, entropy = torch.zeros(shape, device=device), torch.zeros(shape, device=device)

    def pick(
        live: Int[Tensor, "live"], said: Int[Tensor, "live token"], logits: Float[Tensor, "live vocab"]
    ) -> Int[Tensor, "live"]:
        scores, place = logits.log_softmax(dim=-1), said.shape[1]
        drawn = scores.argmax(dim=-1) if generator is None else _draw(scores, generator)
        mask[live, place] = True
        log_probs[live, place] = scores.gather(1, drawn[:, None])[:, 0]
        entropy[live, place] = -(scores.exp() * scores).sum(dim=-1)
        return drawn

    ids, cut_off = write_answers(base, hidden, seen, cache, oracle.prompts.eos_id, max_new_tokens, pick)
    width = ids.shape[1]
    of_rows = [prompt for prompt in prompts for _ in range(group_size)]
    return Samples(of_rows, ids, mask[:, :width], log_probs[:, :width], entropy[:, :width], cut_off)


def log_probs(oracle: Oracle, samples: Samples) -> Float[Tensor, "sample token"]:
    """The log-probability of every sampled token, with gradients; 0 where none was sampled.

    Prompt and answer are read in one pass; logits are computed only where a token was sampled.
    """
    batch, base = _on_device(oracle, samples.prompts), oracle.lm.get_base_model()
    seen = torch.cat([batch["attention_mask"], samples.mask.long()], dim=1)
    slots = torch.nn.functional.pad(batch["slot_mask"], (0, samples.ids.shape[1]))
    with oracle.injector.injecting(slots, batch["vectors"]):
        hidden = base.base_model(
            input_ids=torch.cat([batch["input_ids"], samples.ids], dim=1),
            attention_mask=seen,
            position_ids=(seen.cumsum(dim=-1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state
    before = hidden[:, batch["input_ids"].shape[1] - 1 : -1]  # each token is read off the place before it
    logits = base.get_output_embeddings()(before[samples.mask]).float()
    found = -torch.nn.functional.cross_entropy(logits, samples.ids[samples.mask], reduction="none")
    return torch.zeros(samples.ids.shape, device=found.device).masked_scatter(samples.mask, found)


def drift(samples: Samples, again: Float[Tensor, "sample token"]) -> float:
    """Mean |Δ| between the log-probabilities at sampling and those that `log_probs` gives for the same weights."""
    return float((again.detach() - samples.log_probs)[samples.mask].abs().mean())


def _draw(scores: Float[Tensor, "row vocab"], generator: torch.Generator) -> Int[Tensor, "row"]:
    return torch.multinomial(scores.exp(), 1, generator=generator)[:, 0]


def _on_device(oracle: Oracle, prompts: Sequence[Prompt]) -> Batch:
    batch: Any = oracle.prompts.collate(prompts)
    return Batch(**{name: tensor.to(oracle.device) for name, tensor in batch.items()})  # type: ignore[typeddict-item]
