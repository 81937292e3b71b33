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


@dataclass(frozen=True)
class Example:
    """A prompt and its answer's ids."""

    prompt: Prompt
    answer_ids: list[int]


class ExampleDataset(torch.utils.data.Dataset[list[Example]]):
    """`num_batches` × `batch_size` diffs, to be read in order, each with the examples that ask about it.

    The i-th depends on the seed and i alone. Each pass over the records is a new permutation, each visit has new
    questions: `questions_per_diff` different kinds. The first `lists_first` of all batches ask for lists alone: they
    teach to read a diff, for every token of the answer must be read in it, and what else is asked is then learned
    soon. The first `one_list_first` of all batches ask for one list alone, each task's first: where a task's lists are
    read off opposite directions, what one teaches the other unteaches until the questions are told apart. Behind the
    lists the kinds are drawn by their shares, and a share of the batches has no diffs: some show the context's text
    instead, some nothing, so that the controls `text_only` and `none` ask what was trained. It is whole batches,
    because prompts with text are longer and would pad all others.

    A row is asked what its labels answer (`Task.askable`), and never drawn where they answer nothing; where no list is
    among it, `lists_first` asks what there is. A group of questions shares one diff and thus its sign. Tasks whose
    labels say nothing about −diff are asked under sign +1 alone, the others as often under either, so that every kind
    keeps its share.

    Raises:
        ValueError: No row can be asked anything.
    """

    def __init__(
        self,
        records: RecordSet,
        tasks: Sequence[Task],
        prompts: PromptBuilder,
        num_batches: int,
        batch_size: int,
        seed: int,
        text_only_fraction: float,
        none_fraction: float,
        questions_per_diff: int,
        lists_first: float,
        one_list_first: float,
    ) -> None:
        self._records, self._prompts = records, prompts
        self._kinds = [(task, kind) for task in tasks for kind in task.kinds]
        self._shares = np.array([task.kinds[kind] / len(tasks) for task, kind in self._kinds])
        self._signed = np.array([task.signed for task, _ in self._kinds])
        self._is_list = np.array([kind in task.open_kinds for task, kind in self._kinds])
        self._is_first_list = np.array([kind == task.open_kinds[0] for task, kind in self._kinds])
        self._askable = np.concatenate([task.askable(records) for task in tasks], axis=1)
        self._rows = np.flatnonzero(self._askable.any(axis=1))
        if not len(self._rows):
            names = ", ".join(task.name for task in tasks)
            raise ValueError(f"none of the {len(records)} training rows can be asked about {names}: choose other sites")
        self._questions = questions_per_diff
        self._num_first, self._num_one = int(lists_first * num_batches), int(one_list_first * num_batches)
        self._length, self._batch_size, self._seed = num_batches * batch_size, batch_size, seed
        self._text_only, self._none = text_only_fraction, none_fraction
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> list[Example]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[list[Example]]:
        """A batch at once: its records are read together, which is most of the work."""
        rows = [self._row(index) for index in indices]
        records = self._records.take(rows)
        return [self._examples(*drawn) for drawn in zip(indices, rows, records, strict=True)]

    def _row(self, index: int) -> int:
        epoch, place = divmod(index, len(self._rows))
        if self._order[0] != epoch:
            self._order = epoch, keyed_rng(self._seed, "order", epoch).permutation(len(self._rows))
        return int(self._rows[self._order[1][place]])

    def _examples(self, index: int, row: int, record: Record) -> list[Example]:
        rng = keyed_rng(self._seed, "example", index)
        batch = index // self._batch_size
        mode = 1.0 if batch < self._num_first else keyed_rng(self._seed, "mode", batch).random()
        has_diff = mode >= self._text_only + self._none
        sign, kinds = self._draw_kinds(batch, row, has_diff, rng)
        diff = sign * record.diff if has_diff else np.zeros_like(record.diff)
        examples = []
        for task, kind in kinds:
            question = task.question(record, kind, rng, sign=sign)
            if mode < self._text_only:
                prompt = self._prompts.with_text(record.site, record.relative_size, record.token_ids, question.text)
            else:
                prompt = self._prompts.with_diff(record.site, diff, record.relative_size, question.text)
            examples.append(Example(prompt, self._prompts.vocabulary.encode(question.answer)))
        return examples

    def _draw_kinds(
        self, batch: int, row: int, has_diff: bool, rng: np.random.Generator
    ) -> tuple[int, list[tuple[Task, str]]]:
        """The sign of a row's diff, and what is asked about it."""
        askable, shares, lists_alone = self._askable[row], self._shares, batch < self._num_first
        if lists_alone:
            lists = askable & (self._is_first_list if batch < self._num_one else self._is_list)
            askable, shares = lists if lists.any() else askable, np.ones_like(shares)
        weights = np.where(askable, shares, 0.0)
        sign = 1
        if has_diff:
            sign = -1 if rng.random() < weights[self._signed].sum() / weights.sum() / 2 else 1
            weights = weights * np.where(self._signed, 0.5, 1.0 if sign > 0 else 0.0)
        places = np.flatnonzero(weights)
        size, left = min(self._questions, len(places)), weights[places]
        equal = lists_alone and bool((left == left[0]).all())
        drawn = rng.choice(len(places), size=size, replace=False, p=None if equal else left / left.sum())
        return sign, [self._kinds[places[i]] for i in drawn]
