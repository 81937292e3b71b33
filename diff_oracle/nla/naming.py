"""The names of rungs taken apart: who wrote what is read, what was done to it, who reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from diff_oracle.nla.evaluation import SECOND_AR

_WRITTEN = re.compile(r"(?P<writer>gold|AV|rotated_codebook|site habit)(, (?P<change>[^:]+))?: (?P<reader>.+)")
BLIND, GOLD, AV, CODE = "never saw the diff", "measured claims", "the oracle's claims", "a code without meaning"
CHECKED = "only the check of claims saw the diff"
GOLD_ALTERED, AV_ALTERED = "measured claims, altered", "the oracle's claims, altered"
BOUNDS, RANDOM = "bounds", "random errors"
_WRITERS = {
    "gold": (GOLD, GOLD_ALTERED),
    "AV": (AV, AV_ALTERED),
    "rotated_codebook": (CODE, CODE),
    "site habit": (BLIND, CHECKED),
}
GROUPS = (BOUNDS, RANDOM, BLIND, CHECKED, GOLD, AV, CODE, GOLD_ALTERED, AV_ALTERED)
"""In the order in which they are shown."""

MEANINGS = {
    "site mean, token mean, global mean": "nothing but where, or at which token, or not even that",
    "before": "the residual before the diff, by ridge regression",
    "site habit": "what explains the site's other diffs best; with false claims removed, by a check that sees the diff",
    "text: AR": "the text, by a transformer that was trained for it",
    "text: explained": "what the oracle claims when it is shown the text and no diff",
    "text: prompted": "what the model claims from the text after a few examples, without any training",
    "gold": "what was measured, written as claims",
    "AV": "what the oracle claims of the diff",
    "rotated_codebook": "as many claims, whose raised and lowered tokens a rotated unembedding names: without meaning",
    "as many as AV": "as many claims as the oracle makes, whatever these are",
    ": bag": "read by a linear map of the claimed tokens, for each site, fitted in closed form to measured claims; of "
    "the rotated codebook, to its own",
    ": bag, before": "the same on top of what the residual before the diff tells",
    ": AR": "read by a transformer that was trained on measured claims, never on the oracle's; of the rotated "
    "codebook, by one that was trained on its own",
    f": {SECOND_AR}": "the same, trained from another seed",
    "shuffled": "the claims of another document's diff of the same site, or of the same kind of site where it has none",
    "empty": "no claim at all",
    "reordered, paraphrased": "in another order; in other words, too",
    "quotes only, quotes stripped": "only, or all but, the claims that repeat a token of the text",
    "false claims removed": "only the claims that are true on the model",
}
"""What is rebuilt from what, in plain words."""


@dataclass(frozen=True)
class RungName:
    """A rung's name.

    Attributes:
        name: All of it.
        group: One of `GROUPS`.
        label: What tells it from the others of its group.
    """

    name: str
    group: str
    label: str

    @classmethod
    def parse(cls, name: str) -> RungName:
        """Takes a name apart."""
        found = _WRITTEN.fullmatch(name)
        if found:
            plain, altered = _WRITERS[found["writer"]]
            group = altered if found["change"] else plain
            if group in (BLIND, CHECKED):
                return cls(name, group, name)
            return cls(name, group, f"{found['change']}: {found['reader']}" if found["change"] else found["reader"])
        if name in ("true diff", "no diff"):
            return cls(name, BOUNDS, name)
        if name.startswith(("error of", "same cosine")):
            return cls(name, RANDOM, name.replace("error of the same size", "same size"))
        return cls(name, BLIND, name)


def grouped(names: Iterable[str]) -> dict[str, list[RungName]]:
    """Rungs by group, in the order of `GROUPS`."""
    parsed = [RungName.parse(name) for name in names]
    return {group: found for group in GROUPS if (found := [rung for rung in parsed if rung.group == group])}
