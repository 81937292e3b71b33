"""Controls: the same questions, asked with something else in place of the diff.

| control | what the oracle gets |
|---|---|
| matched | the diff |
| shuffled | the diff of the same site in another document |
| random | a Gaussian vector (only its direction counts) |
| none | empty slots |
| text_only | the context's text and no slots |
| site_prior | nothing is asked: what the site's training rows suggest (`Task.prior_answer`) |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from diff_oracle.oracle.prompt import Prompt, PromptBuilder
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import Record, RecordSet
from diff_oracle.tasks import Question

MATCHED, SITE_PRIOR = "matched", "site_prior"
VECTOR_CONTROLS = (MATCHED, "shuffled", "random", "none")
CONTROLS = (*VECTOR_CONTROLS, "text_only", SITE_PRIOR)


def draw_rows(
    records: RecordSet, num_rows: int, seed: int, askable: Bool[np.ndarray, "row"] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, partners): rows drawn at random, and for each a row of the same site in another document.

    A row whose site no other document has is left out, so that every control is asked on the same rows. Where `askable`
    is given, rows are drawn among these, partners among all; there may be no such row.

    Raises:
        ValueError: No row has a partner, whatever is asked.
    """
    rng = keyed_rng(seed, "evaluation rows")
    by_site: dict[str, list[int]] = defaultdict(list)
    for index, site in enumerate(records.sites):
        by_site[site].append(index)
    rows: list[int] = []
    partners: list[int] = []
    for index in rng.permutation(len(records)):
        if askable is not None and not askable[index]:
            continue
        others = [i for i in by_site[records.sites[index]] if records.doc_ids[i] != records.doc_ids[index]]
        if others:
            rows.append(int(index))
            partners.append(others[rng.integers(len(others))])
        if len(rows) == num_rows:
            break
    if askable is None and not rows:
        raise ValueError(
            "no site was seen in two documents, so nothing can be shuffled: use more documents or fewer sites"
        )
    return np.array(rows, dtype=np.int64), np.array(partners, dtype=np.int64)


def control_prompts(
    control: str,
    prompts: PromptBuilder,
    records: Sequence[Record],
    partners: Sequence[Record],
    questions: Sequence[Question],
    seed: int,
) -> list[Prompt]:
    """The prompts of a control; the site, the size and the question are the row's own."""
    result = []
    for index, (record, partner, question) in enumerate(zip(records, partners, questions, strict=True)):
        if control == "text_only":
            prompt = prompts.with_text(record.site, record.relative_size, record.token_ids, question.text)
        else:
            noise = keyed_rng(seed, "random diff", index).standard_normal(len(record.diff)).astype(np.float32)
            diff = {MATCHED: record.diff, "shuffled": partner.diff, "random": noise, "none": np.zeros_like(record.diff)}
            prompt = prompts.with_diff(record.site, diff[control], record.relative_size, question.text)
        result.append(prompt)
    return result
