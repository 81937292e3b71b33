"""From records to training examples: which record, sign, questions and wordings the n-th diff has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.utils.data

from diff_oracle.oracle.prompt import Prompt, PromptBuilder
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import Record, RecordSet
from diff_oracle.tasks import Task
from diff_oracle.training.mixture import MixtureConfig, shares

BUCKET_BATCHES = 8  # batches that are sorted by length together


@dataclass(frozen=True)
class Example:
    """A prompt and its answer's ids."""

    prompt: Prompt
    answer_ids: list[int]


class ExampleDataset(torch.utils.data.Dataset[list[Example]]):
    """`num_batches` × `batch_size` diffs, to be read in order, each with the examples that ask about it.

    The i-th depends on the seed and i alone. Each pass over the records is a new permutation, each visit has new
    questions: `questions_per_diff` different kinds. The first `lists_first` of all diffs are asked for lists alone,
    each with its task's weight: they teach to read a diff, for every token of the answer must be read in it, and what
    else is asked is then learned soon. The first `one_list_first` are asked for one list alone, each task's first:
    where a task's lists are read off opposite directions, what one teaches the other unteaches until the questions are
    told apart. Behind the lists the kinds are drawn by the mixture's shares, and some diffs are not shown: in their
    place is the context's text, or nothing, so that the controls `text_only` and `none` ask what was trained.

    Rows of like length share a batch, so that little is padded: the diffs of `BUCKET_BATCHES` batches are sorted by
    length, cut into batches, and these batches shuffled. Rows that show the text are the longest and stand together in
    one or two of them. Spread over all they would make each as wide, half as many positions again, and on `tiny` the
    losses are the same: the optimiser's momentum reaches over more than `BUCKET_BATCHES` steps.

    A row is asked what its labels answer (`Task.askable`), and never drawn where they answer nothing; where no list is
    among it, `lists_first` asks what there is. A group of questions shares one diff and thus its sign. Tasks whose
    labels say nothing about −diff are asked under sign +1 alone, so that every kind keeps its share.

    Raises:
        ValueError: No row can be asked anything, or the mixture does not fit the tasks.
    """

    def __init__(
        self,
        records: RecordSet,
        tasks: Sequence[Task],
        prompts: PromptBuilder,
        mixture: MixtureConfig,
        num_batches: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self._records, self._prompts, self._mixture, self._seed = records, prompts, mixture, seed
        by_task = shares(mixture, tasks)
        self._kinds = [(task, kind) for task in tasks for kind in task.kinds]
        self._shares = np.array([by_task[task.name][kind] for task, kind in self._kinds])
        self._signed = np.array([task.signed for task, _ in self._kinds])
        self._is_list = np.array([kind in task.open_kinds for task, kind in self._kinds])
        self._is_first_list = np.array([kind == task.open_kinds[0] for task, kind in self._kinds])
        self._weights = np.array([mixture.tasks.get(task.name, 1.0) for task, _ in self._kinds])
        self._askable = np.concatenate([task.askable(records) for task in tasks], axis=1) & (self._shares > 0)
        self._rows = np.flatnonzero(self._askable.any(axis=1))
        if not len(self._rows):
            names = ", ".join(name for name, kinds in by_task.items() if any(kinds.values()))
            raise ValueError(f"none of the {len(records)} training rows can be asked about {names}: choose other sites")
        self._length, self._batch_size = num_batches * batch_size, batch_size
        self._num_first = int(mixture.lists_first * num_batches) * batch_size
        self._num_one = int(mixture.one_list_first * num_batches) * batch_size
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))
        self._bucket: tuple[int, list[list[Example]]] = (-1, [])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> list[Example]:
        bucket, place = divmod(index, BUCKET_BATCHES * self._batch_size)
        if self._bucket[0] != bucket:
            self._bucket = bucket, self._make_bucket(bucket)
        return self._bucket[1][place]

    def fullest_group(self) -> list[Example]:
        """Among the last diffs, behind the lists, one that is asked the most questions."""
        return max(self._make_bucket((self._length - 1) // (BUCKET_BATCHES * self._batch_size)), key=len)

    def _make_bucket(self, bucket: int) -> list[list[Example]]:
        """The diffs of some batches, those of like length side by side."""
        size = BUCKET_BATCHES * self._batch_size
        indices = range(bucket * size, min((bucket + 1) * size, self._length))
        records = self._records.take([self._row(index) for index in indices])
        groups = [self._examples(*drawn) for drawn in zip(indices, records, strict=True)]
        groups.sort(key=row_length)
        batches = [groups[i : i + self._batch_size] for i in range(0, len(groups), self._batch_size)]
        order = keyed_rng(self._seed, "bucket", bucket).permutation(len(batches))
        return [group for i in order for group in batches[i]]

    def _row(self, index: int) -> int:
        epoch, place = divmod(index, len(self._rows))
        if self._order[0] != epoch:
            self._order = epoch, keyed_rng(self._seed, "order", epoch).permutation(len(self._rows))
        return int(self._rows[self._order[1][place]])

    def _examples(self, index: int, record: Record) -> list[Example]:
        rng = keyed_rng(self._seed, "example", index)
        shown = 1.0 if index < self._num_first else rng.random()
        text_only, none = self._mixture.text_only, self._mixture.none
        has_diff = shown >= text_only + none
        sign, kinds = self._draw_kinds(index, has_diff, rng)
        instead = None if has_diff and sign > 0 else (sign if has_diff else 0) * record.diff
        examples = []
        for task, kind in kinds:
            question = task.question(record, kind, rng, sign=sign)
            if shown < text_only:
                prompt = self._prompts.with_text(record, question.text)
            else:
                prompt = self._prompts.about(record, question.text, instead)
            examples.append(Example(prompt, self._prompts.vocabulary.encode(question.answer)))
        return examples

    def _draw_kinds(self, index: int, has_diff: bool, rng: np.random.Generator) -> tuple[int, list[tuple[Task, str]]]:
        """The sign of a diff, and what is asked about it."""
        askable, weights, lists_alone = self._askable[self._row(index)], self._shares, index < self._num_first
        if lists_alone:
            lists = askable & (self._is_first_list if index < self._num_one else self._is_list)
            askable, weights = lists if lists.any() else askable, self._weights
        weights = np.where(askable, weights, 0.0)
        # An oracle of text sees no sign: asked about −diff, it would learn the opposite of what it learns elsewhere.
        sign, flipped = 1, self._mixture.flipped if self._prompts.num_inputs else 0.0
        if has_diff and flipped:
            sign = -1 if rng.random() < flipped * weights[self._signed].sum() / weights.sum() else 1
            weights = weights * np.where(self._signed, flipped if sign < 0 else 1 - flipped, float(sign > 0))
        places = np.flatnonzero(weights)
        size, left = min(self._mixture.questions_per_diff, len(places)), weights[places]
        drawn = rng.choice(len(places), size=size, replace=False, p=left / left.sum())
        return sign, [self._kinds[places[i]] for i in drawn]


def row_length(group: Sequence[Example]) -> int:
    """Positions of the row that a diff's questions share."""
    shared = group[0].prompt.shared
    return shared + sum(len(e.prompt.ids) - shared + len(e.answer_ids) + 1 for e in group)
