"""What a ladder has shown, in plain words: one question each, with what answers it at every kind of site."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from diff_oracle.evaluation.report import score_text
from diff_oracle.evaluation.verdict import Row
from diff_oracle.nla.evaluation import AR, SECOND_AR
from diff_oracle.nla.rungs import DIFF_BLIND
from diff_oracle.nla.saved import SavedLadder

BySite = dict[str, Row]
KEPT, CODE_GAIN = "AV: bag - AV, false claims removed: bag", "gold: bag - rotated_codebook: bag"
STEP_GAINS = {
    "AV: bag, before - before": "the oracle's words",
    "gold: bag, before - before": "measured claims",
    "rotated_codebook: bag, before - before": "words without meaning",
}
SAME_SIZE = "error of the same size, isotropic"


@dataclass(frozen=True)
class Headline:
    """A question and its answer.

    Attributes:
        question: What is asked of the ladder.
        answer: Over all sites, with 95 % intervals.
        lines: What it rests on: name -> rows by kind of site.
    """

    question: str
    answer: str
    lines: dict[str, BySite]


def headlines(ladder: SavedLadder) -> list[Headline]:
    """The answers that a ladder has; a question whose rungs it lacks is left out."""
    return [
        *_blind(ladder),
        *_truth(ladder),
        *_kept(ladder),
        *_code(ladder),
        *_step(ladder),
        *_readers(ladder),
        *_kl(ladder),
    ]


def sign(row: Row) -> str:
    """Whether a difference is above zero, below, or neither."""
    if row["ci_low"] > 0:
        return "above zero"
    return "below zero" if row["ci_high"] < 0 else "not told from zero"


def by_kind(rows: BySite, what: str = "it is") -> str:
    """At which kinds of sites a difference is above zero, below, or neither; nothing where all sites are one kind."""
    kinds: dict[str, list[str]] = {}
    for group, row in rows.items():
        if group != "all":
            kinds.setdefault(sign(row), []).append(group)
    signs = (f"{said} for {', '.join(groups)}" for said, groups in kinds.items())
    return f" By kind of site {what} {'; '.join(signs)}." if len(rows) > 2 else ""


def _blind(ladder: SavedLadder) -> Iterator[Headline]:
    gains = {f"AV: bag - {rung}": rung for rung in DIFF_BLIND if f"AV: bag - {rung}" in ladder.gains}
    fve = ladder.of("fve", "AV: bag")
    for name, rung in gains.items():
        gain, blind = ladder.of("fve_gain", name), ladder.of("fve", rung)
        answer = (
            f"Read by a bag-of-words regression, the oracle's claims explain {score_text(fve['all'])} of the diffs' "
            f"variance about their site's mean (FVE); the best that never saw the diff, {rung}, "
            f"{score_text(blind['all'])}. The gain is {score_text(gain['all'])}: {sign(gain['all'])}.{by_kind(gain)}"
        )
        lines = {"FVE of AV: bag": fve, f"FVE of {rung}": blind, f"gain over {rung}": gain}
        trained = ladder.of("fve_gain", f"{_AV_AR} - {rung}")
        if trained:
            answer += f" Read by the trained reconstructor it is {score_text(trained['all'])}: {sign(trained['all'])}."
            lines[f"gain of {_AV_AR} over {rung}"] = trained
        yield Headline("Do the words tell more of the diff than whatever never saw it?", answer, lines)


def _truth(ladder: SavedLadder) -> Iterator[Headline]:
    true, coverage = ladder.of("true_claims", "AV: bag"), ladder.of("coverage", "AV: bag")
    if not (true and coverage):
        return
    among = f" (a token that is said to be raised is among the {ladder.among} most raised)" if ladder.among else ""
    answer = (
        f"The share of its claims that are true on the model is {score_text(true['all'])}{among}; of what the labels "
        f"claim it names {score_text(coverage['all'])}."
    )
    lines = {"true claims": true, "coverage of the labels' claims": coverage}
    from_text = ladder.of("true_claims", "text: explained"), ladder.of("coverage", "text: explained")
    if all(from_text):
        answer += (
            f" From the text alone it would be {score_text(from_text[0]['all'])} and {score_text(from_text[1]['all'])}."
        )
        lines |= {"true claims, from the text alone": from_text[0], "coverage, from the text alone": from_text[1]}
    yield Headline("Are the claims true, and how much do they cover?", answer, lines)


def _kept(ladder: SavedLadder) -> Iterator[Headline]:
    fve, true, loss = (
        ladder.of("fve", "AV: bag"),
        ladder.of("fve", "AV, false claims removed: bag"),
        ladder.of("fve_gain", KEPT),
    )
    if not (fve and true and loss):
        return
    answer = (
        f"With its false claims struck out the oracle's FVE is {score_text(true['all'])}, with them "
        f"{score_text(fve['all'])}: the true ones carry {_share(true['all'], fve['all'])} of it. "
        f"The difference is {score_text(loss['all'])}: {sign(loss['all'])}."
    )
    lines = {"FVE of all claims": fve, "FVE of the true ones": true, "what the false ones add": loss}
    yield Headline("Is it the true claims that carry the reconstruction?", answer, lines)


def _code(ladder: SavedLadder) -> Iterator[Headline]:
    gain = ladder.of("fve_gain", CODE_GAIN)
    gold, code = ladder.of("fve", "gold: bag"), ladder.of("fve", "rotated_codebook: bag")
    if not (gain and gold and code):
        return
    verdict = {
        "above zero": "the words' meaning adds to what a code of this size carries",
        "below zero": "a code without meaning does better, so a reconstruction shows capacity, not meaning",
        "not told from zero": "a code without meaning does as well, so a reconstruction shows capacity, not meaning",
    }[sign(gain["all"])]
    answer = (
        f"Measured claims reach {score_text(gold['all'])}; as many claims named by a randomly rotated unembedding, "
        f"which mean nothing, {score_text(code['all'])}. The difference is {score_text(gain['all'])}: {verdict}."
        f"{by_kind(gain)}"
    )
    lines = {"FVE of measured claims": gold, "FVE of the rotated codebook": code, "measured - rotated": gain}
    yield Headline("Do the words mean something, or are they a code?", answer, lines)


def _step(ladder: SavedLadder) -> Iterator[Headline]:
    gains = {shown: found for rung, shown in STEP_GAINS.items() if (found := ladder.of("fve_gain", rung))}
    before = ladder.of("fve", "before")
    if not (gains and before):
        return
    added = "; ".join(f"{shown} add {score_text(rows['all'])}, {sign(rows['all'])}" for shown, rows in gains.items())
    answer = f"The residual before the step alone explains {score_text(before['all'])}. On top of it {added}."
    own = gains.get("the oracle's words")
    if own:
        more = (
            "More than the state is said"
            if own["all"]["ci_low"] > 0
            else "That more than the state is said is not shown"
        )
        answer += f" {more}, as far as the state tells it to a linear map.{by_kind(own, 'their gain is')}"
    lines = {"FVE of the state before": before}
    yield Headline(
        "Does the text carry the step, or the state?",
        answer,
        lines | {f"what {shown} add to it": rows for shown, rows in gains.items()},
    )


def _readers(ladder: SavedLadder) -> Iterator[Headline]:
    rungs = ("gold: bag", "AV: bag", f"gold: {AR}", _AV_AR, f"gold: {SECOND_AR}", f"AV: {SECOND_AR}")
    fve = {rung: found for rung in rungs if (found := ladder.of("fve", rung))}
    if not ("gold: bag" in fve and "AV: bag" in fve):
        return
    gold, said = fve["gold: bag"]["all"], fve["AV: bag"]["all"]
    answer = (
        f"The bag-of-words reader, fitted to measured claims, gets {score_text(said)} from the oracle's claims, "
        f"{_share(said, gold)} of the {score_text(gold)} that it gets from measured ones"
    )
    for reader, name in ((AR, "the trained reconstructor"), (SECOND_AR, "one of another seed")):
        if f"AV: {reader}" in fve:
            trained = fve[f"AV: {reader}"]["all"]
            answer += f"; {name} {score_text(trained)}, {_share(trained, fve[f'gold: {reader}']['all'])} of its own"
    yield Headline(
        "How near do the oracle's claims come to measured ones, and to other readers?",
        f"{answer}.",
        {f"FVE of {rung}": rows for rung, rows in fve.items()},
    )


def _kl(ladder: SavedLadder) -> Iterator[Headline]:
    kl = {rung: ladder.of("kl_recovered", rung) for rung in ("AV: bag", "gold: bag", "before", SAME_SIZE)}
    kl = {rung: found for rung, found in kl.items() if found}
    if not {"AV: bag", "gold: bag", SAME_SIZE} <= set(kl):
        return
    answer = (
        "Spliced into the model in the diff's place, a reconstruction recovers, of the KL that the output is off "
        f"without the diff, {score_text(kl['AV: bag']['all'])} from the oracle's claims, "
        f"{score_text(kl['gold: bag']['all'])} from measured ones. A random error as large as that of measured claims "
        f"leaves {score_text(kl[SAME_SIZE]['all'])}."
    )
    yield Headline(
        "Does the model run on what was rebuilt?", answer, {f"KL recovered, {rung}": rows for rung, rows in kl.items()}
    )


_AV_AR = f"AV: {AR}"


def _share(part: Row, whole: Row) -> str:
    """Of one value in another; there is none of a value that is not above zero."""
    return f"{part['value'] / whole['value']:.0%}" if whole["value"] > 0 else "no share"
