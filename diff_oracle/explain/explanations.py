"""What explaining gives: texts, and for each position and site the oracle's claims beside what was measured.

Plain values only, so that a page, a notebook or another program needs neither the oracle nor the subject to show them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from diff_oracle.subject.sites import SiteKind

RANKS = {"size": "relative_size", "direct_effect": "direct_effect", "skip_kl": "skip_kl"}
"""What explanations can be ranked by -> the field that holds it."""
REBUILT = ("cosine", "share", "without_words", "carried")
"""The numbers of a `Reconstruction`."""
_SHOWN_IN_NOTEBOOKS = 30


@dataclass(frozen=True)
class Claim:
    """One thing that an answer says: a token of a list, or a choice."""

    text: str
    right: bool


@dataclass(frozen=True)
class Answer:
    """What the oracle answered to one question, and what was measured."""

    task: str
    kind: str
    question: str
    """As it was put."""
    answer: str
    """In canonical form: a list has a token a line."""
    measured: str
    """The right answer, in the same form."""
    right: bool | None
    """Whether it is the measured one; None for a list, whose claims are right or wrong one by one."""
    score: float | None
    """The task's score, 0…1."""
    claims: list[Claim]


@dataclass(frozen=True)
class Reconstruction:
    """What the reconstructor of a pair (`diff_oracle.nla`) makes of a free explanation, which it reads claim by claim.

    It gives a direction, at the size where the root mean square is 1. With q the diff at this size and p the
    reconstruction as it is, 1 − ‖q − p‖² / ‖q‖² is the share of the diff that is rebuilt: 1 where p = q, 0 where p = 0,
    below 0 where p leads away. No mean of the site is taken off, for a pair's files hold none; what the reconstructor
    makes of no words stands in its place, which flatters the words where it is worse than the site's mean (rung `AV,
    empty: AR` of the ladder). `DiffNLA.reconstruct` gives the vector.
    """

    cosine: float
    """Of the reconstruction and the diff."""
    share: float
    """The share that is rebuilt."""
    without_words: float
    """The share that is rebuilt from no claim at all: what the site, and what the reconstructor is told besides, gives
    away."""
    carried: float
    """What the words brought: share − without_words, or share alone where the reconstructor is lost without words
    (without_words < 0). Below 0 where they mislead; 0 where nothing was claimed."""
    promoted: list[str]
    """Tokens that the reconstruction raises most."""
    suppressed: list[str]
    """Tokens that it lowers most."""


@dataclass(frozen=True)
class Explanation:
    """What one site did at one position of a text, in the oracle's words and as measured.

    Tokens are given as they read inside a sentence, leading space included; lists begin with the strongest.
    """

    text: int
    """Index of the text."""
    position: int
    """Token index in the text."""
    site: str
    kind: SiteKind
    relative_size: float
    """‖diff‖ / ‖before‖."""
    direct_effect: float
    """The direct logit shift of `next_token`."""
    next_token: str
    """The token that the model, with all its sites, finds likeliest behind this position."""
    skip_kl: float
    """KL(base ‖ skipped) in nats."""
    promoted: list[tuple[str, float]]
    """Tokens that the diff raises most, with their direct logit shifts."""
    suppressed: list[tuple[str, float]]
    """Tokens that it lowers most."""
    gained: list[tuple[str, float]]
    """Tokens that gain most probability if it is skipped, with what they gain."""
    lost: list[tuple[str, float]]
    """Tokens that lose most."""
    attended: list[tuple[int, float]]
    """Positions that the site's heads attended to, with their shares of all weight; empty for an MLP."""
    sink_share: float | None
    """The share of position 0, which `attended` leaves out; None for an MLP."""
    answers: list[Answer]
    explanation: str | None = None
    """What the oracle says when it may say what it wants; None where it was not asked."""
    explanation_claims: list[Claim] = field(default_factory=list)
    """What of it could be checked."""
    rebuilt: Reconstruction | None = None
    """What a pair rebuilds of the diff from it; None where no pair explained."""

    @property
    def claims(self) -> list[Claim]:
        """All that was claimed and checked."""
        return [claim for answer in self.answers for claim in answer.claims] + self.explanation_claims


@dataclass(frozen=True)
class ExplainedText:
    """A text as the subject read it."""

    text: str
    tokens: list[str]
    """Each token as shown. Of a character that is split over tokens, the last one shows it and the others are empty."""
    token_ids: list[int]


