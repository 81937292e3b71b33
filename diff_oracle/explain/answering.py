"""What an oracle answers about diffs, and which of its claims are right. Between what is measured and explanations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from diff_oracle.evaluation.metrics import answer
from diff_oracle.explain.explanations import Answer, Claim
from diff_oracle.oracle.model import Oracle
from diff_oracle.records import Record
from diff_oracle.subject.model import Subject
from diff_oracle.tasks import Question, Task
from diff_oracle.tasks.base import Standard
from diff_oracle.tasks.claims import parse, write
from diff_oracle.tasks.explanation import PHRASINGS
from diff_oracle.tasks.text import Vocabulary, parse_token_list
from diff_oracle.tasks.truth import measured

FREE_QUESTION = PHRASINGS["explain"]["seen"][0]
_TOKENS_A_LINE = 3  # of a list: a mark, a token, a line break
_MAX_EXPLANATION_TOKENS = 96


def standard_answers(
    oracle: Oracle, tasks: Sequence[Task], records: Sequence[Record], batch_size: int
) -> list[list[Answer]]:
    """Each record's answers to the standard questions of those tasks that have some."""
    rows = [
        (i, task, question)
        for i, record in enumerate(records)
        for task in tasks
        if isinstance(task, Standard)
        for question in task.standard_questions(record, oracle.vocabulary)
    ]
    kinds: dict[tuple[str, str], list[int]] = defaultdict(list)  # answers of a kind are of like length
    for row, (_, _, question) in enumerate(rows):
        kinds[question.task, question.kind].append(row)
    given = [""] * len(rows)
    for of_kind in kinds.values():
        task, questions = rows[of_kind[0]][1], [rows[row][2] for row in of_kind]
        prompts = [oracle.prompts.about(records[rows[row][0]], rows[row][2].text) for row in of_kind]
        if questions[0].choices:
            found = answer(oracle, prompts, questions, batch_size)
        else:
            found = oracle.generate(prompts, _TOKENS_A_LINE * task.config.num_asked, batch_size)
        for row, text in zip(of_kind, found, strict=True):
            given[row] = text
    answers: list[list[Answer]] = [[] for _ in records]
    for (i, task, question), text in zip(rows, given, strict=True):
        answers[i].append(_checked(task, question, text, oracle.vocabulary))
    return answers


def free_explanations(
    oracle: Oracle, subject: Subject, records: Sequence[Record], question: str, batch_size: int
) -> Iterator[tuple[str, list[Claim]]]:
    """What the oracle says of each record's diff when it may say what it wants, and those of its claims that parse."""
    vocabulary = oracle.vocabulary
    prompts = [oracle.prompts.about(record, (question,)) for record in records]
    said = oracle.generate(prompts, _MAX_EXPLANATION_TOKENS, batch_size)
    for text, truth in zip(said, measured(records, subject, vocabulary), strict=True):
        claims = parse(text, vocabulary).claims
        yield text, [Claim(vocabulary.show(write([claim])), truth.holds(claim)) for claim in claims]


def _checked(task: Task, question: Question, text: str, vocabulary: Vocabulary) -> Answer:
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
