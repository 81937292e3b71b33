"""What a sampled explanation is worth: how near the reconstructor comes to the diff by reading it.

The reconstructor never reads what was written, but its claims in their canonical words; with `truth_gated` only those
that are true on the model, so that a private code earns nothing that is not also true.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diff_oracle.nla.metrics import cosine
from diff_oracle.nla.rows import Claims
from diff_oracle.tasks.claims import Claim, parse
from diff_oracle.tasks.text import Vocabulary
from diff_oracle.tasks.truth import Measured

MEASURES = ("nmse", "log_nmse")
_TINY = 1e-6  # of nmse: no reward above 14 for a perfect reconstruction


@dataclass
class RewardConfig:
    """What is rewarded."""

    measure: str = "nmse"
    """`nmse`: −2 (1 − cosine) of reconstruction and diff; `log_nmse`: −log of the same."""
    truth_gated: bool = False
    """Whether false claims are struck out before the reconstructor reads."""
    contrastive: float = 0.0
    """So many times the reward that the same reconstruction has for another document's diff of the same site is
    taken off: what fits every diff of a site earns nothing at 1."""
    length_penalty: float = 0.0
    """Taken off for every token."""
    false_penalty: float = 0.0
    """Taken off for every claim that is false on the model, and for every line that is no claim."""
    quote_penalty: float = 0.0
    """Taken off times the share of claims that name a token of the context."""
    failed: float = -2.0
    """Reward of an answer without a claim that is read, or cut off, and the least of any. That of a reconstruction at
    right angles to the diff is −2 (`nmse`) or −0.7 (`log_nmse`)."""

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"unknown rl.reward.measure {self.measure!r}: choose from {', '.join(MEASURES)}")
        for name in ("contrastive", "length_penalty", "false_penalty", "quote_penalty"):
            if getattr(self, name) < 0:
                raise ValueError(f"rl.reward.{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class Judged:
    """A sampled explanation, taken apart."""

    claims: Claims
    """What it claims, each once."""
    read: Claims
    """What of it the reconstructor gets to read."""
    false: Claims
    """What of it is false on the model."""
    quoted: Claims
    """What of it names a token of the context."""
    num_tokens: int
    """Sampled tokens."""
    cut_off: bool
    """Whether it had no end."""
    other_lines: int = 0
    """Lines of it that are no claim, empty ones too."""

    @property
    def failed(self) -> bool:
        """Whether it is no explanation: it claims nothing that is read, or was cut off."""
        return self.cut_off or not self.read

    @property
    def num_true(self) -> int:
        """Claims that are true on the model."""
        return len(self.claims) - len(self.false)

    @property
    def quotes(self) -> float:
        """Share of claims that name a token of the context."""
        return len(self.quoted) / max(1, len(self.claims))

    def of(self, said: Sequence[Claim | None], num_tokens: int) -> Judged:
        """A part of it: lines with these claims, None for one that is no claim, in so many tokens."""

        def kept(claims: Claims) -> Claims:
            return tuple(claim for claim in claims if claim in said)

        claims, read, false, quoted = map(kept, (self.claims, self.read, self.false, self.quoted))
        return Judged(claims, read, false, quoted, num_tokens, cut_off=False, other_lines=said.count(None))


def judge(
    text: str,
    num_tokens: int,
    cut_off: bool,
    context: Sequence[int],
    truth: Measured,
    vocabulary: Vocabulary,
    truth_gated: bool,
) -> Judged:
    """Takes an explanation apart.

    Args:
        text: As it was written.
        num_tokens: How long it is.
        cut_off: Whether it has no end.
        context: Token ids.
        truth: What is true of the diff.
        vocabulary: Of the oracle.
        truth_gated: Whether false claims are struck out of what is read.
    """
    parsed, tokens = parse(text, vocabulary), set(context)
    claims = parsed.claims
    true = tuple(claim for claim in claims if truth.holds(claim))
    false = tuple(claim for claim in claims if claim not in true)
    quoted = tuple(claim for claim in claims if claim.said in tokens)
    read = true if truth_gated else claims
    empty = text.split("\n").count("") if text else 0
    return Judged(claims, read, false, quoted, num_tokens, cut_off, len(parsed.other_lines) + empty)


def nearness(
    rebuilt: Float[np.ndarray, "row d_model"], target: Float[np.ndarray, "row d_model"], measure: str
) -> Float[np.ndarray, "row"]:
    """How near reconstructions come: −nmse, or −log nmse; nmse = 2 (1 − cosine)."""
    nmse = 2 * (1 - cosine(rebuilt, target))
    return -np.log(np.maximum(nmse, _TINY)) if measure == "log_nmse" else -nmse


def worth(
    judged: Sequence[Judged],
    rebuilt: Float[np.ndarray, "sample d_model"],
    target: Float[np.ndarray, "sample d_model"],
    config: RewardConfig,
    wrong: Float[np.ndarray, "sample d_model"] | None = None,
) -> Float[np.ndarray, "sample"]:
    """What explanations are worth, or parts of some, as if none had failed.

    Args:
        judged: The explanations.
        rebuilt: What the reconstructor makes of what it may read of them.
        target: The diffs.
        config: What is rewarded.
        wrong: For each, another diff of the same site, where `config.contrastive` is not 0.

    Raises:
        ValueError: The reward is contrastive, but there is nothing to contrast with.
    """
    if config.contrastive and wrong is None:
        raise ValueError("rl.reward.contrastive needs a wrong diff for each sample, got none")
    value = nearness(rebuilt, target, config.measure)
    if wrong is not None:
        value = value - config.contrastive * nearness(rebuilt, wrong, config.measure)
    value = value - config.length_penalty * np.array([j.num_tokens for j in judged])
    value = value - config.false_penalty * np.array([len(j.false) + j.other_lines for j in judged])
    return value - config.quote_penalty * np.array([j.quotes for j in judged])


def rewards(judged: Sequence[Judged], worth: Float[np.ndarray, "sample"], failed: float) -> Float[np.ndarray, "sample"]:
    """What explanations earn: what they are worth; those that failed, and those worth less than that, `failed`."""
    return np.where([j.failed for j in judged], failed, np.maximum(worth, failed))
