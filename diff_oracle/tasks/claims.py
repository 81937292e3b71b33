"""What an explanation claims of a diff: one claim a line, each of which can be checked on the model.

    raises: return
    lowers: import
    reads: def
    skipped: self

Behind the colon stands a token, its leading space included. Claims are written with the words of `WORDINGS`, the first
of which are the canonical ones. `truth` says which claims are true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from diff_oracle.tasks.text import Text, Vocabulary

ClaimKind = Literal["raises", "lowers", "reads", "skipped"]
KINDS: tuple[ClaimKind, ...] = get_args(ClaimKind)
"""In the order of an explanation: the token's logit goes up, or down, by the diff; the site's heads attend to it; it is
the likeliest next token if the diff is left out."""
WORDINGS: dict[ClaimKind, tuple[str, ...]] = {
    "raises": ("raises", "promotes", "adds"),
    "lowers": ("lowers", "suppresses", "removes"),
    "reads": ("reads", "attends to", "looks at"),
    "skipped": ("skipped", "if skipped", "without it"),
}
ONLY_SINK, NO_CHANGE = "only the sink", "no change"
WORDS: dict[ClaimKind, str] = {"reads": ONLY_SINK, "skipped": NO_CHANGE}
"""What a claim may say in place of a token."""

_BETWEEN = ": "  # before words; a token brings its own space


@dataclass(frozen=True)
class Claim:
    """One line of an explanation."""

    kind: ClaimKind
    said: int | str
    """The token's id, or the kind's `WORDS`."""


@dataclass(frozen=True)
class Parsed:
    """What an explanation says."""

    claims: tuple[Claim, ...]
    """Each once, in the order of the text."""
    other_lines: tuple[str, ...]
    """Lines that are no claim."""


def write(claims: Sequence[Claim], words: Mapping[ClaimKind, str] | None = None) -> Text:
    """An explanation.

    Args:
        claims: In the order in which they are to stand.
        words: How each kind is worded; the canonical way where it is not given.
    """
    text: list[str | int] = []
    for claim in claims:
        key = (words or {}).get(claim.kind, WORDINGS[claim.kind][0])
        line_break = "\n" if text else ""
        if isinstance(claim.said, int):
            text += [f"{line_break}{key}:", claim.said]
        else:
            text.append(f"{line_break}{key}{_BETWEEN}{claim.said}")
    return tuple(text)


def parse(
    explanation: str, vocabulary: Vocabulary, wordings: Mapping[ClaimKind, Sequence[str]] = MappingProxyType(WORDINGS)
) -> Parsed:
    """The claims of an explanation; the inverse of `write`, whatever the wording."""
    kind_of = {wording: kind for kind, of_kind in wordings.items() for wording in of_kind}
    claims: dict[Claim, None] = {}
    others = []
    for line in filter(None, explanation.split("\n")):
        claim = _parse_line(line, vocabulary, kind_of)
        if claim is None:
            others.append(line)
        else:
            claims[claim] = None
    return Parsed(tuple(claims), tuple(others))


def _parse_line(line: str, vocabulary: Vocabulary, kind_of: Mapping[str, ClaimKind]) -> Claim | None:
    key, colon, said = line.partition(":")
    kind = kind_of.get(key)
    if kind is None or not colon:
        return None
    if kind in WORDS and said == f" {WORDS[kind]}":
        return Claim(kind, WORDS[kind])
    token = vocabulary.find(said)
    return None if token is None else Claim(kind, token)
