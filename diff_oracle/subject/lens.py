"""The logit lens: what a diff does to the next-token logits, and which tokens a label may name. After capture."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diff_oracle.subject.model import Subject

# SentencePiece's way of writing what its vocabulary lacks. The one for "A" reads like the token "A" but is never used.
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class TopTokens:
    """The two ends of a shift, strongest first: `suppressed` begins with the most negative score."""

    promoted_ids: Int[Tensor, "query k"]
    promoted_scores: Float[Tensor, "query k"]
    suppressed_ids: Int[Tensor, "query k"]
    suppressed_scores: Float[Tensor, "query k"]


@torch.no_grad()
def direct_logit_shift(
    subject: Subject, diff: Float[Tensor, "query d_model"], final_scale: Float[Tensor, "query"]
) -> Float[Tensor, "query vocab"]:
    """What a diff adds to the logits along the residual stream: (δ·γ/σ)·W_U, centred over the vocabulary.

    The final norm's denominator σ is held at the value that it had, so shifts add up: those of all writes and of the
    embedding sum to the model's centred logits, but for biases. A LayerNorm centres δ first. No bias, no softcap.

    Args:
        subject: The model.
        diff: Raw diffs.
        final_scale: σ at each diff's position (`Captured.final_scale`).
    """
    shift = subject.final_norm.frozen(diff, final_scale) @ subject.W_U
    return shift - shift.mean(-1, keepdim=True)


@torch.no_grad()
def lens_difference(
    subject: Subject, before: Float[Tensor, "query d_model"], diff: Float[Tensor, "query d_model"]
) -> Float[Tensor, "query vocab"]:
    """How the lens's prediction changes: log-softmax of the head at before + δ, minus at before. In nats.

    The head is all that the model does after its last block: norm with its own σ at each residual, unembedding, bias,
    and softcap where the model has one. Not additive, and another quantity than `direct_logit_shift`.
    """
    after = subject.unembed(before + diff).log_softmax(-1)
    return after - subject.unembed(before).log_softmax(-1)


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each token's text as it reads inside a sentence, leading space included; index = id, "" where an id is unused."""
    # Some decoders eat a first token's leading space, so another token stands before each.
    guard = tokenizer.encode("a", add_special_tokens=False)[-1]
    prefix = _decode(tokenizer, [[guard]])[0]
    texts = [""] * (max(tokenizer.get_vocab().values()) + 1)
    ids = sorted(tokenizer.get_vocab().values())
    for i, text in zip(ids, _decode(tokenizer, [[guard, i] for i in ids]), strict=True):
        texts[i] = text.removeprefix(prefix)
    return texts


def label_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Bool[Tensor, "vocab"]:
    """The tokens that a label may name.

    Left out are special, added and unused tokens, rows of the unembedding that the tokenizer does not have, bytes and
    other parts of a character, white space alone, and anything unprintable. Of tokens with the same text the lowest id
    stays, so that a text names one token.

    Args:
        tokenizer: The subject's.
        vocab_size: Rows of the unembedding.
    """
    barred = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    barred |= {i for token, i in tokenizer.get_vocab().items() if _BYTE_TOKEN.fullmatch(token)}
    allowed = torch.zeros(vocab_size, dtype=torch.bool)
    seen: set[str] = set()
    for i, text in enumerate(token_texts(tokenizer)[:vocab_size]):
        if i in barred or text in seen or "\N{REPLACEMENT CHARACTER}" in text:
            continue
        if text.isprintable() and text.strip():
            allowed[i] = True
            seen.add(text)
    return allowed


def top_tokens(shift: Float[Tensor, "query vocab"], allowed: Bool[Tensor, "vocab"], k: int) -> TopTokens:
    """The k most promoted and the k most suppressed of the allowed tokens.

    Raises:
        ValueError: Fewer than k tokens are allowed.
    """
    if not 1 <= k <= int(allowed.sum()):
        raise ValueError(f"cannot name {k} tokens: between 1 and the {int(allowed.sum())} that a label may name")
    promoted = shift.masked_fill(~allowed, -torch.inf).topk(k)
    suppressed = shift.masked_fill(~allowed, torch.inf).topk(k, largest=False)
    return TopTokens(promoted.indices, promoted.values, suppressed.indices, suppressed.values)


def _decode(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> list[str]:
    return list(tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False))
