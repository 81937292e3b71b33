"""A baseline without training and without the diff: the base model sees examples and a text, and is to explain."""

from __future__ import annotations

from collections.abc import Sequence

from diff_oracle.nla.rows import Rows
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import Prompt
from diff_oracle.records import Record
from diff_oracle.tasks.claims import Claim, parse, write
from diff_oracle.tasks.text import Text

_CONTEXT = 24  # last tokens of a text that are shown


def prompted_explanations(
    av: Oracle,
    examples: Rows,
    best: Sequence[int],
    records: Sequence[Record],
    shots: int,
    max_new_tokens: int,
    batch_size: int = 128,
) -> list[list[Claim]]:
    """What the base model claims of each record, having read measured explanations of other diffs of the same site.

    Args:
        av: Its base model is asked, without the adapter.
        examples: Training rows.
        best: Their numbers, those that are to be shown first.
        records: What is to be explained; of each only the site and the text are shown.
        shots: Examples in a prompt.
        max_new_tokens: Most that an explanation takes.
        batch_size: Prompts at once.
    """
    by_site: dict[str, list[int]] = {}
    for i in best:
        if len(of_site := by_site.setdefault(examples.sites[i], [])) < shots:
            of_site.append(i)
    any_site = list(best[:shots])
    prompts = []
    for record in records:
        text: list[str | int] = []
        for i in by_site.get(record.site, any_site):
            text += [*_shown(examples.records[i]), *write(examples.gold[i]), "\n\n"]
        prompts.append(Prompt(av.vocabulary.encode((*text, *_shown(record))), None))
    with av.lm.disable_adapter():
        answers = av.generate(prompts, max_new_tokens, batch_size)
    return [list(parse(answer.split("\n\n")[0], av.vocabulary).claims) for answer in answers]


def _shown(record: Record) -> Text:
    return (f"{record.site} after ", *record.token_ids[-_CONTEXT:], "\n")
