"""One optimiser step of each part of the pair: the policy by its rewards or by gold explanations, the reconstructor.

Everything is computed in evaluation mode: the ratio compares the policy with itself, and dropout would make them two.
Several processes each bring rows of their own; their gradients are summed, and what is returned is of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from diff_oracle.nla.grpo import clipped_losses, k3, share_clipped
from diff_oracle.nla.reconstructor import Reconstructor
from diff_oracle.nla.sampler import Samples, drift, log_probs
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import Prompt
from diff_oracle.records import Record
from diff_oracle.tasks.text import Text
from diff_oracle.training.processes import sum_gradients, summed

MAX_DRIFT = {False: 1e-4, True: 0.02}
"""Largest mean |Δ| of log-probabilities between sampling and training, in float32 and in bfloat16."""


@dataclass
class UpdateConfig:
    """How the parts of the pair are updated."""

    learning_rate: float = 7e-4
    """Muon's peak rate for the policy: linear warm-up, cosine decay to zero."""
    ar_learning_rate: float = 1e-3
    """The same for the reconstructor."""
    warmup_steps: int = 10
    """Steps of warm-up."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    parts: int = 1
    """Updates of the policy a step, each on a part of the samples."""
    clip: float = 0.2
    """A token's probability earns nothing by moving further than this share from what it was at sampling."""
    kl: float = 0.02
    """Weight of the KL to the policy as it was at the start."""
    sft_anchor: float = 0.0
    """Weight of the loss on the gold explanations of the same diffs."""
    rows_at_once: int = 64
    """Rows in one pass: less memory, the same updates."""
    bf16: bool = False
    """Sampling and updates in bfloat16 (autocast); what is trained stays in float32. A CPU that does not compute in
    bfloat16 takes float32."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "ar_learning_rate", "max_grad_norm", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"rl.updates.{name} must be above 0, got {getattr(self, name)}")
        for name in ("warmup_steps", "parts", "rows_at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"rl.updates.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("kl", "sft_anchor"):
            if getattr(self, name) < 0:
                raise ValueError(f"rl.updates.{name} must be at least 0, got {getattr(self, name)}")

    def precision(self, device: torch.device) -> AbstractContextManager[object]:
        """Within, matrix products have the precision that `bf16` says."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)


def update_policy(
    policy: Oracle,
    reference: Oracle,
    optimizer: torch.optim.Optimizer,
    samples: Samples,
    advantage: Float[Tensor, "sample token"],
    config: UpdateConfig,
    rng: np.random.Generator,
    gold: Sequence[tuple[Prompt, Sequence[int]]] = (),
) -> dict[str, float]:
    """Makes samples with a high advantage likelier.

    Args:
        policy: Drew the samples, with the weights that it has now.
        reference: It is held near this one.
        optimizer: Of what is trained of the policy.
        samples: Its answers.
        advantage: Of each token.
        config: How.
        rng: Parts the samples.
        gold: Prompts and answers of the anchor.

    Returns:
        `kl` in nats a token, `clipped`, `drift`, `grad_norm`; means over the parts.

    Raises:
        ValueError: The log-probabilities are not those at sampling, or not finite.
    """
    found: list[dict[str, float]] = []
    drifted = 0.0
    for number, part in enumerate(np.array_split(rng.permutation(len(samples)), config.parts)):
        taught = float(advantage[part.tolist()].any())
        num_tokens, taught = summed([float(samples.lengths[part.tolist()].sum()), taught], policy.device)
        kl, clipped, moved = 0.0, 0.0, 0.0
        for rows in _by_length(part, samples.lengths.tolist(), config.rows_at_once):
            some = samples.take(rows)
            with config.precision(policy.device):
                new = log_probs(policy, some)
                with torch.no_grad():
                    at_start = log_probs(reference, some)
            divergence, share = k3(new, at_start), int(some.mask.sum()) / num_tokens
            losses = (
                clipped_losses(new, some.log_probs, advantage[rows, : new.shape[1]], config.clip)
                + config.kl * divergence
            )
            (losses[some.mask].sum() / num_tokens).backward()
            kl += float(divergence.detach()[some.mask].sum()) / num_tokens
            clipped += share * share_clipped(new, some.log_probs, some.mask, config.clip)
            if number == 0:  # nothing has moved yet
                moved += share * drift(some, new)
        kl, clipped, moved = summed([kl, clipped, moved], policy.device)
        if number == 0:
            _check_drift(moved, config.bf16)
            drifted = moved
        if config.sft_anchor:
            _gold_loss(policy, gold, config, config.sft_anchor)
        norm = 0.0
        if taught or config.sft_anchor:
            norm = _step(policy, optimizer, config.max_grad_norm)
        else:  # nothing was learned, but Muon's steps are of one size, however small the gradient
            optimizer.zero_grad()
        found.append({"kl": kl, "clipped": clipped, "grad_norm": norm})
    means = {name: float(np.mean([part[name] for part in found])) for name in found[0]}
    return means | {"drift": drifted}


