"""Explanations in the terminal: what the oracle says beside what is measured, each claim marked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from diff_oracle.explain.explanations import Claim, Explanation, Explanations, Reconstruction

RIGHT, WRONG = "✓", "✗"
_STYLES = {True: "green", False: "red"}
_WIDTH = 150  # where there is no terminal to ask


def print_explanations(explanations: Explanations, rank: str, most: int) -> None:
    """Prints the first `most` explanations by rank, and how many of all claims are right."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    shown = explanations.ranked(rank)[:most]
    console.print(_items_table(explanations, shown, rank))
    if len(shown) < len(explanations.items):
        console.print(f"{len(shown)} of {len(explanations.items)} shown, by {rank}; show=N shows more")
    console.print(_kinds_table(explanations))
    if explanations.rebuilt:
        console.print(carried(explanations.rebuilt), highlight=False)
    console.print(share_right(explanations), highlight=False)


def share_right(explanations: Explanations) -> str:
    """The last line of a report."""
    if not explanations.num_claims:
        return "no claim was checked"
    return f"{explanations.share_right:.1%} of {explanations.num_claims} claims are right"


def carried(means: Mapping[str, float]) -> str:
    """How much of the diffs the words of a pair carried, on average."""
    return f"on average, the words carried {means['carried']:.1%} of a diff: {_carried(means)}"


def visible(token: str) -> str:
    """A token in one line: a space as ␣ at its ends, and what would not be seen as Python writes it."""
    body = token.strip(" ")
    lead = len(token) - len(token.lstrip(" "))
    shown = body if body.isprintable() else repr(body)[1:-1]
    return "␣" * (lead if body else len(token)) + shown + "␣" * (len(token) - lead - len(body) if body else 0)


def one_line(text: str) -> str:
    """A text in one line: a space for all that is not printable."""
    return "".join(character if character.isprintable() else " " for character in text)


def _items_table(explanations: Explanations, items: Sequence[Explanation], rank: str) -> Table:
    table = Table(title=f"{explanations.subject}, explained by {explanations.oracle}; by {rank}")
    for name in ("site", "at", "size", "direct", "skip KL"):
        table.add_column(name, justify="right" if name in ("size", "direct", "skip KL") else "left", no_wrap=True)
    for name in ("question", "the oracle says", "measured"):
        table.add_column(name, overflow="fold")
    several = len(explanations.texts) > 1
    for item in items:
        token = visible(explanations.texts[item.text].tokens[item.position])
        place = f"{item.text}:{item.position}" if several else str(item.position)
        head: tuple[str | Text, ...] = (
            item.site,
            Text(f"{place} {token}"),
            f"{item.relative_size:.2f}",
            Text(f"{item.direct_effect:+.2f} {visible(item.next_token)}"),
            f"{item.skip_kl:.3f}",
        )
        rows = [(answer.question, _claims(answer.claims), _lines(answer.measured)) for answer in item.answers]
        if item.explanation is not None:
            said = _claims(item.explanation_claims) if item.explanation_claims else _lines(item.explanation)
            rows.append(("in its own words", said, _evidence(explanations, item)))
        if item.rebuilt is not None:
            rows.append(("rebuilt from these words", _tokens(item.rebuilt), Text(_carried(asdict(item.rebuilt)))))
        for number, (question, said, measured) in enumerate(rows or [("", Text(), Text())]):
            table.add_row(*(head if number == 0 else ("",) * len(head)), Text(question), said, measured)
        table.add_section()
    return table


def _kinds_table(explanations: Explanations) -> Table:
    """How right the oracle is, question by question."""
    claims: dict[tuple[str, str], list[Claim]] = defaultdict(list)
    for item in explanations.items:
        for answer in item.answers:
            claims[answer.task, answer.kind] += answer.claims
        if item.explanation is not None:
            claims["explanation", "free"] += item.explanation_claims
    table = Table(title="claims")
    for name in ("task", "question", "right", "of"):
        table.add_column(name, justify="right" if name in ("right", "of") else "left")
    for (task, kind), made in claims.items():
        share = f"{sum(claim.right for claim in made) / len(made):.1%}" if made else ""
        table.add_row(task, kind, share, str(len(made)))
    return table


def _claims(claims: Sequence[Claim]) -> Text:
    parts = [
        Text(f"{visible(claim.text)} {RIGHT if claim.right else WRONG}", style=_STYLES[claim.right]) for claim in claims
    ]
    return Text("  ").join(parts)


def _tokens(rebuilt: Reconstruction) -> Text:
    raised, lowered = ("  ".join(map(visible, tokens)) for tokens in (rebuilt.promoted, rebuilt.suppressed))
    return Text(f"raises {raised}; lowers {lowered}")


def _carried(numbers: Mapping[str, Any]) -> str:
    share, without, near = (numbers[name] for name in ("share", "without_words", "cosine"))
    return f"{share:.1%} rebuilt, {without:.1%} without words, cosine {near:.2f}"


def _lines(answer: str) -> Text:
    return Text("  ".join(visible(line) for line in answer.split("\n")))


def _evidence(explanations: Explanations, item: Explanation) -> Text:
    """What was measured beside the answers: where the heads looked."""
    if item.sink_share is None:
        return Text("no attention")
    tokens = explanations.texts[item.text].tokens
    seen = [f"{visible(tokens[position])} ({position}) {share:.0%}" for position, share in item.attended[:3]]
    return Text("reads " + ", ".join([*seen, f"sink {item.sink_share:.0%}"]))
