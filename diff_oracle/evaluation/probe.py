"""A probe without language: is what a question asks for in the vector, for a linear readout to find?

For every kind of question of a task, `RidgeReadout` learns `Task.targets` from the diffs and answers what the oracle is
asked, and the same `task.score` judges it. With x W_s what a diff x raises at site s:

    z   = x W_s / √(p (1 − p))                   p: the share of the site's rows that hold the token or class
    P   = Φ(Φ⁻¹(p) + z)                          the site's habit, moved by what the diff says

Pairs of tokens are drawn so that the site's habit does not tell which is right: they are decided by z. Classes and
lists are read from P. The penalties λ and μ are those that answer split `select` best. A probe that beats the site's
habit shows that the answer is in the vector; one that does not shows only that no linear readout found it in so many
rows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from scipy.special import ndtr, ndtri

from diff_oracle.evaluation.readout import RidgeReadout, features
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import DiffDataset, Record
from diff_oracle.tasks import Question, Task, Text, Vocabulary
from diff_oracle.tasks.text import token_list
from diff_oracle.training.holdout import HoldoutConfig

logger = logging.getLogger(__name__)

# Rows have about unit length: whatever d_model is, a penalty is the variance of the noise over that of what the diff
# tells. Strongest first, for of equal scores the first is taken.
PENALTIES = (1000.0, 100.0, 10.0)
SITE_PENALTIES = (np.inf, 100.0, 20.0, 5.0, 1.0)
ROWS_AT_ONCE = 128


class Probes:
    """Fits the probes of a dataset, on rows that training may see.

    A kind whose rows can all be asked an earlier kind of the task, with the same targets, shares the readout of that
    one and its training rows: the tokens of a pair are also known from rows that are asked for a list alone. Penalties
    are chosen for each kind.
    """

    def __init__(
        self, dataset: DiffDataset, vocabulary: Vocabulary, num_rows: int, holdout: HoldoutConfig, seed: int
    ) -> None:
        self._dataset, self._vocabulary, self._holdout, self._seed = dataset, vocabulary, holdout, seed
        self._num_rows = {"train": num_rows, "select": num_rows // 10}
        self._askable: dict[tuple[str, str], Bool[np.ndarray, "row kind"]] = {}
        self._drawn: dict[str, tuple[bytes, list[Record]]] = {}
        self._readouts: dict[tuple[str, str], RidgeReadout | None] = {}

    def fit(self, task: Task, kind: str) -> LinearProbe | None:
        """The probe of a kind; None, with a warning, where no row can be asked or none has a target."""
        select = self._draw(task, kind, "select")
        readout = self._readout(task, self._source(task, kind, select)) if select else None
        if readout is None:
            logger.warning("no linear probe of %s/%s: no row can be asked, or none has a target", task.name, kind)
            return None
        return LinearProbe.fit(task, kind, readout, select, vocabulary=self._vocabulary, seed=self._seed)

    def _source(self, task: Task, kind: str, select: Sequence[Record]) -> str:
        """The first kind that all rows of `kind` can be asked, with the same targets."""
        targets, own = [task.targets(row, kind) for row in select], self._asked(task, kind, "train")

        def covers(other: str) -> bool:
            everywhere = not (own & ~self._asked(task, other, "train")).any()
            return everywhere and all(task.targets(row, other) == t for row, t in zip(select, targets, strict=True))

        return next(filter(covers, task.kinds))

    def _readout(self, task: Task, kind: str) -> RidgeReadout | None:
        if (task.name, kind) not in self._readouts:
            train = self._draw(task, kind, "train")
            targets = [task.targets(row, kind) for row in train]
            self._readouts = {
                key: known for key, known in self._readouts.items() if key[0] == task.name
            }  # they are big
            self._readouts[task.name, kind] = RidgeReadout(train, targets) if any(targets) else None
        return self._readouts[task.name, kind]

    def _asked(self, task: Task, kind: str, split: Literal["train", "select"]) -> Bool[np.ndarray, "row"]:
        if (task.name, split) not in self._askable:
            records = self._dataset.split(split)
            self._askable[task.name, split] = task.askable(records) & self._holdout.trained(records.sites)[:, None]
        return self._askable[task.name, split][:, list(task.kinds).index(kind)]

    def _draw(self, task: Task, kind: str, split: Literal["train", "select"]) -> list[Record]:
        asked = self._asked(task, kind, split)
        if self._drawn.get(split, (b"",))[0] != asked.tobytes():  # most kinds are asked of the same rows
            drawn = keyed_rng(self._seed, "probe rows", split).permutation(np.flatnonzero(asked))
            rows = self._dataset.split(split).take(drawn[: self._num_rows[split]])
            self._drawn[split] = asked.tobytes(), rows
        return self._drawn[split][1]


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
        readout: RidgeReadout,
        select: Sequence[Record],
        *,
        vocabulary: Vocabulary,
        seed: int = 0,
    ) -> LinearProbe:
        """Chooses the penalties that score best on the rows of `select`, all of which can be asked the kind.

        A few hundred of them are enough. The task must be fitted.
        """
        questions = [task.question(row, kind, keyed_rng(seed, "probe", kind, i)) for i, row in enumerate(select)]
        mark, worth = _list_form([question.answer for question in questions])
        sites, x = np.array([row.site for row in select]), features(select)

        def scored(weights: Float[np.ndarray, "feature column"], site_penalty: float) -> tuple[float, LinearProbe]:
            probe = cls(readout, weights, site_penalty, mark, worth)
            if questions[0].choices:
                scores = probe._choice_scores(sites, x, questions)
                probe = replace(probe, threshold=_best_threshold(scores, questions))
                answers = probe._chosen(scores, questions)
            else:
                answers = probe._lists(sites, x)
            shown = map(vocabulary.show, answers)
            return float(np.mean([task.score(q, a, vocabulary) for q, a in zip(questions, shown, strict=True)])), probe

        probes = [scored(weights, mu) for weights in map(readout.weights, PENALTIES) for mu in SITE_PENALTIES]
        return max(probes, key=itemgetter(0))[1]

    def answers(self, records: Sequence[Record], questions: Sequence[Question]) -> list[Text]:
        """An answer to each record's question, all of them of the kind that the probe was fitted for."""
        sites, x = np.array([record.site for record in records]), features(records)
        if questions[0].choices:
            return self._chosen(self._choice_scores(sites, x, questions), questions)
        return self._lists(sites, x)

    def _standings(
        self, sites: Shaped[np.ndarray, "row"], x: Float[np.ndarray, "row feature"]
    ) -> Iterator[tuple[Int[np.ndarray, "some"], Float[np.ndarray, "some column"], Float[np.ndarray, "some column"]]]:
        """(rows, z, Φ⁻¹(p)), some rows at a time, those of a site together."""
        order = np.argsort(sites, kind="stable")
        for start in range(0, len(order), ROWS_AT_ONCE):
            rows = order[start : start + ROWS_AT_ONCE]
            names, place = np.unique(sites[rows], return_inverse=True)
            share = np.stack([self.readout.share(str(name)) for name in names])
            raised = self.readout.raised(sites[rows], x[rows], self.weights, self.site_penalty)
            yield rows, raised / np.sqrt(share * (1 - share))[place], ndtri(share)[place]

    def _choice_scores(
        self, sites: Shaped[np.ndarray, "row"], x: Float[np.ndarray, "row feature"], questions: Sequence[Question]
    ) -> Float[np.ndarray, "row choice"]:
        """Of classes Φ⁻¹(P), of tokens z; −∞ for a class, and NaN for a choice beside tokens, that is no column."""
        columns = np.array([[self.readout.columns.get(choice, -1) for choice in q.choices] for q in questions])
        names_tokens = any(isinstance(piece, int) for choice in questions[0].choices for piece in choice)
        scores, missing = np.empty(columns.shape), np.nan if names_tokens else -np.inf
        for rows, z, habit in self._standings(sites, x):
            standing = z if names_tokens else z + habit
            standing = np.pad(standing, ((0, 0), (0, 1)), constant_values=missing)  # what column -1 finds
            scores[rows] = np.take_along_axis(standing, columns[rows], axis=1)
        return scores

    def _chosen(self, scores: Float[np.ndarray, "row choice"], questions: Sequence[Question]) -> list[Text]:
        best = np.where(np.isnan(scores), self.threshold, scores).argmax(axis=1)
        return [question.choices[i] for question, i in zip(questions, best, strict=True)]

    def _lists(self, sites: Shaped[np.ndarray, "row"], x: Float[np.ndarray, "row feature"]) -> list[Text]:
        tokens = self.readout.tokens
        lists: list[Text] = [()] * len(x)
        for rows, z, habit in self._standings(sites, x):
            standings = z + habit
            top = torch.from_numpy(standings[:, tokens]).topk(min(len(self.worth), len(tokens))).indices
            for row, standing, best in zip(rows, standings, tokens[top.numpy()], strict=True):
                lists[row] = self._list(standing, best)
        return lists

    def _list(self, standing: Float[np.ndarray, "column"], best: Int[np.ndarray, "best"]) -> Text:
        """Of the best tokens the list that is worth most, or the words without tokens where they are worth more."""
        names, words = self.readout.names, self.readout.words
        expected = np.cumsum(ndtr(standing[best])) * self.worth[: len(best)]
        if len(words):
            word = words[standing[words].argmax()]
            if not len(best) or ndtr(standing[word]) > expected.max():
                return (names[word],)
        return token_list([int(names[column]) for column in best[: expected.argmax() + 1]], self.mark)


