"""Explanations are written and read: what is written parses back exactly, and what is no claim is said to be none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diff_oracle.tasks.claims import KINDS, NO_CHANGE, ONLY_SINK, WORDINGS, WORDS, Claim, ClaimKind, parse, write
from tests.tasks.made import VOCABULARY

NAMEABLE = np.flatnonzero(VOCABULARY.allowed.numpy()).tolist()
tokens = st.sampled_from(NAMEABLE)
kinds = st.sampled_from(KINDS)


def words_of(kind: ClaimKind) -> st.SearchStrategy[Claim]:
    said = st.one_of(tokens, st.just(WORDS[kind])) if kind in WORDS else tokens
    return said.map(lambda what: Claim(kind, what))


@given(
    st.lists(kinds.flatmap(words_of), unique=True),
    st.fixed_dictionaries({k: st.sampled_from(WORDINGS[k]) for k in KINDS}),
)
def test_what_is_written_parses_back(claims: list[Claim], words: dict[ClaimKind, str]) -> None:
    for chosen in (None, words):
        parsed = parse(VOCABULARY.show(write(claims, chosen)), VOCABULARY)
        assert parsed.claims == tuple(claims)
        assert parsed.other_lines == ()


def test_an_explanation_reads_so() -> None:
    def token(text: str) -> int:
        (found,) = VOCABULARY.encode((text,))
        return found

    claims = [
        Claim("raises", token(" return")),
        Claim("lowers", token("=")),
        Claim("reads", ONLY_SINK),
        Claim("skipped", NO_CHANGE),
    ]
    assert VOCABULARY.show(write(claims)) == "raises: return\nlowers:=\nreads: only the sink\nskipped: no change"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "raises",
        "raises:",
        "raises: ",
        "Raises: return",
        "causes: return",
        "raises: return now",
        "raises: no change",
    ],
)
def test_what_is_no_claim_is_none(line: str) -> None:
    parsed = parse(line, VOCABULARY)
    assert parsed.claims == ()
    assert parsed.other_lines == ((line,) if line else ())


def test_a_claim_counts_once_whatever_its_words() -> None:
    parsed = parse("raises: return\npromotes: return\nnonsense\nlowers: return", VOCABULARY)
    assert [claim.kind for claim in parsed.claims] == ["raises", "lowers"]
    assert parsed.other_lines == ("nonsense",)


def test_words_of_kinds_differ() -> None:
    wordings = [wording for kind in KINDS for wording in WORDINGS[kind]]
    assert len(set(wordings)) == len(wordings)
    assert not any(":" in wording or "\n" in wording for wording in wordings)
