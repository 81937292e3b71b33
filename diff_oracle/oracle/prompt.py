"""Prompts: site, size, slots, question. Token ids throughout, so that slots and named tokens are exact.

    L3H2 medium:▮▮
    More likely?

A slot is a token that stands for an injected vector, one that no label and no common text holds (`slot_token`). Slots
are found by scanning the ids and must be as many as were asked for, side by side.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diff_oracle.oracle.injection import INPUTS, InjectionConfig
from diff_oracle.subject.capture import Diff
from diff_oracle.tasks.text import Text, Vocabulary

IGNORED = -100  # labels that carry no loss
TEXT_ONLY_TOKENS = 48
_PLACE = "\u25ae"  # stands for the message while a chat template is split around it
_SYSTEM = "You explain steps of a language model."
_SIZES = ((0.03, "tiny"), (0.1, "small"), (0.3, "medium"), (1.0, "large"), (float("inf"), "huge"))


@dataclass
class PromptConfig:
    """What a prompt shows beside the diff."""

    show_site: bool = True
    """Whether the oracle is told the site's name."""
    show_size: bool = True
    """Whether it is told ‖diff‖ / ‖before‖ in words; injection keeps only the direction."""
    context_tokens: int | None = None
    """Last tokens of the context shown in prompts that carry text in place of a diff. Where it is not given, the whole
    context with `injection.input=text`, so that an oracle of text is as strong as it can be, and 48 in the control
    `text_only`, whose prompts would be the longest of a training."""

    def __post_init__(self) -> None:
        if self.context_tokens is not None and self.context_tokens < 1:
            raise ValueError(f"prompt.context_tokens must be at least 1, got {self.context_tokens}")


@dataclass(frozen=True)
class Prompt:
    """A prompt's ids and the vectors for its slots."""

    ids: list[int]
    vectors: np.ndarray | None
    """[input, d_model]; None where the prompt has no slots."""
    shared: int = 0
    """How many of the first ids are the same for every question about this diff."""


class Batch(TypedDict):
    """Left-padded prompts, with answers behind them in training.

    `attention_mask` has a row and a column for every position where one row holds several questions.
    """

    input_ids: Int[Tensor, "row pos"]
    attention_mask: Int[Tensor, "row pos"] | Bool[Tensor, "row 1 pos pos"]
    position_ids: Int[Tensor, "row pos"]
    labels: Int[Tensor, "row pos"]
    slot_mask: Bool[Tensor, "row pos"]
    vectors: Float[Tensor, "row input d_model"]


def size_word(relative_size: float) -> str:
    """‖diff‖ / ‖before‖ as a word."""
    return next(word for bound, word in _SIZES if relative_size < bound)


def slot_token(vocabulary: Vocabulary) -> int:
    """The id that stands for an injected vector: an unused special token, else a control character.

    Raises:
        ValueError: The tokenizer has neither.
    """
    tokenizer = vocabulary.tokenizer
    template = str(tokenizer.chat_template or "")
    for i, token in sorted(tokenizer.added_tokens_decoder.items()):
        if token.special and i not in tokenizer.all_special_ids and token.content not in template:
            return int(i)
    for i, text in enumerate(vocabulary.texts):
        if len(text) == 1 and unicodedata.category(text) == "Cc" and not text.isspace():
            return i
    raise ValueError("the tokenizer has no unused special token and no control character that could stand for a slot")


def _chat_frame(tokenizer: PreTrainedTokenizerBase) -> str:
    """One turn of the tokenizer's chat, with `_PLACE` for the user's message."""
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _PLACE}]
    try:
        frame = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError:  # how a template says that it knows no system role
        frame = tokenizer.apply_chat_template(messages[1:], tokenize=False, add_generation_prompt=True)
    return str(frame)