def _best_threshold(scores: Float[np.ndarray, "row choice"], questions: Sequence[Question]) -> float:
    """The z of a choice that is no column that answers most questions right; 0 where all, or none, are columns."""
    absent = np.isnan(scores)
    rival = scores[absent.any(axis=1) & ~absent.all(axis=1)]
    if not len(rival):
        return 0.0
    right = np.array([question.choices.index(question.answer) for question in questions])

    def accuracy(threshold: float) -> float:
        return float((np.where(absent, threshold, scores).argmax(axis=1) == right).mean())

    return float(max([0.0, *np.quantile(np.nanmax(rival, axis=1), np.linspace(0.05, 0.95, 19))], key=accuracy))


def _list_form(answers: Sequence[Text]) -> tuple[str, Float[np.ndarray, "length"]]:
    """The mark before each token of these answers' lists, and the mean of 1 / max(named, wanted) for 1, 2, … named."""
    lists = [answer for answer in answers if any(isinstance(piece, int) for piece in answer)]
    if not lists:
        return "", np.ones(1)
    wanted = np.array([sum(isinstance(piece, int) for piece in answer) for answer in lists])
    mark = lists[0][0] if isinstance(lists[0][0], str) else ""
    return mark, np.array([np.mean(1 / np.maximum(named, wanted)) for named in range(1, wanted.max() + 1)])
