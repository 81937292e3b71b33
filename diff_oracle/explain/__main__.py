"""Explains what sites of a model did at positions of a text, each claim beside what was measured.

    python -m diff_oracle.explain oracle=runs/demo text="The value is returned by the" position=-1 sites=heads
    python -m diff_oracle.explain oracle=runs/demo text_file=notes.txt position=all sites=[L5H3,L7] rank=skip_kl
    python -m diff_oracle.explain oracle=runs/demo texts=[one,another] position=[-2,-1] sites=layers run_dir=runs/mine

Prints the sites that matter most (`rank`) and the share of right claims; the run directory gets explanations.json,
explanations.parquet and explanations.html. Killed, the same command with the run directory that it had named goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from tqdm import tqdm

from data_gen.text_files import read_texts
from diff_oracle import __version__
from diff_oracle.cli import entry_point
from diff_oracle.explain.answering import AUTO
from diff_oracle.explain.asking import Explainer
from diff_oracle.explain.explanations import RANKS, Explanations
from diff_oracle.explain.page import render_page
from diff_oracle.explain.store import Store
from diff_oracle.explain.table import print_explanations
from diff_oracle.oracle.model import Oracle
from diff_oracle.subject.loading import pick_device
from diff_oracle.subject.model import Subject
from diff_oracle.tasks import TASKS, make_tasks

logger = logging.getLogger(__name__)

OUTPUTS = ("json", "parquet", "html")


@dataclass
class SiteNames:
    """Which sites are explained."""

    names: list[str] = field(default_factory=lambda: ["heads"])
    """Single sites (L5H3) or sets (layers, components, heads, spans)."""


@dataclass
class ExplainConfig:
    """What to explain."""

    oracle: str = "???"
    """A run directory of `diff_oracle.train`, an oracle's folder, or the id of one on the Hugging Face hub."""
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
    tasks_asked: list[str] = field(default_factory=list)
    """Tasks whose standard questions are asked; those that the oracle was trained with if none are named."""
    free_question: str | None = AUTO
    """What brings the free explanation; null asks for none, `auto` too unless the oracle was trained to give one."""
    rank: str = "size"
    """What counts as large: `size`, `direct_effect` or `skip_kl`."""
    show: int = 8
    """Explanations that are printed."""
    save: list[str] = field(default_factory=lambda: list(OUTPUTS))
    """What is written: json, parquet, html."""
    batch_size: int = 256
    """Sites that are explained together; a kill costs one batch."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""
    run_dir: str | None = None
    """Where explanations go. A run directory that holds some, of the same texts, is gone on with."""

    def __post_init__(self) -> None:
        if self.rank not in RANKS:
            raise ValueError(f"unknown rank {self.rank!r}: choose from {', '.join(RANKS)}")
        if unknown := [name for name in self.save if name not in OUTPUTS]:
            raise ValueError(f"unknown output {unknown[0]!r} in save: choose from {', '.join(OUTPUTS)}")
        if unknown := [name for name in self.tasks_asked if name not in TASKS]:
            raise ValueError(f"unknown task {unknown[0]!r} in tasks_asked: choose from {', '.join(TASKS)}")
        if self.show < 0 or self.batch_size < 1:
            raise ValueError(
                f"show must be at least 0 and batch_size at least 1, got {self.show} and {self.batch_size}"
            )


def run(config: ExplainConfig) -> None:
    """Loads, explains what is missing, writes, prints."""
    assert config.run_dir is not None  # the command sets it
    folder, texts = Path(config.run_dir), read_config_texts(config)
    if (folder / "run.json").exists():
        raise ValueError(f"run_dir={folder} is a run's own folder: choose another one")
    explainer = load_explainer(
        config.oracle,
        config.tasks_asked,
        config.device,
        free_question=config.free_question,
        batch_size=config.batch_size,
    )
    read = [explainer.read(text) for text in texts]
    queries = explainer.queries(read, config.sites.names, config.position)
    settings = {
        "oracle": _fingerprint(config.oracle),
        "texts": texts,
        "tasks": {task.name: asdict(task.config) for task in explainer.tasks},
        "free_question": explainer.free_question,
        "version": __version__,
    }
    store = Store(folder, settings)
    keys = [(query.text, query.position, str(query.site)) for query in queries]
    missing = [query for query, key in zip(queries, keys, strict=True) if key not in store.finished]
    logger.info("explaining in %s: %d of %d are there", folder, len(queries) - len(missing), len(queries))
    logger.info("if it is killed, the same command with run_dir=%s goes on", folder)
    with tqdm(desc="explaining", unit=" sites", total=len(queries), initial=len(queries) - len(missing)) as bar:
        for part in explainer.explain(read, missing):
            store.add(part)
            bar.update(len(part))
    items = [store.finished[key] for key in keys]
    found = Explanations(explainer.subject.identity.name, config.oracle, explainer.conventions, read, items)
    written = write(found, folder, config.save)
    print_explanations(found, config.rank, config.show)
    for path in written:
        print(path)


def write(explanations: Explanations, folder: Path, outputs: Sequence[str]) -> list[Path]:
    """Writes explanations in these forms; returns the files."""
    page = folder / "explanations.html"
    written = explanations.save(folder, [name for name in outputs if name != "html"])
    if "html" in outputs:
        page.write_text(render_page(explanations), encoding="utf-8")
        written.append(page)
    return written


def load_explainer(oracle: str, tasks_asked: Sequence[str] = (), device: str = "auto", **options: Any) -> Explainer:
    """An oracle with its subject.

    Args:
        oracle: A run directory, an oracle's folder, or an id on the hub.
        tasks_asked: Tasks by name; those of the run where there is one, else all, if none are named.
        device: Where models go.
        options: Of `Explainer`.

    Raises:
        ValueError: There is no such oracle, or its run cannot be read.
    """
    folder = Path(oracle)
    settings: dict[str, Any] = {name: {} for name in TASKS}
    if (folder / "run.json").is_file():
        try:
            settings = json.loads((folder / "run.json").read_text())["config"]["tasks"]
        except (KeyError, TypeError, ValueError) as error:  # cut off, edited by hand, or by another version
            raise ValueError(f"{folder / 'run.json'} cannot be read: {type(error).__name__}: {error}") from error
    tasks = make_tasks({name: settings.get(name, {}) for name in (tasks_asked or settings)})
    device = pick_device(device)
    loaded = Oracle.from_pretrained(_oracle_folder(oracle), device)
    return Explainer(Subject.load(loaded.base, device), loaded, tasks, **options)


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


def _oracle_folder(oracle: str) -> str:
    """A run directory's oracle; everything else as it is."""
    inside = Path(oracle) / "oracle"
    return str(inside) if inside.is_dir() else oracle


def _fingerprint(oracle: str) -> str:
    """Changes when an oracle does; of one on the hub, its id."""
    file = Path(_oracle_folder(oracle)) / "oracle.json"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else oracle


def hydra_words(words: Sequence[str]) -> list[str]:
    """A command line as Hydra is to read it.

    `text=…` reaches the configuration as it was typed: Hydra's grammar would take commas, braces and quotes apart and
    look `${…}` up. `sites=…`, which Hydra would take for a choice of the config group, names sites.
    """
    result = []
    for word in words:
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
