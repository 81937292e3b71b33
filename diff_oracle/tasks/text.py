"""Texts that name tokens exactly.

A question may speak of a token, and an answer may be a list of tokens. Writing a token as text and tokenizing it again
can give other tokens, so a `Text` is a tuple of strings and token ids: strings are tokenized, ids taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from diff_oracle.subject.lens import label_tokens, token_texts

Text = tuple[str | int, ...]

MINUS = "-"  # stands before each token of a list of what goes down


class Vocabulary:
    """A tokenizer's tokens as text, and texts as tokens.

    Attributes:
        texts: Each token's text, leading space included.
        allowed: [vocab] bool, the tokens that may stand in a label (`subject.lens.label_tokens`).
        newline: The ids of a line break, which parts the tokens of a list.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.texts: list[str] = token_texts(tokenizer)
        self.allowed = label_tokens(tokenizer, vocab_size)
        self._whole = {text: i for i, text in reversed(list(enumerate(self.texts)))}
        self.encode_string = lru_cache(maxsize=4096)(self._encode_string)
        self.newline = self.encode_string("\n")

    def _encode_string(self, string: str) -> tuple[int, ...]:
        ids = tuple(self.tokenizer.encode(string, add_special_tokens=False))
        if self.show(ids) != string and string in self._whole:
            return (self._whole[string],)  # the tokenizer puts a space before every text
        return ids

    def encode(self, text: Text) -> list[int]:
        """The text's token ids, without special tokens."""
        ids: list[int] = []
        for piece in text:
            if isinstance(piece, str):
                ids.extend(self.encode_string(piece))
            else:
                ids.append(piece)
        return ids

    def find(self, text: str) -> int | None:
        """The token that a label may name and that reads so; None where there is none."""
        return self._nameable.get(text)

    def may_name(self, token: int) -> bool:
        """Whether a label may name the token."""
        return self._nameable.get(self.texts[token]) == token

    @cached_property
    def _nameable(self) -> dict[str, int]:
        return {self.texts[i]: i for i in self.allowed.nonzero().flatten().tolist()}

    def show(self, text: Text) -> str:
        """The text as people read it."""
        return "".join(piece if isinstance(piece, str) else self.texts[piece] for piece in text)

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids as text, up to the end-of-sequence token; a leading space is kept."""
        kept = takewhile(lambda i: i not in self._special, ids)
        # Some decoders eat the first token's leading space, so a line break stands guard.
        return str(self.tokenizer.decode([*self.newline, *kept], skip_special_tokens=False))[self._guard :]

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)

    @cached_property
    def _guard(self) -> int:
        """Length of what a line break reads as."""
        return len(self.tokenizer.decode(list(self.newline), skip_special_tokens=False))


def token_list(ids: Iterable[int], mark: str = "") -> Text:
    """The canonical form of a list of tokens: one a line, behind the mark if one is given, leading spaces kept.

    Tokens of a label are printable, so none holds a line break and the form parses back exactly.
    """
    text: list[str | int] = []
    for i in ids:
        text += ["\n"] if text else []
        text += [mark, int(i)] if mark else [int(i)]
    return tuple(text)


def parse_token_list(answer: str) -> list[str]:
    """The lines of an answer, in order, each once: a token, with its mark where it has one."""
    return list(dict.fromkeys(line for line in answer.split("\n") if line))
