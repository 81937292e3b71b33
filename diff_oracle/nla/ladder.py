"""The ladder: how well diffs are rebuilt from words, beside everything that knows no words or no meaning.

Every rung is a set of reconstructions of the same rows; `Ladder` compares them. All intervals resample documents, and a
gain is paired by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diff_oracle.evaluation.bootstrap import DocumentBootstrap, Estimate
from diff_oracle.evaluation.results import MIN_DOCS
from diff_oracle.nla.metrics import Errors, Means, cosine, spread
from diff_oracle.nla.rows import Claims, Rows
from diff_oracle.randomness import keyed_rng
from diff_oracle.subject.capture import Diff
from diff_oracle.subject.model import Subject
from diff_oracle.subject.splice import kl_divergence, spliced_log_probs
from diff_oracle.tasks.claims import Parsed
from diff_oracle.tasks.truth import Measured


@dataclass(frozen=True)
class Line:
    """One line of ladder.json."""

    rung: str
    site_group: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    n_docs: int


@dataclass
class Ladder:
    """Reconstructions of the same rows, compared.

    Attributes:
        rows: The rows.
        means: μ, from the training rows.
        truth: What is true of each row's diff.
        resamples: Of the documents.
        seed: Keys them.
    """

    rows: Rows
    means: Means
    truth: Sequence[Measured]
    resamples: int = 2000
    seed: int = 0
    rebuilt: dict[str, Float[np.ndarray, "row d_model"]] = field(default_factory=dict, init=False)
    errors: dict[str, Errors] = field(default_factory=dict, init=False)
    kl: dict[str, Float[np.ndarray, "row"]] = field(default_factory=dict, init=False)
    said: dict[str, list[Claims]] = field(default_factory=dict, init=False)
    texts: dict[str, dict[str, Float[np.ndarray, "row"]]] = field(default_factory=dict, init=False)

    def add(
        self, rung: str, rebuilt: Float[np.ndarray, "row d_model"], explanations: Sequence[Claims] | None = None
    ) -> None:
        """A rung.

        Args:
            rung: Its name.
            rebuilt: Reconstructions in q scale.
            explanations: What they were rebuilt from, where that is claims of this very diff, to be checked.
        """
        self.rebuilt[rung] = rebuilt
        self.errors[rung] = Errors.of(rebuilt, self.rows.target, self.means.at(self.rows.sites))
        if explanations is not None:
            self.said[rung] = list(explanations)

    def health(self, rung: str, lengths: Sequence[int], parsed: Sequence[Parsed]) -> None:
        """Length in tokens, and the shares of explanations without a claim and with a line that is none."""
        self.texts[rung] = {
            "length": np.array(lengths, dtype=float),
            "without_claims": np.array([float(not p.claims) for p in parsed]),
            "with_other_lines": np.array([float(bool(p.other_lines)) for p in parsed]),
        }

    def true_claims(self, said: Sequence[Claims]) -> list[Claims]:
        """The claims of each row that are true."""
        return [[c for c in row if truth.holds(c)] for row, truth in zip(said, self.truth, strict=True)]

    def splice(self, subject: Subject, num_rows: int, rungs: Sequence[str]) -> None:
        """Measures KL(base || spliced) of some rungs on the first rows, each reconstruction at the true diff's size.

        A reconstruction is not told the size: what is asked is its direction. Beside the rungs stand the true diff,
        whose KL is 0 but for rounding, none at all, which is what there is to recover, and random errors as large as
        those of the first rung that was rebuilt from words.
        """
        some = self.rows.records[:num_rows]
        true = np.stack([record.diff for record in some]).astype(np.float64)
        base = _log_probs(subject, some, true)
        spliced = {"true diff": true, "no diff": np.zeros_like(true)}
        spliced |= {rung: _at_size(self.rebuilt[rung][:num_rows], true) for rung in rungs if rung in self.rebuilt}
        like = next((spliced[rung] for rung in rungs if ":" in rung and rung in spliced), None)
        if like is not None:
            spliced |= random_errors(true, like, self.rows.target, keyed_rng(self.seed, "random errors"))
        for rung, vectors in spliced.items():
            self.kl[rung] = kl_divergence(base, _log_probs(subject, some, vectors)).cpu().numpy()

    def lines(self) -> list[Line]:
        """Every metric of every rung, over all sites and by kind of site."""
        result = []
        for group, mask in self._groups():
            bootstrap = self._bootstrap(mask)
            sites = np.array(self.rows.sites)[mask].tolist()
            denominators = {
                "fve": spread(self.rows.target[mask], self.means.at(sites)),
                "fve_global": spread(self.rows.target[mask], self.means.everywhere),
            }
            for metric, values in denominators.items():
                result.append(_line("denominator", group, metric, bootstrap.estimate(values)))
            for rung, errors in self.errors.items():
                for metric, denominator in denominators.items():
                    fve = bootstrap.ratio(denominator - errors.error[mask], denominator)
                    result.append(_line(rung, group, metric, fve))
                nmse = bootstrap.ratio(denominators["fve"] - errors.nmse[mask], denominators["fve"])
                result.append(_line(rung, group, "fve_direction", nmse))
                for metric in ("nmse", "cosine", "centred_cosine", "norm_ratio"):
                    result.append(_line(rung, group, metric, bootstrap.estimate(getattr(errors, metric)[mask])))
            result += self._kl_lines(group, mask)
            for rung, measures in self.texts.items():
                result += [_line(rung, group, name, bootstrap.estimate(x[mask])) for name, x in measures.items()]
            for rung, said in self.said.items():
                result += self._claim_lines(rung, group, mask, bootstrap, said)
        return result

    def gains(self, pairs: Sequence[tuple[str, str]]) -> list[Line]:
        """FVE (of the site's mean) of one rung less that of another, on the same rows; where both are there."""
        denominator = spread(self.rows.target, self.means.at(self.rows.sites))
        result = []
        for rung, over in pairs:
            if rung in self.errors and over in self.errors:
                less = self.errors[over].error - self.errors[rung].error
                for group, mask in self._groups():
                    estimate = self._bootstrap(mask).ratio(less[mask], denominator[mask])
                    result.append(_line(f"{rung} - {over}", group, "fve_gain", estimate))
        return result

    def shares(self, pairs: Sequence[tuple[str, str]]) -> list[Line]:
        """FVE (of the site's mean) of one rung as a share of another's, on the same rows; where both are there.

        A kind of site where the second is not above zero in every resample has no line.
        """
        denominator = spread(self.rows.target, self.means.at(self.rows.sites))
        explained = {rung: denominator - errors.error for rung, errors in self.errors.items()}
        result = []
        for part, whole in pairs:
            if part in explained and whole in explained:
                for group, mask in self._groups():
                    estimate = self._bootstrap(mask).share(explained[part][mask], explained[whole][mask])
                    if estimate is not None:
                        result.append(_line(f"{part} / {whole}", group, "fve_share", estimate))
        return result

    def best(self, rungs: Sequence[str]) -> list[str]:
        """Those of some rungs whose FVE is the highest of them, over all sites or at a kind of site."""
        there = [rung for rung in rungs if rung in self.errors]
        groups = [group for group, _ in self._groups()]
        return list(dict.fromkeys(max(there, key=lambda rung: self.fve(rung, group)) for group in groups))

    def _kl_lines(self, group: str, mask: Bool[np.ndarray, "row"]) -> list[Line]:
        """KL of what was spliced, in nats, and the share of what no diff loses that it recovers."""
        result: list[Line] = []
        for rung, kl in self.kl.items():
            some = np.flatnonzero(mask[: len(kl)])
            docs = [self.rows.records[i].doc_id for i in some]
            if len(set(docs)) < MIN_DOCS:
                continue
            bootstrap = DocumentBootstrap(docs, self.resamples, keyed_rng(self.seed, "bootstrap"))
            result.append(_line(rung, group, "kl", bootstrap.estimate(kl[some])))
            lost = self.kl["no diff"][some]
            result.append(_line(rung, group, "kl_recovered", bootstrap.ratio(lost - kl[some], lost)))
        return result

    def fve(self, rung: str, group: str = "all") -> float:
        """FVE of the site's mean."""
        mask = dict(self._groups())[group]
        denominator = spread(self.rows.target, self.means.at(self.rows.sites))[mask]
        return float(1 - self.errors[rung].error[mask].sum() / denominator.sum())

    def _claim_lines(
        self,
        rung: str,
        group: str,
        mask: Bool[np.ndarray, "row"],
        bootstrap: DocumentBootstrap,
        said: Sequence[Claims],
    ) -> list[Line]:
        """Share of claims that are true, of the labels' claims that are named, number of claims, share of quotes."""
        parts = [
            _count(said[i], self.rows.gold[i], self.truth[i], self.rows.records[i].token_ids)
            for i in np.flatnonzero(mask).tolist()
        ]
        counts = {name: np.array([float(part[name]) for part in parts]) for name in parts[0]}
        lines = [_line(rung, group, "claims", bootstrap.estimate(counts["made"]))]
        for metric, (part, whole) in {
            "true_claims": ("true", "made"),
            "coverage": ("named", "wanted"),
            "quotes": ("quoted", "made"),
        }.items():
            if (share := bootstrap.share(counts[part], counts[whole])) is not None:
                lines.append(_line(rung, group, metric, share))
        return lines

    def _groups(self) -> list[tuple[str, Bool[np.ndarray, "row"]]]:
        groups, docs = np.array(self.rows.groups), np.array([record.doc_id for record in self.rows.records])
        masks = [(str(group), groups == group) for group in sorted(set(groups))]
        masks = [(group, mask) for group, mask in masks if len(set(docs[mask])) >= MIN_DOCS]
        return [("all", np.ones(len(groups), dtype=bool)), *masks]

    def _bootstrap(self, mask: Bool[np.ndarray, "row"]) -> DocumentBootstrap:
        docs = np.array([record.doc_id for record in self.rows.records])[mask]
        return DocumentBootstrap(docs, self.resamples, keyed_rng(self.seed, "bootstrap"))


def random_errors(
    true: Float[np.ndarray, "row d_model"],
    rebuilt: Float[np.ndarray, "row d_model"],
    directions: Float[np.ndarray, "other d_model"],
    rng: np.random.Generator,
) -> dict[str, Float[np.ndarray, "row d_model"]]:
    """True diffs with random errors as large as a reconstruction's: is it more wrong than chance where it matters?

    Args:
        true: Diffs.
        rebuilt: Their reconstructions, at the true size.
        directions: Other diffs in q scale, whose covariance one kind of error has.
        rng: Where errors come from.
    """
    size = np.linalg.norm(rebuilt - true, axis=1, keepdims=True)
    isotropic = rng.standard_normal(true.shape)
    centred = directions - directions.mean(axis=0)
    like_diffs = rng.standard_normal((len(true), len(centred))) @ centred
    along = true / np.maximum(np.linalg.norm(true, axis=1, keepdims=True), 1e-12)
    across = isotropic - (isotropic * along).sum(axis=1, keepdims=True) * along
    near = cosine(rebuilt, true)[:, None]
    lengths = np.linalg.norm(true, axis=1, keepdims=True)
    return {
        "error of the same size, isotropic": true + size * _units(isotropic),
        "error of the same size, like diffs": true + size * _units(like_diffs),
        "same cosine, isotropic": lengths * (near * along + np.sqrt(1 - near**2) * _units(across)),
    }


def _units(vectors: Float[np.ndarray, "row d_model"]) -> Float[np.ndarray, "row d_model"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _at_size(
    rebuilt: Float[np.ndarray, "row d_model"], true: Float[np.ndarray, "row d_model"]
) -> Float[np.ndarray, "row d_model"]:
    return _units(rebuilt) * np.linalg.norm(true, axis=1, keepdims=True)


def _log_probs(
    subject: Subject, diffs: Sequence[Diff], instead: Float[np.ndarray, "row d_model"]
) -> Float[Tensor, "row vocab"]:
    return spliced_log_probs(subject, diffs, torch.from_numpy(instead).float())


def _count(said: Claims, gold: Claims, truth: Measured, context: Sequence[int]) -> dict[str, int]:
    tokens = set(context)
    return {
        "made": len(said),
        "true": sum(map(truth.holds, said)),
        "wanted": len(gold),
        "named": len(set(said) & set(gold)),
        "quoted": sum(claim.said in tokens for claim in said),
    }


def _line(rung: str, group: str, metric: str, estimate: Estimate) -> Line:
    return Line(rung, group, metric, **asdict(estimate))


def to_rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The content of ladder.json."""
    return [asdict(line) for line in lines]
