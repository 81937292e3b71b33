"""Task `logit_lens`: which tokens does this diff make more or less likely, read directly through the unembedding?

Four kinds of question. `promoted` and `suppressed` ask for the tokens whose logits the diff moves most up or down;
`yes_no` and `choice` name tokens that stand at the two ends. The labels of −diff are those of diff with the ends
swapped, so every diff gives a second, sign-flipped pair.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from diff_oracle.records import Record, RecordSet
from diff_oracle.tasks.base import Phrasing, Question
from diff_oracle.tasks.text import Text, Vocabulary, parse_token_list, token_list

YES, NO = "yes", "no"

# {0} and {1} stand for tokens, set in quotes. Short: every word of a question is paid for at every training step.
PHRASINGS: dict[str, dict[Phrasing, tuple[str, ...]]] = {
    "promoted": {
        "seen": ("Which tokens go up?", "More likely tokens?", "What does this add?", "Name what is raised."),
        "heldout": ("Which tokens are raised?", "What goes up most?"),
    },
    "suppressed": {
        "seen": ("Which tokens go down?", "Less likely tokens?", "What does this take away?", "Name what is lowered."),
        "heldout": ("Which tokens are lowered?", "What goes down most?"),
    },
    "yes_no": {
        "seen": ('Is "{0}" more likely?', 'Does "{0}" go up?', 'Is "{0}" raised?'),
        "heldout": ('Does this add "{0}"?',),
    },
    "choice": {
        "seen": ('Which goes up, "{0}" or "{1}"?', '"{0}" or "{1}"?', 'Does this add "{0}" or "{1}"?'),
        "heldout": ('More likely: "{0}" or "{1}"?',),
    },
}


# Shares of the training examples. Not equal: `promoted` asks for a copy of the diff, `suppressed` for a copy of its
# negative, and in equal shares the two cancel in the gradient of whatever reads the slot: nothing is read for long.
KINDS = {"promoted": 0.5, "suppressed": 0.2, "yes_no": 0.15, "choice": 0.15}


@dataclass
class LogitLensConfig:
    """How many tokens are measured and asked for."""

    k: int = 10
    """Tokens kept at each end of the direct logit shift. Yes/no and choice questions draw from them."""
    num_asked: int = 5
    """Tokens that an open question asks for."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_asked <= self.k:
            raise ValueError(f"tasks.logit_lens.num_asked must be 1…k = {self.k}, got {self.num_asked}")


@dataclass(frozen=True)
class LogitLens:
    """Questions on the direct logit shift, and their scores."""

    config: LogitLensConfig = field(default_factory=LogitLensConfig)
    name = "logit_lens"
    kinds = MappingProxyType(KINDS)

    def question(
        self, record: Record, kind: str, rng: np.random.Generator, phrasing: Phrasing = "seen", sign: int = 1
    ) -> Question:
        """A question of a kind about `sign` times the record's diff.

        Raises:
            ValueError: The kind is unknown.
        """
        if kind not in self.kinds:
            raise ValueError(f"unknown question kind {kind!r}: choose from {', '.join(self.kinds)}")
        ends = record.labels["promoted_ids"].tolist(), record.labels["suppressed_ids"].tolist()
        promoted, suppressed = ends if sign > 0 else ends[::-1]
        wordings = PHRASINGS[kind][phrasing]
        wording = wordings[rng.integers(len(wordings))]
        if kind in ("promoted", "suppressed"):
            tokens = promoted if kind == "promoted" else suppressed
            return Question(self.name, kind, phrasing, (wording,), token_list(tokens[: self.config.num_asked]))
        up, down = int(rng.choice(promoted)), int(rng.choice(suppressed))
        first_is_up = bool(rng.integers(2))
        if kind == "yes_no":
            text = _fill(wording, up if first_is_up else down)
            return Question(self.name, kind, phrasing, text, (YES if first_is_up else NO,), ((YES,), (NO,)))
        pair = (up, down) if first_is_up else (down, up)
        return Question(self.name, kind, phrasing, _fill(wording, *pair), (up,), ((pair[0],), (pair[1],)))

    def score(self, question: Question, answer: str, vocabulary: Vocabulary) -> float:
        """Open questions: the share of the asked tokens that are named (naming more than asked does not help).

        Questions with choices: 1 if the answer is the right choice, else 0.
        """
        gold = vocabulary.show(question.answer)
        if question.choices:
            return float(answer == gold)
        wanted = parse_token_list(gold)
        named = parse_token_list(answer)[: len(wanted)]
        return len(set(named) & set(wanted)) / len(wanted)

    def fit_prior(self, records: RecordSet, vocabulary: Vocabulary) -> SitePrior:
        """Counts, for each site, how often each token stands at either end among the training rows."""
        prior = SitePrior(self.config.num_asked, vocabulary)
        columns = records.sites, records.column("promoted_ids"), records.column("suppressed_ids")
        for site, promoted, suppressed in zip(*columns, strict=True):
            for key in (site, None):  # None: all sites, for a site that training rows lack
                prior.promoted[key].update(promoted.tolist())
                prior.suppressed[key].update(suppressed.tolist())
        return prior


@dataclass
class SitePrior:
    """The best answer that knows the site and the training rows but not the diff."""

    num_asked: int
    vocabulary: Vocabulary
    promoted: dict[str | None, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    suppressed: dict[str | None, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))

    def answer(self, site: str, question: Question) -> str:
        """Open: the site's commonest tokens. Else by how much oftener the site promotes than suppresses the token."""
        key = site if site in self.promoted else None
        if not question.choices:
            counts = (self.promoted if question.kind == "promoted" else self.suppressed)[key]
            return self.vocabulary.show(token_list(token for token, _ in counts.most_common(self.num_asked)))
        tokens = [piece for piece in question.text if isinstance(piece, int)]
        lead = [self.promoted[key][token] - self.suppressed[key][token] for token in tokens]
        if question.kind == "yes_no":
            return YES if lead[0] > 0 else NO
        return self.vocabulary.show((tokens[int(np.argmax(lead))],))


def _fill(wording: str, *tokens: int) -> Text:
    """The wording with its {0} and {1} replaced by token ids."""
    text: list[str | int] = [wording]
    for index, token in enumerate(tokens):
        before, after = str(text[-1]).split(f"{{{index}}}")
        text[-1:] = [before, token, after]
    return tuple(text)
