"""From a text, positions and sites to what is measured there: the labels that a dataset would have.

Behind the subject and `data_gen.measure`, before the questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from jaxtyping import Bool
from torch import Tensor

from data_gen.measure import MEASURES, Window, measure
from diff_oracle.explain.explanations import ExplainedText
from diff_oracle.records import CONVENTIONS, Record, RecordSet, schema
from diff_oracle.subject.capture import read_diffs
from diff_oracle.subject.forward import Query, forward
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite
from diff_oracle.tasks import Task, Vocabulary, make_tasks
from diff_oracle.tasks.truth import TruthConfig

ALL = "all"
"""Every position that has a diff to explain."""
MEASURES_OF_A_SITE = {
    "relative_size": "‖diff‖ / ‖before‖",
    "direct_effect": "what the diff adds to the logit of next_token, as logit_lens has it",
    "next_token": "the token that the whole model finds likeliest behind the position",
    "skip_kl": "kl of layer_skip",
    "right": "a token of a list stands in the measured answer; another answer is the measured one; a claim of a free "
    "explanation holds by its settings",
}
_PART_CHARACTER = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Point:
    """One site at one position of a text, with all labels."""

    record: Record
    direct_effect: float
    """The direct logit shift of the next token."""
    next_id: int
    """The token that the model finds likeliest behind the position."""


def read_text(text: str, vocabulary: Vocabulary) -> ExplainedText:
    """A text as a dataset's window has it: behind what the tokenizer puts before a text, and with nothing after it.

    Raises:
        ValueError: It holds half a character: a byte of a command line that is not UTF-8, or half of a pair in JSON.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{text!r} holds half a character at {error.start}: write it in whole ones, in UTF-8"
        ) from error
    tokenizer = vocabulary.tokenizer
    ids = [*tokenizer("")["input_ids"], *tokenizer.encode(text, add_special_tokens=False, verbose=False)]
    return ExplainedText(text, shown_tokens(ids, vocabulary), [int(i) for i in ids])


def shown_tokens(ids: Sequence[int], vocabulary: Vocabulary) -> list[str]:
    """Each token as it reads in the text; of a character that is split over tokens, the last one shows it."""
    shown: list[str] = []
    pieces: list[int] = []
    for token in ids:
        pieces.append(token)
        text = vocabulary.texts[token] if len(pieces) == 1 else vocabulary.decode(pieces)
        whole = _PART_CHARACTER not in text
        shown.append(text if whole else "")
        if whole:
            pieces = []
    if pieces:  # what the tokens hold is no text
        shown[-len(pieces) :] = [vocabulary.texts[token] for token in pieces]
    return shown


def check_length(text: ExplainedText, number: int, subject: Subject) -> None:
    """Makes sure that a text is one that the subject can read and that something of it can be explained.

    Raises:
        ValueError: It has no token behind position 0, or more tokens than the model has positions.
    """
    length = len(text.token_ids)
    if length < 2:
        raise ValueError(f"text {number} ({text.text!r}) has no position to explain: position 0 has no diff; add words")
    most = getattr(subject.hf_model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and length > most:
        raise ValueError(
            f"text {number} has {length} tokens, but {subject.identity.name} reads at most {most}: shorten it, or take "
            "diff_oracle.explain_head, which reads a text in windows"
        )


def find_positions(wanted: Sequence[int] | str, text: ExplainedText, number: int) -> list[int]:
    """Token indices of a text, negative ones from its end; each once, in their order.

    Raises:
        ValueError: One is position 0, which has no diff to explain, or is not in the text.
    """
    length = len(text.token_ids)
    if wanted == ALL:
        return list(range(1, length))
    assert not isinstance(wanted, str)
    found = [position + length if position < 0 else position for position in wanted]
    for position, asked in zip(found, wanted, strict=True):
        if not 0 < position < length:
            raise ValueError(
                f"position {asked} is out of range: text {number} has {length} tokens, choose from 1…{length - 1} or "
                f"-1…{1 - length} (position 0 has no diff to explain)"
            )
    return list(dict.fromkeys(found))


def measured_tasks(asked: Iterable[Task]) -> list[Task]:
    """A task for each thing that is measured, with the settings of the one that is asked where there is one."""
    named = {task.name: task for task in asked}
    return [named.get(name) or make_tasks({name: {}})[0] for name in MEASURES]


def conventions(tasks: Sequence[Task], truth: TruthConfig) -> dict[str, str]:
    """How each measure is defined; `truth`: which claims of a free explanation are true."""
    settings = {f"settings of {task.name}": str(task.config) for task in tasks}
    return {**CONVENTIONS, **MEASURES_OF_A_SITE, **settings, "settings of explanation claims": str(truth)}


@torch.no_grad()
def measure_sites(
    subject: Subject,
    token_ids: Sequence[int],
    queries: Sequence[tuple[int, DiffSite]],
    tasks: Sequence[Task],
    allowed: Bool[Tensor, "vocab"],
    doc_id: str = "text",
) -> list[Point]:
    """Everything that is measured at positions and sites of a text, in the order of the queries.

    Args:
        subject: The model.
        token_ids: The text.
        queries: Positions, each with a site.
        tasks: One for each measure (`measured_tasks`).
        allowed: The tokens that a label may name, on the subject's device.
        doc_id: What records call the text.

    Raises:
        ValueError: A site or position is out of range, or an activation is not finite.
    """
    columns = measure(subject, (Window(doc_id, "test", list(token_ids), list(queries)),), list(tasks), allowed)
    # By way of a dataset's own rows, so that a label has the type and the rounding that it has there.
    table = pa.table(columns, schema=schema(subject.d_model, [task.name for task in tasks]))
    records = RecordSet(table).take(range(len(queries)))
    run = forward(subject, torch.tensor([list(token_ids)]), [Query(0, position, site) for position, site in queries])
    captured = read_diffs(run)
    next_ids = subject.unembed(run.final).argmax(-1)[run.place]
    write = subject.final_norm.frozen(captured.diff, captured.final_scale)
    direct = (write * (subject.W_U[:, next_ids].T - subject.W_U.mean(-1))).sum(-1)
    return [
        Point(record, effect, token)
        for record, effect, token in zip(records, direct.tolist(), next_ids.tolist(), strict=True)
    ]
