"""Text sources. The first step of the dataflow: a corpus is a stream of documents with stable ids.

Every source is a stream: what is held does not grow with the corpus.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import itertools
import json
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from tqdm import tqdm

from data_gen.text_files import read_texts, text_in

# Generated tables and grammars: text that nobody wrote for a reader.
_NOT_PROSE = ("encodings", "test", "tests", "idle_test", "site-packages", "lib2to3", "pydoc_data", "__pycache__")
# A broken connection is an error of whichever HTTP library this version of huggingface_hub stands on.
_NETWORK_ERRORS: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)


@dataclass(frozen=True)
class Document:
    """One text with an id that does not change between runs."""

    doc_id: str
    text: str


@dataclass
class CorpusConfig:
    """Where text comes from."""

    name: str = "pydoc"
    """`pydoc` (CPython's language reference and docstrings, offline), `text_files` or `hub`."""
    path: str | None = None
    """`text_files`: a folder of .txt files (a document each), .jsonl and .parquet files (a document a row), mixed as
    they come; or one file of these. A single .txt file is cut between paragraphs (at blank lines) into documents of at
    least 1000 characters. Passages and rows have the ids FILE#0, FILE#1, …"""
    hub_name: str | None = None
    """`hub`: the id of a dataset on the Hugging Face hub, read as a stream."""
    hub_config: str | None = None
    """`hub`: the dataset's configuration."""
    hub_split: str = "train"
    """`hub`: the dataset's split."""
    text_column: str = "text"
    """`hub`, and .jsonl and .parquet files: the column that holds the text."""


def iter_documents(config: CorpusConfig) -> Iterator[Document]:
    """Yields the corpus's documents in a fixed order.

    Raises:
        ValueError: The corpus is unknown, has no path, cannot be read, has no such column, or holds no document.
    """
    sources = {"pydoc": _pydoc, "text_files": _text_files, "hub": _hub}
    if config.name not in sources:
        raise ValueError(f"unknown corpus {config.name!r}: choose from {', '.join(sources)}")
    empty = True
    for document in sources[config.name](config):
        empty = False
        yield document
    if empty:
        raise ValueError(f"corpus {config.name!r} is empty: no document with text was found")


def describe_corpus(config: CorpusConfig, max_documents: int) -> dict[str, Any]:
    """What the manifest says of the corpus; part of the dataset's hash, so a changed text is another dataset.

    Text on this machine is read and hashed with its ids, whatever folder it lies in, as far as a build reads it:
    `documents` is the number of documents, `max_documents` at most. A hub's dataset is taken at its word.

    Raises:
        ValueError: As `iter_documents`.
    """
    if config.name == "hub":
        return {
            "name": "hub",
            "hub_name": config.hub_name,
            "hub_config": config.hub_config,
            "hub_split": config.hub_split,
            "text_column": config.text_column,
        }
    digest, num_documents = hashlib.sha256(), 0
    documents = itertools.islice(iter_documents(config), max_documents)
    # The bar stands aside for text that is read in a moment.
    for document in tqdm(documents, desc="reading", unit=" documents", delay=5, total=None):
        digest.update(json.dumps([document.doc_id, document.text]).encode())
        num_documents += 1
    about = {"name": config.name, "documents": num_documents, "sha256": digest.hexdigest()}
    return about | {"python": platform.python_version()} if config.name == "pydoc" else about


def stdlib_sources() -> Iterator[tuple[str, str]]:
    """(module name, source) of every module of the standard library but tests and generated tables, sorted."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if any(part in _NOT_PROSE for part in relative.parts):
            continue
        try:
            yield ".".join(relative.with_suffix("").parts), file.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a few old modules declare another encoding
            continue


def pydoc_documents(min_chars: int = 200) -> Iterator[Document]:
    """The language reference's topics, then every docstring of the standard library of at least `min_chars`."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Document(f"topics/{name}", topics[name].strip())
    for module, source in stdlib_sources():
        for qualified_name, docstring in docstrings(ast.parse(source), module.removesuffix(".__init__")):
            if len(docstring) >= min_chars:
                yield Document(f"docstrings/{qualified_name}", docstring)


@cache
def _pydoc_once() -> tuple[Document, ...]:
    """Parsing the standard library takes seconds, and a build reads the corpus twice: to name it and to measure it."""
    return tuple(pydoc_documents())


def _pydoc(config: CorpusConfig) -> Iterator[Document]:
    return iter(_pydoc_once())


def docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of a parsed module and of every class and function in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if docstring := ast.get_docstring(node):
            yield name, inspect.cleandoc(docstring)
        for child in node.body:
            yield from docstrings(child, f"{name}.{getattr(child, 'name', '')}")


def _text_files(config: CorpusConfig) -> Iterator[Document]:
    if config.path is None:
        raise ValueError("corpus text_files needs a path: add corpus.path=FILE_OR_FOLDER")
    path = Path(config.path)
    if not path.exists():
        raise ValueError(f"corpus.path={config.path} does not exist")
    return itertools.starmap(Document, read_texts(path, config.text_column))


def _hub(config: CorpusConfig) -> Iterator[Document]:
    if config.hub_name is None:
        raise ValueError("corpus hub needs a dataset: add corpus.hub_name=ID")
    from datasets import load_dataset

    try:
        rows = load_dataset(config.hub_name, config.hub_config, split=config.hub_split, streaming=True)
        for index, row in enumerate(rows):
            if text := text_in(row, config.text_column, f"{config.hub_name} row {index}"):
                yield Document(f"{config.hub_name}/{config.hub_split}/{index}", text)
    except _NETWORK_ERRORS as error:
        first_line = str(error).partition("\n")[0]
        raise ValueError(
            f"cannot read {config.hub_name!r} from the Hugging Face hub ({first_line}): check the id, the network and "
            "that HF_HUB_OFFLINE is not set, then run the same command again, which goes on where it stopped; or fetch "
            "the files elsewhere and use corpus=text_files"
        ) from error
