"""What the labels of a dataset look like, before anybody trains on them. Behind the parts, before the manifest.

A label is *trivial* where its top answer is the one that the site gives oftenest on the training rows: who knows the
site alone has it right. A group whose labels are mostly trivial teaches an oracle to ignore the diff.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diff_oracle.records import LABEL_COLUMNS, SPLITS, RecordSet
from diff_oracle.subject.sites import SITE_GROUPS, DiffSite
from diff_oracle.tasks.base import Task, label_rows

HEADER = ("task", "sites", "rows", "labelled", "trivial", "commonest top answers")
MAX_SINGLE_SITES = 12
TRIVIAL_WARNING = 0.8
_NUM_COMMONEST = 5

Line = Mapping[str, Any]


def label_distribution(files: Sequence[Path], tasks: Sequence[Task], texts: Sequence[str]) -> list[dict[str, Any]]:
    """One line a task and group of sites, and a line a site where there are few; ready for JSON.

    Args:
        files: The dataset's parts, read one by one, without the vectors.
        tasks: What was measured.
        texts: Each token's text.

    Returns:
        Lines with `task`, `sites` ("all", a group or a site), `rows`, `labelled` (rows with a label), `trivial` (labels
        whose top answer is their site's commonest over the training rows), and `commonest`: pairs of an answer (a token
        as Python writes it, or words) and its number of rows.
    """
    return [line for task in tasks for line in _lines_of(task, files, texts)]


def _lines_of(task: Task, files: Iterable[Path], texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    answers: dict[str, Counter[int | str | None]] = defaultdict(Counter)
    in_training: dict[str, Counter[int | str]] = defaultdict(Counter)
    for file in files:
        table = pq.read_table(file, columns=["site", "split", *LABEL_COLUMNS[task.name]], partitioning=None)
        rows = RecordSet(table)
        for site, split, labels in zip(rows.sites, rows.column("split"), label_rows(rows, task.name), strict=True):
            answer = task.top_answer(labels)
            answers[site][answer] += 1
            if answer is not None and split == "train":
                in_training[site][answer] += 1
    prior = {site: counts.most_common(1)[0][0] for site, counts in in_training.items()}
    for name, sites in _groups(answers):
        together: Counter[int | str | None] = Counter()
        for site in sites:
            together.update(answers[site])
        num_rows = together.total()
        del together[None]
        yield {
            "task": task.name,
            "sites": name,
            "rows": num_rows,
            "labelled": together.total(),
            "trivial": sum(answers[site][prior[site]] for site in sites if site in prior),
            "commonest": [
                [repr(texts[answer]) if isinstance(answer, int) else answer, count]
                for answer, count in together.most_common(_NUM_COMMONEST)
            ],
        }


def _groups(sites: Iterable[str]) -> list[tuple[str, list[str]]]:
    """("all", every site), each group with its sites, and, if they are few, each site alone."""
    parsed = sorted((DiffSite.parse(site) for site in sites), key=lambda s: (s.layer, s.end or 0, s.head or 0))
    groups = [("all", [str(site) for site in parsed])]
    for group in SITE_GROUPS.values():
        if members := [str(site) for site in parsed if site.group == group]:
            groups.append((group, members))
    if len(parsed) <= MAX_SINGLE_SITES:
        groups += [(site, [site]) for _, members in groups[1:] for site in members]
    return groups


def useless(lines: Iterable[Line], counts: Mapping[str, int]) -> list[str]:
    """A warning for each split without rows, each task without labels, each group of sites with mostly trivial ones.

    Args:
        lines: What `label_distribution` gives.
        counts: The manifest's: rows by split.
    """
    groups, lines = ("all", *SITE_GROUPS.values()), list(lines)
    warnings = [
        f"no {split} rows: use more documents (a document is in one split as a whole)"
        for split in SPLITS
        if not counts[split]
    ]
    for line in lines:
        what, sites, labelled = line["task"], line["sites"], line["labelled"]
        if sites == "all" and not labelled:
            warnings.append(f"{what}: no row has a label at these sites")
        if sites in groups and line["trivial"] > TRIVIAL_WARNING * labelled:
            warnings.append(
                f"{what}: {line['trivial'] / labelled:.0%} of the labels of {sites} are trivial: the same top answer "
                "as their site's commonest, so knowing the site is enough"
            )
    return warnings


def cells(line: Line) -> tuple[str, str, str, str, str, list[tuple[str, int]]]:
    """A line under `HEADER`, for people; the answers stay apart, as each medium has its own way to write tokens."""
    share = f" ({line['trivial'] / line['labelled']:.0%})" if line["labelled"] else ""
    numbers = (str(line["rows"]), str(line["labelled"]), f"{line['trivial']}{share}")
    return (line["task"], line["sites"], *numbers, [(str(answer), int(n)) for answer, n in line["commonest"]])


def print_distribution(lines: Sequence[Line]) -> None:
    """Prints the table; 130 columns wide where there is no terminal to ask."""
    console = Console() if sys.stdout.isatty() else Console(width=130)
    table = Table(title="labels by task and site: trivial ones need no diff")
    for name in HEADER:
        table.add_column(name)
    task = lines[0]["task"]
    for line in lines:
        if line["task"] != task:
            table.add_section()
            task = line["task"]
        *plain, answers = cells(line)
        table.add_row(*plain, escape(", ".join(f"{answer} {count}" for answer, count in answers)))
    console.print(table)
