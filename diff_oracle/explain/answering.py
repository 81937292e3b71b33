"""What an oracle answers about diffs, and which of its claims are right. Between what is measured and explanations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from diff_oracle.explain.explanations import Answer, Claim
from diff_oracle.oracle.reading import Reading
from diff_oracle.records import Record
from diff_oracle.subject.model import Subject
from diff_oracle.tasks import Question, Task
from diff_oracle.tasks.base import Standard
from diff_oracle.tasks.claims import parse, write
from diff_oracle.tasks.explanation import PHRASINGS
from diff_oracle.tasks.text import Vocabulary, parse_token_list
from diff_oracle.tasks.truth import TruthConfig, measured

FREE_QUESTION = PHRASINGS["explain"]["seen"][0]
EXPLANATION = "explanation"
AUTO = "auto"
"""Asks for a free explanation where the oracle was trained to give one."""
_TOKENS_A_LINE = 3  # of a list: a mark, a token, a line break
_MAX_EXPLANATION_TOKENS = 96


def standard_answers(
    reading: Reading, tasks: Sequence[Task], records: Sequence[Record], vocabulary: Vocabulary
) -> list[list[Answer]]:
    """Each record's answers to the standard questions of those tasks that have some; `reading` is of these records."""
    asked: dict[tuple[str, str], dict[int, Question]] = defaultdict(dict)  # each kind has one wording
    answers: list[dict[tuple[str, str], Answer]] = [{} for _ in records]
    order: list[list[tuple[str, str]]] = [[] for _ in records]
    # The question of task `explanation` brings the free explanation, whose claims are checked in another way.
    named = {task.name: task for task in tasks if isinstance(task, Standard) and task.name != EXPLANATION}
    for row, record in enumerate(records):
        for task in named.values():
            for question in task.standard_questions(record, vocabulary):
                asked[question.task, question.kind][row] = question
                order[row].append((question.task, question.kind))
    for kind, questions in asked.items():
        task, first, rows = named[kind[0]], next(iter(questions.values())), list(questions)
        if first.choices:
            best = reading.choice_log_probs(rows, first.text, first.choices).argmax(-1).tolist()
            said = [vocabulary.show(first.choices[i]) for i in best]
        else:
            said = reading.generate(rows, first.text, _TOKENS_A_LINE * task.config.num_asked)
        for row, text in zip(rows, said, strict=True):
            answers[row][kind] = _checked(task, questions[row], text, vocabulary)
    return [[of_record[kind] for kind in kinds] for of_record, kinds in zip(answers, order, strict=True)]


def free_explanations(
    reading: Reading,
    records: Sequence[Record],
    question: str,
    subject: Subject,
    vocabulary: Vocabulary,
    truth: TruthConfig,
    max_tokens: int | None = None,
) -> Iterator[tuple[str, list[Claim]]]:
    """What the oracle says of each record's diff when it may say what it wants, and those of its claims that parse."""
    said = reading.generate(range(len(records)), (question,), max_tokens or _MAX_EXPLANATION_TOKENS)
    for text, true in zip(said, measured(records, subject, vocabulary, truth), strict=True):
        claims = parse(text, vocabulary).claims
        yield text, [Claim(vocabulary.show(write([claim])), true.holds(claim)) for claim in claims]


def _checked(task: Any, question: Question, text: str, vocabulary: Vocabulary) -> Answer:
    """An answer beside the measured one; each token of a list is a claim."""
    measured = vocabulary.show(question.answer)
    if question.choices:
        right, said, wanted = text == measured, [text], [measured]
    else:
        right, said, wanted = None, parse_token_list(text), parse_token_list(measured)
    return Answer(
        task.name,
        question.kind,
        vocabulary.show(question.text),
        text,
        measured,
        right,
        float(task.score(question, text, vocabulary)),
        [Claim(claim, claim in wanted) for claim in said],
    )