class PromptBuilder:
    """Writes prompts for one tokenizer and collates them.

    Raises:
        ValueError: The tokenizer has no token for the slot, or its chat template hides the user's message.
    """

    def __init__(self, vocabulary: Vocabulary, config: PromptConfig, injection: InjectionConfig, d_model: int) -> None:
        self.vocabulary, self.config, self.injection, self.d_model = vocabulary, config, injection, d_model
        self.num_inputs = INPUTS[injection.input]
        self.num_slots = self.num_inputs * injection.num_slots
        self.slot_id = slot_token(vocabulary)
        tokenizer = vocabulary.tokenizer
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token, so no answer could end: set its eos_token")
        self.eos_id = int(tokenizer.eos_token_id)
        if tokenizer.chat_template:
            frame = _chat_frame(tokenizer)
            if frame.count(_PLACE) != 1:
                raise ValueError("the tokenizer's chat template does not show the user's message once")
            head, tail = frame.split(_PLACE)
            self._head, self._tail = list(vocabulary.encode_string(head)), list(vocabulary.encode_string(tail))
        else:
            self._head, self._tail = list(tokenizer("")["input_ids"]), list(vocabulary.newline)

    def about(self, diff: Diff, question: Text, instead: np.ndarray | None = None) -> Prompt:
        """The prompt that asks about a diff; vectors of zeros leave their slots empty.

        Args:
            diff: Its site and size are said, and what `injection.input` names is injected.
            question: What is asked.
            instead: [d_model], injected in place of the diff itself; all else stays as it is.

        Raises:
            ValueError: A vector is not as wide as the model, or not finite.
        """
        if not self.num_inputs:
            return self.with_text(diff, question)
        vectors = self.injection.vectors(diff.diff if instead is None else instead, diff.before)
        if vectors.shape[1] != self.d_model or not np.isfinite(vectors).all() or not np.isfinite(diff.relative_size):
            raise ValueError(
                f"the vectors of {diff.site} at position {diff.position} cannot be injected: expected {self.d_model} "
                f"finite numbers, got {vectors.shape[1]}, of which {int(np.isfinite(vectors[0]).sum())} are finite"
            )
        return self._frame((*self._heading(diff), ":", *(self.slot_id,) * self.num_slots, "\n"), question, vectors)

    def with_text(self, diff: Diff, question: Text) -> Prompt:
        """The prompt that shows the context's text in place of the diff; no slot."""
        special = set(self.vocabulary.tokenizer.all_special_ids) | {self.slot_id}
        most = self.config.context_tokens or (TEXT_ONLY_TOKENS if self.num_inputs else len(diff.token_ids))
        shown = [int(i) for i in diff.token_ids[-most:] if int(i) not in special]
        return self._frame((*self._heading(diff), " after ", *shown, "\n"), question, None)

    def _heading(self, diff: Diff) -> Text:
        shown = [diff.site] if self.config.show_site else []
        shown += [size_word(diff.relative_size)] if self.config.show_size else []
        return (" ".join(shown),)

    def _frame(self, before: Text, question: Text, vectors: np.ndarray | None) -> Prompt:
        shared = self._head + self.vocabulary.encode(before)
        return Prompt(shared + self.vocabulary.encode(question) + self._tail, vectors, len(shared))

    def collate(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]] | None = None) -> Batch:
        """Pads on the left, so that every row ends at the same place; answers carry the labels, prompts none.

        Raises:
            ValueError: A row's slots are not as many as asked for, or not side by side.
        """
        rows = [
            prompt.ids + ([*answer, self.eos_id] if answers is not None else [])
            for prompt, answer in zip(prompts, answers if answers is not None else [()] * len(prompts), strict=True)
        ]
        width = max(map(len, rows))
        input_ids = torch.full((len(rows), width), self.eos_id)
        attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
        labels = torch.full((len(rows), width), IGNORED)
        slot_mask = torch.zeros(len(rows), width, dtype=torch.bool)
        vectors = torch.zeros(len(rows), self.num_inputs, self.d_model)
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            start = width - len(row)
            input_ids[i, start:] = torch.tensor(row)
            attention_mask[i, start:] = 1
            labels[i, start + len(prompt.ids) :] = input_ids[i, start + len(prompt.ids) :]
            if prompt.vectors is not None:
                slot_mask[i, start : start + len(prompt.ids)] = torch.tensor(prompt.ids) == self.slot_id
                vectors[i] = torch.from_numpy(prompt.vectors)
                self._check_slots(slot_mask[i])
        return Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
            labels=labels,
            slot_mask=slot_mask,
            vectors=vectors,
        )

    def collate_shared(self, groups: Sequence[Sequence[tuple[Prompt, Sequence[int]]]]) -> Batch:
        """A row for each group of questions about one diff, with their answers: what they share is read once.

        Behind it every question with its answer continues as if it stood there alone: it sees what is shared and
        itself, at the positions that it would have. Losses are those of `collate`.

        Raises:
            ValueError: As `collate`.
        """
        rows = [
            list(group[0][0].ids[: group[0][0].shared])
            + [i for prompt, answer in group for i in (*prompt.ids[prompt.shared :], *answer, self.eos_id)]
            for group in groups
        ]
        width = max(map(len, rows))
        input_ids = torch.full((len(rows), width), self.eos_id)
        labels = torch.full((len(rows), width), IGNORED)
        part = torch.full((len(rows), width), -1)  # 0: shared, 1…: the questions, -1: padding
        position_ids = torch.zeros(len(rows), width, dtype=torch.long)
        slot_mask = torch.zeros(len(rows), width, dtype=torch.bool)
        vectors = torch.zeros(len(rows), self.num_inputs, self.d_model)
        for i, (row, group) in enumerate(zip(rows, groups, strict=True)):
            first = group[0][0]
            shared, start = first.shared, width - len(row)
            input_ids[i, start:] = torch.tensor(row)
            part[i, start : start + shared] = 0
            position_ids[i, start : start + shared] = torch.arange(shared)
            if first.vectors is not None:
                slot_mask[i, start : start + shared] = input_ids[i, start : start + shared] == self.slot_id
                vectors[i] = torch.from_numpy(first.vectors)
                self._check_slots(slot_mask[i])
            start += shared
            for number, (prompt, answer) in enumerate(group, start=1):
                question, length = len(prompt.ids) - shared, len(prompt.ids) - shared + len(answer) + 1
                part[i, start : start + length] = number
                position_ids[i, start : start + length] = shared + torch.arange(length)
                labels[i, start + question : start + length] = input_ids[i, start + question : start + length]
                start += length
        seen = (part[:, None, :] == 0) & (part[:, :, None] >= 0) | (part[:, None, :] == part[:, :, None])
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        return Batch(
            input_ids=input_ids,
            attention_mask=(seen & causal)[:, None],
            position_ids=position_ids,
            labels=labels,
            slot_mask=slot_mask,
            vectors=vectors,
        )

    def _check_slots(self, mask: Bool[Tensor, "pos"]) -> None:
        found = mask.nonzero().flatten().tolist()
        if len(found) != self.num_slots or found[-1] - found[0] != self.num_slots - 1:
            raise ValueError(
                f"expected {self.num_slots} slots side by side, found them at {found}: a question must not hold "
                f"{self.vocabulary.texts[self.slot_id]!r}"
            )
