"""What a pair does on held-out rows, row by row, so that two states or two runs can be compared with an interval.

`train_ar` and `train_rl` leave it beside the pair, as `held_out.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import compress
from pathlib import Path

import numpy as np
from jaxtyping import Float

from diff_oracle.evaluation.bootstrap import DocumentBootstrap, Estimate
from diff_oracle.nla.metrics import Means, spread
from diff_oracle.nla.pair import DiffNLA, as_read
from diff_oracle.nla.reward import judge
from diff_oracle.nla.rows import Claims, Rows
from diff_oracle.nla.rungs import Rebuilt
from diff_oracle.oracle.model import Generated
from diff_oracle.randomness import keyed_rng
from diff_oracle.subject.sites import DiffSite
from diff_oracle.tasks.truth import Measured

HELD_OUT = "held_out.json"
OF_OTHER = "fve of "
MORE_THAN = "fve more than "


@dataclass(frozen=True)
class HeldOut:
    """One value a row of each."""

    doc_id: list[str]
    site: list[str]
    denominator: list[float]
    """Of an FVE of the site's mean."""
    error: list[float]
    """Of what the reconstructor makes of the explanation."""
    error_of_true: list[float]
    """The same where it reads the true claims alone."""
    true_claims: list[float]
    """Share of the explanation's claims that are true; 0 where it makes none."""
    failed: list[float]
    """1 where it makes no claim, or was cut off."""
    other_errors: dict[str, list[float]]
    """Of what others make of it, or of what is left of it: by rung of the ladder."""

    def of_same_pair(self, other: HeldOut) -> bool:
        """Whether the other is of the same pair on the same rows, but for rounding."""
        same = (self.doc_id, self.site, self.failed) == (other.doc_id, other.site, other.failed)
        ours, theirs = ([x.denominator, x.error, x.error_of_true, x.true_claims] for x in (self, other))
        return same and np.allclose(ours, theirs, rtol=1e-4, atol=1e-5)

    @classmethod
    def of(
        cls,
        pair: DiffNLA,
        rows: Rows,
        answers: Sequence[Generated],
        means: Means,
        truth: Sequence[Measured],
        known: Rebuilt,
        other_errors: Mapping[str, Float[np.ndarray, "row"]],
    ) -> HeldOut:
        """Of a pair's explanations.

        Args:
            pair: The pair.
            rows: Held out.
            answers: What the pair's oracle says of them.
            means: μ, from the training rows.
            truth: What is true of each row.
            known: What is added to each reconstruction: what the state before tells, or zeros.
            other_errors: Kept as they are.
        """
        vocabulary = pair.av.vocabulary
        judged = [
            judge(a.text, a.num_tokens, a.cut_off, record.token_ids, holds, vocabulary, truth_gated=True)
            for a, record, holds in zip(answers, rows.records, truth, strict=True)
        ]

        def error(read: Sequence[Claims]) -> list[float]:
            rebuilt = known + pair.ar.reconstruct(rows.records, [as_read(claims) for claims in read])
            return np.mean((rebuilt - rows.target) ** 2, axis=1).tolist()

        return cls(
            doc_id=[record.doc_id for record in rows.records],
            site=rows.sites,
            denominator=spread(rows.target, means.at(rows.sites)).tolist(),
            error=error([j.claims for j in judged]),
            error_of_true=error([j.read for j in judged]),
            true_claims=[j.num_true / max(1, len(j.claims)) for j in judged],
            failed=[float(j.cut_off or not j.claims) for j in judged],
            other_errors={rung: errors.tolist() for rung, errors in other_errors.items()},
        )

    @property
    def groups(self) -> set[str]:
        """Kinds of sites that are there."""
        return {DiffSite.parse(site).group for site in self.site}

    def where(self, group: str) -> HeldOut:
        """The rows of one kind of sites."""
        kept = [DiffSite.parse(site).group == group for site in self.site]
        others = {rung: list(compress(errors, kept)) for rung, errors in self.other_errors.items()}
        mine = {name: list(compress(values, kept)) for name, values in vars(self).items() if name != "other_errors"}
        return HeldOut(**mine, other_errors=others)

    def failures(self, resamples: int, seed: int) -> Estimate:
        """The share of explanations that failed, with its 95 % interval."""
        return DocumentBootstrap(self.doc_id, resamples, keyed_rng(seed, "bootstrap")).estimate(np.array(self.failed))

    def save(self, file: Path) -> None:
        """Writes a JSON file."""
        file.write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, file: Path) -> HeldOut:
        """Reads what `save` wrote.

        Raises:
            ValueError: It is not there, or something else.
        """
        if not file.is_file():
            raise ValueError(f"{file} is not there: name a finished run of diff_oracle.train_rl")
        content = json.loads(file.read_text())
        content = {"other_errors": {}} | content  # there may be no others
        if set(content) != {f.name for f in fields(cls)}:
            raise ValueError(f"{file} is damaged, or another version wrote it: it holds {', '.join(content)}")
        return cls(**content)


def gains(ours: HeldOut, theirs: HeldOut, resamples: int, seed: int) -> dict[str, Estimate]:
    """What one state has over another on the same rows, with 95 % intervals.

    `fve`, `fve_of_true` (the true claims alone are read), `true_claims` (the mean over rows of each row's share),
    `failed`; `fve of …` of every other reader, or text, that both had; and `fve more than …`, what the pair's own
    reconstructor gained of the explanations more than that: what only the two of them can read.

    Raises:
        ValueError: The rows are not the same.
    """
    if (ours.doc_id, ours.site, ours.denominator) != (theirs.doc_id, theirs.site, theirs.denominator):
        raise ValueError(
            f"two runs were measured on different rows ({len(ours.error)} and {len(theirs.error)}): compare runs that "
            "began with the same nla=RUN"
        )
    bootstrap = DocumentBootstrap(ours.doc_id, resamples, keyed_rng(seed, "bootstrap"))
    result = {}
    for name, error in (("fve", "error"), ("fve_of_true", "error_of_true")):
        less = np.array(getattr(theirs, error)) - np.array(getattr(ours, error))
        result[name] = bootstrap.ratio(less, np.array(ours.denominator))
    own = np.array(theirs.error) - np.array(ours.error)
    for rung in [rung for rung in ours.other_errors if rung in theirs.other_errors]:
        less = np.array(theirs.other_errors[rung]) - np.array(ours.other_errors[rung])
        result[OF_OTHER + rung] = bootstrap.ratio(less, np.array(ours.denominator))
        result[MORE_THAN + rung] = bootstrap.ratio(own - less, np.array(ours.denominator))
    for name in ("true_claims", "failed"):
        result[name] = bootstrap.estimate(np.array(getattr(ours, name)) - np.array(getattr(theirs, name)))
    return result