@dataclass(frozen=True)
class Explanations:
    """Explanations of some texts."""

    subject: str
    """The name of the model."""
    oracle: str
    """Where the oracle came from."""
    conventions: dict[str, str]
    """How each measure is defined."""
    texts: list[ExplainedText]
    items: list[Explanation]

    @property
    def num_claims(self) -> int:
        """How many claims were checked."""
        return sum(len(item.claims) for item in self.items)

    @property
    def share_right(self) -> float:
        """The share of right claims among those that were checked; NaN where there are none."""
        right = [claim.right for item in self.items for claim in item.claims]
        return sum(right) / len(right) if right else float("nan")

    @property
    def rebuilt(self) -> dict[str, float]:
        """Means of `Reconstruction`'s numbers; empty where no pair explained."""
        made = [item.rebuilt for item in self.items if item.rebuilt is not None]
        return {name: sum(getattr(one, name) for one in made) / len(made) for name in REBUILT} if made else {}

    def ranked(self, by: str = "size") -> list[Explanation]:
        """The explanations, the largest first; direct effects by their size, whatever their sign.

        Raises:
            ValueError: They cannot be ranked by this.
        """
        if by not in RANKS:
            raise ValueError(f"cannot rank by {by!r}: choose from {', '.join(RANKS)}")
        return sorted(self.items, key=lambda item: -abs(getattr(item, RANKS[by])))

    def to_frame(self) -> pd.DataFrame:
        """A row for each question that was asked, the free explanation last, with what was measured at its site."""
        return pd.DataFrame(_frame_rows(self))

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds."""
        return asdict(self) | self._sums()

    def content(self) -> dict[str, Any]:
        """The same with its parts as they are, for `json.dumps(..., default=vars)`."""
        return vars(self) | self._sums()

    def to_json(self) -> str:
        """What `explanations.json` holds."""
        return json.dumps(self.content(), default=vars, ensure_ascii=False, allow_nan=False)

    def _sums(self) -> dict[str, Any]:
        return {"num_claims": self.num_claims, "share_right": _or_none(self.share_right), "rebuilt": self.rebuilt}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Explanations:
        """Reads what `to_dict` gives, straight or out of JSON.

        Raises:
            KeyError: A part is missing.
            TypeError: A part has fields that it should not have, or lacks some.
        """
        return cls(
            content["subject"],
            content["oracle"],
            dict(content["conventions"]),
            [ExplainedText(**text) for text in content["texts"]],
            [explanation_from_dict(item) for item in content["items"]],
        )

    def save(self, folder: str | Path, outputs: Sequence[str] = ("json", "parquet")) -> list[Path]:
        """Writes `explanations.json` and, the frame, `explanations.parquet`; returns the files."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        written = [target / f"explanations.{name}" for name in outputs]
        for file in written:
            if file.suffix == ".json":
                file.write_text(self.to_json() + "\n", encoding="utf-8")
            else:
                self.to_frame().to_parquet(file)
        return written

    @classmethod
    def load(cls, path: str | Path) -> Explanations:
        """Reads a folder that `save` wrote, or its `explanations.json`.

        Raises:
            ValueError: The file holds something else.
            OSError: There is no such file.
        """
        file = Path(path)
        file = file / "explanations.json" if file.is_dir() else file
        try:
            return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (KeyError, TypeError, ValueError) as error:  # cut off, edited by hand, or something else
            raise ValueError(f"{file} holds no explanations: {type(error).__name__}: {error}") from error

    def _repr_html_(self) -> str:
        """A notebook's table, the largest diffs first."""
        shown = Explanations(self.subject, self.oracle, {}, self.texts, self.ranked()[:_SHOWN_IN_NOTEBOOKS])
        columns = ["token", "site", "relative_size", "skip_kl", "question", "answer", "measured", "score"]
        columns += [*REBUILT] if self.rebuilt else []
        frame = shown.to_frame()
        table = frame.reindex(columns=columns).to_html(index=False, na_rep="", float_format="{:.2f}".format)
        claims = f"{self.share_right:.0%} of {self.num_claims} claims are right" if self.num_claims else "no claims"
        carried = f"; on average, the words carried {self.rebuilt['carried']:.0%} of a diff" if self.rebuilt else ""
        return f"<p>{len(self.items)} explanations, the {len(shown.items)} largest shown; {claims}{carried}</p>{table}"


def explanation_from_dict(content: Mapping[str, Any]) -> Explanation:
    """Reads one explanation out of JSON, which knows no tuples."""
    pairs = {name: [tuple(pair) for pair in content[name]] for name in ("promoted", "suppressed", "gained", "lost")}
    answers = [Answer(**{**answer, "claims": _claims(answer["claims"])}) for answer in content["answers"]]
    others: dict[str, Any] = {"answers": answers, "explanation_claims": _claims(content["explanation_claims"])}
    if content.get("rebuilt") is not None:
        others["rebuilt"] = Reconstruction(**content["rebuilt"])
    return Explanation(**{**content, **pairs, **others, "attended": [tuple(pair) for pair in content["attended"]]})


def six_digits(value: Any) -> float:
    """Six digits: what a float32 is good for, and half as long in JSON."""
    return float(f"{float(value):.6g}")


def _claims(content: list[Mapping[str, Any]]) -> list[Claim]:
    return [Claim(**claim) for claim in content]


def _frame_rows(explanations: Explanations) -> Iterator[dict[str, Any]]:
    for item in explanations.items:
        common = {
            "text": item.text,
            "position": item.position,
            "token": explanations.texts[item.text].tokens[item.position],
            "site": item.site,
            "kind": item.kind,
            "relative_size": item.relative_size,
            "direct_effect": item.direct_effect,
            "next_token": item.next_token,
            "skip_kl": item.skip_kl,
            "sink_share": item.sink_share,
        }
        for answer in item.answers:
            told = asdict(answer)
            del told["claims"]
            yield common | {"task": told.pop("task"), "question_kind": told.pop("kind"), **told}
        if item.explanation is not None:
            right = [claim.right for claim in item.explanation_claims]
            yield common | {
                "task": "explanation",
                "question_kind": "free",
                "question": None,
                "answer": item.explanation,
                "measured": None,
                "right": None,
                "score": sum(right) / len(right) if right else None,
                **({name: getattr(item.rebuilt, name) for name in REBUILT} if item.rebuilt else {}),
            }


def _or_none(value: float) -> float | None:
    return None if value != value else value
