"""Explains what sites of a model did at positions of a text, each claim beside what was measured.

    python -m diff_oracle.explain oracle=runs/demo text="The value is returned by the" position=-1 sites=heads
    python -m diff_oracle.explain oracle=runs/demo text_file=notes.txt position=all sites=[L5H3,L4] rank=skip_kl
    python -m diff_oracle.explain oracle=runs/demo texts=[one,another] position=[-2,-1] sites=layers run_dir=runs/mine
    python -m diff_oracle.explain nla=runs/nla text="…"    # a pair: what it rebuilds of each diff from its words, too

Prints the sites that matter most (`rank`) and the share of right claims, or, with --json, everything; the run directory
gets explanations.json, explanations.parquet and explanations.html. Killed, the same command with the run directory that
it had named goes on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from data_gen.text_files import read_texts
from diff_oracle.cli import entry_point
from diff_oracle.explain.config import AskingConfig
from diff_oracle.explain.running import begin, explain_to_disk, write
from diff_oracle.explain.table import print_explanations


@dataclass
class SiteNames:
    """Which sites are explained."""

    names: list[str] = field(default_factory=lambda: ["heads"])
    """Single sites (L5H3) or sets (layers, components, heads, spans)."""


@dataclass
class ExplainConfig(AskingConfig):
    """What to explain."""

    text: str | None = None
    """A text, taken as it is: it needs no quotes but those of the shell."""
    texts: list[str] = field(default_factory=list)
    """Several texts, in Hydra's grammar."""
    text_file: str | None = None
    """A file: a .txt is one text, a .jsonl or .parquet has a text a row."""
    text_column: str = "text"
    """The key of a .jsonl line, or the column of a .parquet file, that holds the text."""
    position: Any = -1
    """Token indices, negative ones from the end: one, several ([3,-1]) or `all`. Position 0 has no diff."""
    sites: SiteNames = field(default_factory=SiteNames)
    """Which sites. On the command line, sites=L5H3 and sites=[L5H3,layers] are short for sites.names=[…]."""
    output: str = "table"
    """What is printed: a table, or json, which holds what explanations.json does. `--json` is short for output=json."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output not in ("table", "json"):
            raise ValueError(f"unknown output {self.output!r}: choose from table, json")


def run(config: ExplainConfig) -> None:
    """Loads, explains what is missing, writes, prints."""
    texts = read_config_texts(config)
    folder, explainer = begin(config)
    read = [explainer.read(text) for text in texts]
    queries = explainer.queries(read, config.sites.names, config.position)
    found = explain_to_disk(explainer, read, queries, config)
    written = write(found, folder, config.save)
    if config.output == "json":
        print(found.to_json())
        return
    print_explanations(found, config.rank, config.show)
    for path in written:
        print(path)


def read_config_texts(config: ExplainConfig) -> list[str]:
    """The texts that a config names.

    Raises:
        ValueError: It names none, or a file that cannot be read as text.
    """
    texts = [*([] if config.text is None else [config.text]), *config.texts]
    if config.text_file is not None:
        file = Path(config.text_file)
        if file.suffix.lower() in (".jsonl", ".parquet"):
            texts += [text for _, text in read_texts(file, config.text_column)]
        else:
            try:
                texts.append(file.read_text(encoding="utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{file} is not UTF-8 (byte {error.start}): convert it, e.g. with iconv") from error
    if not texts:
        raise ValueError('no text to explain: add text="…", texts=[…,…] or text_file=FILE')
    return texts


def hydra_words(words: Sequence[str]) -> list[str]:
    """A command line as Hydra is to read it.

    `text=…` reaches the configuration as it was typed: Hydra's grammar would take commas, braces and quotes apart and
    look `${…}` up. `sites=…`, which Hydra would take for a choice of the config group, names sites. `--json` is
    short for a value of `output`.
    """
    result = []
    for word in ("output=json" if word == "--json" else word for word in words):
        key, equals, value = word.partition("=")
        if key == "text" and equals:
            # Read twice on its way into the dataclass.
            value = QuotedString(_escape(_escape(value)), Quote.single).with_quotes()
        elif key == "sites" and equals:
            key, value = "sites.names", value if value.startswith("[") else f"[{value}]"
        result.append(key + equals + value)
    return result


def _escape(text: str) -> str:
    return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text)


_command = entry_point("explain", ExplainConfig, run)


def main() -> None:
    """The command line."""
    sys.argv[1:] = hydra_words(sys.argv[1:])
    _command()


if __name__ == "__main__":
    main()