def update_supervised(
    policy: Oracle,
    optimizer: torch.optim.Optimizer,
    gold: Sequence[tuple[Prompt, Sequence[int]]],
    config: UpdateConfig,
) -> dict[str, float]:
    """Makes gold explanations likelier: `sft_loss`, `grad_norm`."""
    loss = _gold_loss(policy, gold, config, 1.0)
    return {"sft_loss": loss, "grad_norm": _step(policy, optimizer, config.max_grad_norm)}


def update_reconstructor(
    ar: Reconstructor,
    optimizer: torch.optim.Optimizer,
    records: Sequence[Record],
    texts: Sequence[Text],
    target: Float[np.ndarray, "row d_model"],
    config: UpdateConfig,
) -> dict[str, float]:
    """Makes what is read off explanations more like their diffs: `ar_loss`, `ar_grad_norm`; nothing of no rows."""
    loss_of_all, lengths = 0.0, [len(text) for text in texts]
    (num_rows,) = summed([float(len(texts))], ar.device)
    if not num_rows:
        return {}
    for rows in _by_length(np.arange(len(texts)), lengths, config.rows_at_once):
        batch = ar.batch([records[i] for i in rows], [texts[i] for i in rows])
        goal = torch.from_numpy(target[rows]).float().to(ar.device)
        with config.precision(ar.device):
            loss = ar(target=goal, **batch)["loss"] * (len(rows) / num_rows)
        loss.backward()
        loss_of_all += loss.item()
    (loss_of_all,) = summed([loss_of_all], ar.device)
    return {"ar_loss": loss_of_all, "ar_grad_norm": _step(ar, optimizer, config.max_grad_norm)}


def _gold_loss(
    policy: Oracle, gold: Sequence[tuple[Prompt, Sequence[int]]], config: UpdateConfig, weight: float
) -> float:
    """Cross-entropy of gold explanations, its gradient added to what is there; without the weight."""
    lengths = [len(answer) + 1 for _, answer in gold]
    total = torch.tensor(summed([float(sum(lengths))], policy.device)[0], device=policy.device)
    loss = 0.0
    for rows in _by_length(np.arange(len(gold)), lengths, config.rows_at_once):
        batch = policy.prompts.collate([gold[i][0] for i in rows], [gold[i][1] for i in rows])
        inputs = {name: value.to(policy.device) for name, value in batch.items()}  # type: ignore[attr-defined]
        with config.precision(policy.device):
            part = policy(num_items_in_batch=total, **inputs)["loss"]
        (weight * part).backward()
        loss += part.item()
    return summed([loss], policy.device)[0]


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
    """An optimiser step on the sum of all processes' gradients; returns its norm.

    Raises:
        ValueError: It is not finite.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sum_gradients(parameters)
    norm = float(clip_grad_norm_(parameters, max_grad_norm))
    if not np.isfinite(norm):
        raise ValueError(
            f"the gradient of the {type(model).__name__.lower()} is {norm}: lower rl.updates.learning_rate or "
            "rl.updates.ar_learning_rate"
        )
    optimizer.step()
    optimizer.zero_grad()
    return norm


def _check_drift(found: float, bf16: bool) -> None:
    if not found <= MAX_DRIFT[bf16]:
        raise ValueError(
            f"log-probabilities at sampling and at training differ by {found:.2g} in the mean, expected at most "
            f"{MAX_DRIFT[bf16]}: the policy would be credited for what another one did; choose another precision "
            "(rl.updates.bf16)"
        )


def _by_length(rows: np.ndarray, lengths: Sequence[int], rows_at_once: int) -> Iterator[list[int]]:
    """Rows in batches of like length, so that little is padded."""
    ordered = sorted(rows.tolist(), key=lambda row: lengths[row])
    for start in range(0, len(ordered), rows_at_once):
        yield ordered[start : start + rows_at_once]
