"""Text sources. The first step of the dataflow: a corpus is a stream of documents with stable ids.

Every source yields `Document(doc_id, text)`.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import platform
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# Generated tables and grammars: text that nobody wrote for a reader.
_NOT_PROSE = ("encodings", "test", "tests", "idle_test", "site-packages", "lib2to3", "pydoc_data", "__pycache__")
_PASSAGE_CHARS = 1000


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
    """`text_files`: a folder of .txt files, a document each; or one .txt file, cut between paragraphs (at blank lines)
    into documents of at least 1000 characters, FILE#0, FILE#1, …"""
    hub_name: str | None = None
    """`hub`: the id of a dataset on the Hugging Face hub, read as a stream."""
    hub_config: str | None = None
    """`hub`: the dataset's configuration."""
    hub_split: str = "train"
    """`hub`: the dataset's split."""
    text_column: str = "text"
    """`hub`: the column that holds the text."""


def iter_documents(config: CorpusConfig) -> Iterator[Document]:
    """Yields the corpus's documents in a fixed order.

    Raises:
        ValueError: The corpus is unknown, has no path, holds a file that is not UTF-8, or holds no document.
    """
    sources = {"pydoc": _pydoc, "text_files": _text_file_documents, "hub": _hub_documents}
    if config.name not in sources:
        raise ValueError(f"unknown corpus {config.name!r}: choose from {', '.join(sources)}")
    empty = True
    for document in sources[config.name](config):
        empty = False
        yield document
    if empty:
        raise ValueError(f"corpus {config.name!r} is empty: no document with text was found")


def describe_corpus(config: CorpusConfig) -> dict[str, Any]:
    """What the manifest says of the corpus; part of the dataset's hash, so a changed text is another dataset.

    Text on this machine is read and hashed with its ids, whatever folder it lies in; `documents` is their number. A
    hub's dataset is taken at its word.

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
    for document in iter_documents(config):
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


def _text_files(config: CorpusConfig) -> list[Path]:
    if config.path is None:
        raise ValueError("corpus text_files needs a path: add corpus.path=FILE_OR_FOLDER")
    path = Path(config.path)
    if not path.exists():
        raise ValueError(f"corpus.path={config.path} does not exist")
    return [path] if path.is_file() else sorted(path.rglob("*.txt"))


def _text_file_documents(config: CorpusConfig) -> Iterator[Document]:
    root = Path(config.path or "")
    for file in _text_files(config):
        try:
            text = file.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} is not UTF-8 (byte {error.start}): convert it, e.g. iconv -f latin1 -t utf-8"
            ) from error
        if not text:
            continue
        if root.is_file():  # one document would be in one split, and nothing could be both trained and tested
            yield from (Document(f"{file.name}#{i}", passage) for i, passage in enumerate(_passages(text)))
        else:
            yield Document(file.relative_to(root).as_posix(), text)


def _passages(text: str) -> list[str]:
    """Neighbouring paragraphs, together until they are long enough; a short rest joins the last passage."""
    passages: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        if passages and len(passages[-1]) < _PASSAGE_CHARS:
            passages[-1] += "\n\n" + paragraph
        else:
            passages.append(paragraph)
    if len(passages) > 1 and len(passages[-1]) < _PASSAGE_CHARS:
        rest = passages.pop()
        passages[-1] += "\n\n" + rest
    return passages


def _hub_documents(config: CorpusConfig) -> Iterator[Document]:
    if config.hub_name is None:
        raise ValueError("corpus hub needs a dataset: add corpus.hub_name=ID")
    from datasets import load_dataset

    rows = load_dataset(config.hub_name, config.hub_config, split=config.hub_split, streaming=True)
    for index, row in enumerate(rows):
        if config.text_column not in row:
            raise ValueError(
                f"{config.hub_name} has no column {config.text_column!r}: choose corpus.text_column from "
                f"{', '.join(row)}"
            )
        if text := row[config.text_column].strip():
            yield Document(f"{config.hub_name}/{config.hub_split}/{index}", text)
