"""More wordings for explanations, from a language model that says some of the gold ones in other words.

    1. raises: return          1. pushes up: return
    2. lowers: import    ->    2. makes rarer: import
    3. skipped: no change      3. would be without it: no change

A reconstructor that learns from them reads what an explanation says rather than how it is worded. What stands behind
the colon is the claim and stays; the words before it are what is collected, by kind of claim. An answer counts only if
it makes the same claims, all of them, and words that were used for two kinds are dropped: so every text in these words
says which claims it makes. The oracle keeps to the wordings of `tasks.claims`, by which its claims are checked.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from diff_oracle.nla.chat import Chat, Endpoint, LocalChat, Messages, Remembered
from diff_oracle.nla.reconstructor import Wordings
from diff_oracle.nla.rows import Claims
from diff_oracle.randomness import keyed_rng
from diff_oracle.subject.loading import SubjectConfig, load_hf_model
from diff_oracle.tasks.claims import KINDS, WORDINGS, ClaimKind, write
from diff_oracle.tasks.text import Vocabulary

logger = logging.getLogger(__name__)
SOURCES = ("none", "endpoint", "local")

TASK = """\
A list says what one step of a language model does, one claim a line:
raises: X means that the step makes X more likely as the next word
lowers: X means that the step makes X less likely as the next word
reads: X means that the step looked at X in the text
skipped: X means that X would be the next word if the step were left out
Say the list in other words. Give back every line with its number. Before the colon write one to five other words that
mean the same, not the same for every line. What stands behind the colon must stay exactly as it is. Write nothing else.

"""
EXAMPLE = "1. raises: return\n2. lowers: import\n3. reads: def\n4. skipped: no change"
EXAMPLE_ANSWER = "1. pushes up: return\n2. makes rarer: import\n3. takes in: def\n4. would be without it: no change"

_LINE = re.compile(r"\s*(\d+)[.)] *([^:]*):(.*)")
_WORDS = re.compile(r"[a-z][a-z' -]{0,38}[a-z]")
_KIND_OF = {wording: kind for kind, wordings in WORDINGS.items() for wording in wordings}


@dataclass
class RewritingConfig:
    """A language model that says gold explanations in other words, for reconstructors to learn from."""

    source: str = "none"
    """`none`; `endpoint`, a chat model behind an OpenAI-compatible address; `local`, one on this machine."""
    url: str = ""
    """The address, up to and with its version, as in http://localhost:8000/v1."""
    model: str = ""
    """The model's name there."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; where it is not set none is sent."""
    timeout_s: float = 60.0
    """Seconds to wait for an answer."""
    retries: int = 4
    """How often the address is asked again where it does not answer."""
    local: SubjectConfig = field(default_factory=lambda: SubjectConfig(source="local"))
    """The model on this machine."""
    num_explanations: int = 100
    """Explanations of training rows that are reworded."""
    cache_dir: str | None = None
    """Answers are kept here and never asked for again; ~/.cache/diff_oracle/rewriting where it is not given."""

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"unknown rewriting.source {self.source!r}: choose from {', '.join(SOURCES)}")
        if self.source == "endpoint" and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"rewriting.url must begin with http:// or https://, got {self.url!r}")
        if self.source == "endpoint" and not self.model:
            raise ValueError("rewriting.source=endpoint needs the model's name there: add rewriting.model=NAME")
        for name in ("timeout_s", "num_explanations"):
            if getattr(self, name) <= 0:
                raise ValueError(f"rewriting.{name} must be above 0, got {getattr(self, name)}")
        if self.retries < 0:
            raise ValueError(f"rewriting.retries must be at least 0, got {self.retries}")


def more_wordings(
    config: RewritingConfig, gold: Sequence[Claims], vocabulary: Vocabulary, seed: int, device: str = "cpu"
) -> Wordings:
    """The wordings of each kind: those of `tasks.claims`, and a language model's where the config names one.

    Args:
        config: Who is asked, and how much.
        gold: Explanations of training rows.
        vocabulary: How their tokens read.
        seed: Keys which of them are reworded.
        device: Of a local model.

    Raises:
        ValueError: The model does not answer, or none of its answers makes the claims it was asked to reword.
    """
    if config.source == "none":
        return dict(WORDINGS)
    order = keyed_rng(seed, "rewriting").permutation(len(gold))
    chosen = [gold[i] for i in order if gold[i]][: config.num_explanations]
    folder = Path(config.cache_dir or "~/.cache/diff_oracle/rewriting").expanduser()
    return collect(Remembered(_chat(config, device), folder), chosen, vocabulary)


def collect(chat: Chat, explanations: Sequence[Claims], vocabulary: Vocabulary) -> Wordings:
    """Asks for every explanation in other words, and adds what is found to the wordings of `tasks.claims`.

    Raises:
        ValueError: No answer makes the same claims.
    """
    kinds: dict[str, set[ClaimKind]] = {}
    kept, refused = 0, ""
    for claims in tqdm(explanations, desc="rewording", unit=" explanations"):
        answer = chat(question(claims, vocabulary))
        words = words_of(answer, claims, vocabulary)
        if words is None:
            refused = answer
            continue
        kept += 1
        for claim, of_claim in zip(claims, words, strict=True):
            kinds.setdefault(of_claim, set()).add(claim.kind)
    if not kept:
        raise ValueError(
            f"none of {len(explanations)} rewordings makes the claims of its explanation: choose a model that follows "
            f"instructions, or rewriting=none. The last one: {refused[:200]!r}"
        )
    ours = {kind: sorted(words for words, of in kinds.items() if of == {kind}) for kind in KINDS}
    wordings = {kind: tuple(dict.fromkeys((*WORDINGS[kind], *ours[kind]))) for kind in KINDS}
    found = sum(len(wordings[kind]) - len(WORDINGS[kind]) for kind in KINDS)
    logger.info("%d of %d rewordings make the same claims: %d wordings found", kept, len(explanations), found)
    return wordings


def question(claims: Claims, vocabulary: Vocabulary) -> Messages:
    """What the model is asked: the task, an example with its answer, and the explanation with numbered lines."""
    lines = "\n".join(f"{i}. {vocabulary.show(write([claim]))}" for i, claim in enumerate(claims, start=1))
    return [
        {"role": "user", "content": TASK + EXAMPLE},
        {"role": "assistant", "content": EXAMPLE_ANSWER},
        {"role": "user", "content": lines},
    ]


def words_of(answer: str, claims: Claims, vocabulary: Vocabulary) -> list[str] | None:
    """The words that an answer has for each claim; None where it does not make the same claims.

    Numbers tell which line is which, in any order; lines without one are no claims.
    """
    found: dict[int, str] = {}
    for match in filter(None, map(_LINE.fullmatch, answer.split("\n"))):
        place, words = int(match[1]) - 1, match[2].strip().lower()
        if place in found or not 0 <= place < len(claims) or not _WORDS.fullmatch(words):
            return None
        _, _, said = vocabulary.show(write([claims[place]])).partition(":")
        # Models trim what they copy; the token itself comes from the claim.
        if match[3].strip() != said.strip() or _KIND_OF.get(words, claims[place].kind) != claims[place].kind:
            return None
        found[place] = words
    return [found[i] for i in range(len(claims))] if len(found) == len(claims) else None


def _chat(config: RewritingConfig, device: str) -> Chat:
    if config.source == "local":
        return LocalChat(load_hf_model(config.local, device))
    key = os.environ.get(config.key_env)
    return Endpoint(config.url, config.model, key, config.timeout_s, config.retries)
