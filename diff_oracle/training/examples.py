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
        self._lists = [(task, kind) for task in tasks for kind in task.open_kinds]
        self._one_list = [(task, kind) for task in tasks for kind in task.open_kinds[:1]]
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
        records = self._records.take([self._row(index) for index in indices])
        return [self._examples(index, record) for index, record in zip(indices, records, strict=True)]

    def _row(self, index: int) -> int:
        epoch, place = divmod(index, len(self._records))
        if self._order[0] != epoch:
            self._order = epoch, keyed_rng(self._seed, "order", epoch).permutation(len(self._records))
        return int(self._order[1][place])

    def _examples(self, index: int, record: Record) -> list[Example]:
        rng = keyed_rng(self._seed, "example", index)
        batch = index // self._batch_size
        mode = 1.0 if batch < self._num_first else keyed_rng(self._seed, "mode", batch).random()
        has_diff = mode >= self._text_only + self._none
        sign = -1 if has_diff and rng.random() < 0.5 else 1
        diff = sign * record.diff if has_diff else np.zeros_like(record.diff)
        examples = []
        for task, kind in self._draw_kinds(batch, rng):
            question = task.question(record, kind, rng, sign=sign)
            if mode < self._text_only:
                prompt = self._prompts.with_text(record.site, record.relative_size, record.token_ids, question.text)
            else:
                prompt = self._prompts.with_diff(record.site, diff, record.relative_size, question.text)
            examples.append(Example(prompt, self._prompts.vocabulary.encode(question.answer)))
        return examples

    def _draw_kinds(self, batch: int, rng: np.random.Generator) -> list[tuple[Task, str]]:
        lists = self._one_list if batch < self._num_one else self._lists
        kinds, shares = (lists, None) if batch < self._num_first else (self._kinds, self._shares)
        size = min(self._questions, len(kinds))
        return [kinds[drawn] for drawn in rng.choice(len(kinds), size=size, replace=False, p=shares)]
