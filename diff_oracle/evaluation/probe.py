"""A probe without language: is what a question asks for in the vector, for a linear readout to find?

For every kind of question of a task, ridge regression from the diffs to `Task.targets` answers what the oracle is
asked, and the same `task.score` judges it. With x the diff's direction and log ‖diff‖ / ‖before‖, less their mean over
the site, and Y one indicator column for every token or class that some training row holds:

    W   minimises ‖Y − X W‖² + λ ‖W‖²            over the rows of all sites
    W_s minimises ‖Y − X W_s‖² + μ ‖W_s − W‖²    over the site's rows; μ = ∞ leaves one readout for all sites
    z   = x W_s / √(p (1 − p))                   p: the share of the site's rows that hold the token or class
    P   = Φ(Φ⁻¹(p) + z)                          the site's habit, moved by what the diff says

Pairs of tokens are drawn so that the site's habit does not tell which is right: they are decided by z. Classes and
lists are read from P. λ and μ are those that answer split `select` best. A probe that beats the site's habit shows
that the answer is in the vector; one that does not shows only that no linear readout found it in so many rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve
from scipy.sparse import csr_array
from scipy.special import ndtr, ndtri
from sklearn.preprocessing import MultiLabelBinarizer

from diff_oracle.randomness import keyed_rng
from diff_oracle.records import Record
from diff_oracle.tasks import Question, Task, Text, Vocabulary
from diff_oracle.tasks.text import token_list
from diff_oracle.tasks.usual import PRIOR_ROWS

# Rows have about unit length: whatever d_model is, a penalty is the variance of the noise over that of what the diff
# tells. Strongest first, for of equal scores the first is taken.
PENALTIES = (1000.0, 100.0, 10.0)
SITE_PENALTIES = (np.inf, 100.0, 20.0, 5.0, 1.0)
ROWS_AT_ONCE = 128
TINY = 1e-12  # a diff of nothing but zeros has no direction


@dataclass(frozen=True)
class _Site:
    """The training rows of a site: X − mean = left · diag(singular) · right."""

    mean: Float[np.ndarray, "feature"]
    share: Float[np.ndarray, "column"]
    left: Float[np.ndarray, "row rank"]
    singular: Float[np.ndarray, "rank"]
    right: Float[np.ndarray, "rank feature"]
    targets: csr_array


class RidgeReadout:
    """Ridge regression to indicators, pooled over sites and drawn towards each site's own rows.

    Attributes:
        names: The target of each column: everything that some training row's targets hold.
        columns: Each target's column, by how an answer says it.
        tokens: The columns of tokens.
        words: The columns of words.
    """

    def __init__(self, records: Sequence[Record], targets: Sequence[Sequence[int | str]]) -> None:
        self.names: list[int | str] = list(dict.fromkeys(chain.from_iterable(targets)))
        self.columns: dict[Text, int] = {(name,): column for column, name in enumerate(self.names)}
        is_token = np.array([isinstance(name, int) for name in self.names], dtype=bool)
        self.tokens, self.words = np.flatnonzero(is_token), np.flatnonzero(~is_token)
        binarizer = MultiLabelBinarizer(classes=self.names, sparse_output=True)
        indicators = csr_array(binarizer.fit_transform(targets), dtype=np.float64)
        x, sites = features(records), np.array([record.site for record in records])
        self._least = 0.5 / len(records)  # no share is exactly 0 or 1, or z would have no unit
        self._mean, self._share = x.mean(axis=0), indicators.mean(axis=0)
        self._sites: dict[str, _Site] = {}
        for site in np.unique(sites):
            rows = np.flatnonzero(sites == site)
            mean, held = x[rows].mean(axis=0), indicators[rows]
            x[rows] -= mean
            share = (held.sum(axis=0) + PRIOR_ROWS * self._share) / (len(rows) + PRIOR_ROWS)
            self._sites[str(site)] = _Site(mean, share, *np.linalg.svd(x[rows], full_matrices=False), held)
        # Rows are centred within their site, so the indicators need not be.
        self._gram, self._cross = x.T @ x, (indicators.T @ x).T

    def weights(self, penalty: float) -> Float[np.ndarray, "feature column"]:
        """W, the readout of all sites together."""
        ridge = self._gram + penalty * np.eye(len(self._gram))
        return np.asarray(solve(ridge, self._cross, assume_a="pos"))

    def raised(
        self,
        sites: Sequence[str],
        x: Float[np.ndarray, "row feature"],
        weights: Float[np.ndarray, "feature column"],
        site_penalty: float,
    ) -> Float[np.ndarray, "row column"]:
        """x W_s: by how much each row's diff raises each column's probability; a new site is read by W.

        Args:
            sites: Each row's site.
            x: The rows' `features`.
            weights: W.
            site_penalty: μ.
        """
        # W_s = W + (X'X + μ)⁻¹ X' (Y − X W), multiplied from the left, since all the W_s would not fit into memory.
        rest, own_part = x.copy(), np.zeros((len(x), len(self.names)))
        for name in set(sites):
            rows, own = np.flatnonzero(np.array(sites) == name), self._sites.get(name)
            rest[rows] -= self._mean if own is None else own.mean
            if own is not None:
                along = rest[rows] @ own.right.T / (own.singular**2 + site_penalty) * own.singular
                own_part[rows] = (along @ own.left.T) @ own.targets
                rest[rows] -= (along * own.singular) @ own.right
        return rest @ weights + own_part

    def share(self, site: str) -> Float[np.ndarray, "column"]:
        """p, drawn towards the share of all rows as by `PRIOR_ROWS` more of them; a new site has just that."""
        own = self._sites.get(site)
        return np.clip(self._share if own is None else own.share, self._least, 1 - self._least)


@dataclass(frozen=True)
class LinearProbe:
    """Answers one kind of question from the vectors alone. Made by `fit`."""

    readout: RidgeReadout
    weights: Float[np.ndarray, "feature column"]
    """W."""
    site_penalty: float
    """μ."""
    mark: str
    """What stands before each token of a list."""
    worth: Float[np.ndarray, "length"]
    """What a right name scores in a list of 1, 2, … names."""
    threshold: float = 0.0
    """The z of a choice that is no target, such as the word "no"."""

    @classmethod
    def fit(
        cls,
        task: Task,
        kind: str,
        train: Sequence[Record],
        select: Sequence[Record],
        *,
        vocabulary: Vocabulary,
        seed: int = 0,
    ) -> LinearProbe:
        """Fits readouts to the rows of `train` and keeps the one that scores best on those of `select`.

        A few hundred of the latter are enough. Rows that cannot be asked the kind are left out. The task must be
        fitted.

        Raises:
            ValueError: No row of `train`, or none of `select`, can be asked the kind.
        """
        train, select = ([row for row in rows if kind in task.kinds_for(row)] for rows in (train, select))
        for split, rows in (("train", train), ("select", select)):
            if not rows:
                raise ValueError(f"no {split} row can be asked {task.name}/{kind}: give the probe more rows")
        readout = RidgeReadout(train, [task.targets(row, kind) for row in train])
        questions = [task.question(row, kind, keyed_rng(seed, "probe", kind, i)) for i, row in enumerate(select)]
        mark, worth = _list_form([question.answer for question in questions])

        def score(probe: LinearProbe) -> float:
            shown = map(vocabulary.show, probe.answers(select, questions))
            return float(np.mean([task.score(q, a, vocabulary) for q, a in zip(questions, shown, strict=True)]))

        fitted = [cls(readout, readout.weights(penalty), np.inf, mark, worth) for penalty in PENALTIES]
        probes = [replace(probe, site_penalty=penalty) for probe in fitted for penalty in SITE_PENALTIES]
        return max((probe._with_threshold(select, questions) for probe in probes), key=score)

    def answers(self, records: Sequence[Record], questions: Sequence[Question]) -> list[Text]:
        """An answer to each record's question, all of them of the kind that the probe was fitted for."""
        if questions[0].choices:
            scores = self._choice_scores(records, questions)
            best = np.where(np.isnan(scores), self.threshold, scores).argmax(axis=1)
            return [question.choices[i] for question, i in zip(questions, best, strict=True)]
        return [self._list(likely) for _, z, share in self._standings(records) for likely in ndtr(ndtri(share) + z)]

    def _standings(
        self, records: Sequence[Record]
    ) -> Iterator[tuple[slice, Float[np.ndarray, "row column"], Float[np.ndarray, "row column"]]]:
        """(rows, z, p), some rows at a time."""
        for start in range(0, len(records), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            x, sites = features(records[rows]), [record.site for record in records[rows]]
            share = np.stack([self.readout.share(site) for site in sites])
            raised = self.readout.raised(sites, x, self.weights, self.site_penalty)
            yield rows, raised / np.sqrt(share * (1 - share)), share

    def _choice_scores(
        self, records: Sequence[Record], questions: Sequence[Question]
    ) -> Float[np.ndarray, "question choice"]:
        """Of classes Φ⁻¹(P), of tokens z; −∞ for a class, and NaN for a choice beside tokens, that is no column."""
        columns = np.array([[self.readout.columns.get(choice, -1) for choice in q.choices] for q in questions])
        names_tokens = any(isinstance(piece, int) for choice in questions[0].choices for piece in choice)
        scores, missing = np.empty(columns.shape), np.nan if names_tokens else -np.inf
        for rows, z, share in self._standings(records):
            standing = z if names_tokens else z + ndtri(share)
            standing = np.pad(standing, ((0, 0), (0, 1)), constant_values=missing)  # what column -1 finds
            scores[rows] = np.take_along_axis(standing, columns[rows], axis=1)
        return scores

    def _with_threshold(self, records: Sequence[Record], questions: Sequence[Question]) -> LinearProbe:
        """The threshold that answers most questions right; 0 where every choice, or none, has its column."""
        if not questions[0].choices:
            return self
        scores = self._choice_scores(records, questions)
        rival = scores[np.isnan(scores).any(axis=1) & ~np.isnan(scores).all(axis=1)]
        if not len(rival):
            return self
        right = np.array([question.choices.index(question.answer) for question in questions])

        def accuracy(threshold: float) -> float:
            return float((np.where(np.isnan(scores), threshold, scores).argmax(axis=1) == right).mean())

        thresholds = np.quantile(np.nanmax(rival, axis=1), np.linspace(0.05, 0.95, 19))
        return replace(self, threshold=float(max([0.0, *thresholds], key=accuracy)))

    def _list(self, likely: Float[np.ndarray, "column"]) -> Text:
        """The list that is worth most, or the words without tokens where they are worth more."""
        names, tokens, words = self.readout.names, self.readout.tokens, self.readout.words
        top = tokens[np.argsort(-likely[tokens], kind="stable")[: len(self.worth)]]
        expected = np.cumsum(likely[top]) * self.worth[: len(top)]
        if len(words):
            word = words[likely[words].argmax()]
            if not len(top) or likely[word] > expected.max():
                return (names[word],)
        return token_list([int(names[column]) for column in top[: expected.argmax() + 1]], self.mark)


def features(records: Sequence[Record]) -> Float[np.ndarray, "row feature"]:
    """Each diff's direction, and behind it log ‖diff‖ / ‖before‖; the oracle is told both, the latter in words."""
    diffs = np.stack([record.diff for record in records]).astype(np.float64)
    norms = np.linalg.norm(diffs, axis=1, keepdims=True)
    sizes = np.array([[record.relative_size] for record in records])
    return np.hstack([diffs / np.maximum(norms, TINY), np.log(np.maximum(sizes, TINY))])


def _list_form(answers: Sequence[Text]) -> tuple[str, Float[np.ndarray, "length"]]:
    """The mark before each token of these answers' lists, and the mean of 1 / max(named, wanted) for 1, 2, … named."""
    lists = [answer for answer in answers if any(isinstance(piece, int) for piece in answer)]
    if not lists:
        return "", np.ones(1)
    wanted = np.array([sum(isinstance(piece, int) for piece in answer) for answer in lists])
    mark = lists[0][0] if isinstance(lists[0][0], str) else ""
    return mark, np.array([np.mean(1 / np.maximum(named, wanted)) for named in range(1, wanted.max() + 1)])
