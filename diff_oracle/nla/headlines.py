"""What a ladder has shown, in plain words: one question each, with what answers it at every kind of site."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from diff_oracle.evaluation.report import score_text
from diff_oracle.evaluation.verdict import Row
from diff_oracle.nla.evaluation import AR, SECOND_AR
from diff_oracle.nla.rungs import DIFF_BLIND
from diff_oracle.nla.saved import GAIN, SHARE, SavedLadder

BySite = dict[str, Row]
KEPT, CODE_GAIN = "AV: bag - AV, false claims removed: bag", "gold: bag - rotated_codebook: bag"
TRUE_ALONE = "AV, false claims removed: bag"
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
    blind = {r: ladder.of("fve", r) for r in DIFF_BLIND if f"AV: bag - {r}" in ladder.gains}
    fve = ladder.of("fve", "AV: bag")
    if not (blind and fve):
        return
    best = {group: max(blind, key=lambda rung: blind[rung][group]["value"]) for group in fve}
    rung, score = best["all"], {group: blind[best[group]][group] for group in best}
    gain = _over(ladder, "AV: bag", best)
    others = ", ".join(f"{best[group]} for {group}" for group in best if best[group] != rung)
    also = f" (by kind of site also {others})" if others else ""
    answer = (
        f"Read by a bag-of-words regression, the oracle's claims explain {score_text(fve['all'])} of the diffs' "
        f"variance about their site's mean (FVE); the best that never saw the diff, {rung}, "
        f"{score_text(score['all'])}{also}. "
        f"The gain is {score_text(gain['all'])}: {sign(gain['all'])}.{by_kind(gain)}"
    )
    name = rung if not others else "the best of each kind of site"
    lines = {"FVE of AV: bag": fve, f"FVE of {name}": score, f"gain over {name}": gain}
    if trained := _over(ladder, _AV_AR, best):
        answer += f" Read by the trained reconstructor it is {score_text(trained['all'])}: {sign(trained['all'])}."
        lines[f"gain of {_AV_AR} over {name}"] = trained
    yield Headline("Do the words tell more of the diff than whatever never saw it?", answer, lines)


def _over(ladder: SavedLadder, rung: str, others: dict[str, str]) -> BySite:
    """A rung's gain at each kind of site over the rung that is named for it; nothing where one is not there."""
    found = {group: ladder.of(GAIN, f"{rung} - {other}").get(group) for group, other in others.items()}
    return {group: row for group, row in found.items() if row is not None} if all(found.values()) else {}


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
    fve, true, loss = ladder.of("fve", "AV: bag"), ladder.of("fve", TRUE_ALONE), ladder.of(GAIN, KEPT)
    if not (fve and true and loss):
        return
    answer = (
        f"With its false claims struck out the oracle's FVE is {score_text(true['all'])}, with them "
        f"{score_text(fve['all'])}: the true ones carry {_share(ladder, TRUE_ALONE, 'AV: bag')} of it. "
        f"The difference is {score_text(loss['all'])}: {sign(loss['all'])}."
    )
    lines = {"FVE of all claims": fve, "FVE of the true ones": true, "what the false ones add": loss}
    lines |= _shares(ladder, TRUE_ALONE, "AV: bag")
    yield Headline("Is it the true claims that carry the reconstruction?", answer, lines)


def _code(ladder: SavedLadder) -> Iterator[Headline]:
    gain = ladder.of(GAIN, CODE_GAIN)
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
    if trained := ladder.of(GAIN, f"gold: {AR} - rotated_codebook: {AR}"):
        answer += f" Between transformers that learned to read the one or the other: {score_text(trained['all'])}."
        lines["measured - rotated, by trained readers"] = trained
    yield Headline("Do the words mean something, or are they a code?", answer, lines)


def _step(ladder: SavedLadder) -> Iterator[Headline]:
    gains = {shown: found for rung, shown in STEP_GAINS.items() if (found := ladder.of(GAIN, rung))}
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
        f"{_share(ladder, 'AV: bag', 'gold: bag')} of the {score_text(gold)} that it gets from measured ones"
    )
    lines = {f"FVE of {rung}": rows for rung, rows in fve.items()} | _shares(ladder, "AV: bag", "gold: bag")
    for reader, name in ((AR, "the trained reconstructor"), (SECOND_AR, "one of another seed")):
        if f"AV: {reader}" in fve and f"gold: {reader}" in fve:
            pair = f"AV: {reader}", f"gold: {reader}"
            answer += f"; {name} {score_text(fve[pair[0]]['all'])}, {_share(ladder, *pair)} of its own"
            lines |= _shares(ladder, *pair)
    answer += f".{_by_kind_of_site(lines.get('AV: bag / gold: bag', {}))}"
    others = {rung: shown for rung, shown in _OTHER_READERS.items() if rung in fve and _AV_AR in fve}
    if others:
        kept = "; ".join(f"{shown} keeps {_share(ladder, rung, _AV_AR)}" for rung, shown in others.items())
        answer += f" Of what the trained reconstructor gets from the oracle's claims, {kept}."
    for rung in others:
        lines |= _shares(ladder, rung, _AV_AR)
    yield Headline("How near do the oracle's claims come to measured ones, and to other readers?", answer, lines)


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
_OTHER_READERS = {"AV: bag": "the bag-of-words reader", f"AV: {SECOND_AR}": "one of another seed"}


def _shares(ladder: SavedLadder, part: str, whole: str) -> dict[str, BySite]:
    """What one rung's FVE is of another's, by kind of site, under its name; empty where the ladder does not say."""
    name = f"{part} / {whole}"
    return {name: found} if (found := ladder.of(SHARE, name)) else {}


def _share(ladder: SavedLadder, part: str, whole: str) -> str:
    """The same over all sites, in words; without its interval where the ladder has none.

    There is no share of a value that is not told from zero.
    """
    for found in _shares(ladder, part, whole).values():
        if "all" in found:
            return _percent(found["all"])
    parts = [ladder.of("fve", rung)["all"] for rung in (part, whole)]
    return f"{parts[0]['value'] / parts[1]['value']:.0%}" if parts[1]["ci_low"] > 0 else "no share"


def _percent(row: Row) -> str:
    return f"{row['value']:.0%} [{row['ci_low']:.0%}, {row['ci_high']:.0%}]"


def _by_kind_of_site(shares: BySite) -> str:
    """Shares at each kind of site, where there are several."""
    shown = [f"{_percent(row)} for {group}" for group, row in shares.items() if group != "all"]
    return f" By kind of site it is {', '.join(shown)}." if len(shares) > 2 else ""
