"""Text on this machine: .txt, .jsonl and .parquet files, read as streams. Under the corpus, at the dataflow's start.

A file is never read as a whole, so that what is held does not grow with it: at most one document, or one batch of a
parquet file's rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SUFFIXES = (".txt", ".jsonl", ".parquet")
_PASSAGE_CHARS = 1000
_PARQUET_BATCH_ROWS = 256


def read_texts(path: Path, text_column: str) -> Iterator[tuple[str, str]]:
    """Yields (id, text) of every text under `path` that is not blank, in a fixed order.

    Args:
        path: A file, or a folder whose .txt, .jsonl and .parquet files are read, those of its folders included. A .txt
            file of a folder is one text; one that stands alone is cut into passages, FILE#0, FILE#1, …: as one text it
            would be in one split, and nothing could be both trained and tested.
        text_column: The key of a .jsonl line, or the column of a .parquet file, that holds the text. The id of such a
            text is FILE#ROW, rows counted from 0.

    Raises:
        ValueError: A file is not what its name says, is not UTF-8, or has no text in that column.
    """
    if path.is_dir():
        for file in _walk(path):
            name = file.relative_to(path).as_posix()
            if file.suffix.lower() == ".txt":
                if text := "\n".join(_lines(file)).strip():
                    yield name, text
            else:
                yield from _numbered(name, _rows(file, text_column))
    elif path.suffix.lower() in (".jsonl", ".parquet"):
        yield from _numbered(path.name, _rows(path, text_column))
    else:
        yield from _numbered(path.name, passages(_lines(path)))


def passages(lines: Iterator[str]) -> Iterator[str]:
    """Neighbouring paragraphs, together until they are long enough; a short rest joins the last passage.

    Paragraphs are parted by blank lines. White space around the whole text is left out.
    """
    done, current = None, None
    for paragraph in _paragraphs(lines):
        if current is None:
            current = paragraph.lstrip()
        elif len(current) < _PASSAGE_CHARS:
            current += "\n\n" + paragraph
        else:
            if done is not None:
                yield done
            done, current = current, paragraph
    if current is None:
        return
    current = current.rstrip()
    if done is not None and len(current) < _PASSAGE_CHARS:
        yield f"{done}\n\n{current}"
    else:
        yield from (passage for passage in (done, current) if passage is not None)


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def _numbered(name: str, texts: Iterator[str]) -> Iterator[tuple[str, str]]:
    """(NAME#ROW, text): blank texts are left out but counted."""
    return ((f"{name}#{row}", text) for row, text in enumerate(texts) if text)


def _walk(folder: Path) -> Iterator[Path]:
    """The files to read, hidden ones left out, each folder's names sorted; only one folder's are held at a time."""
    with os.scandir(folder) as entries:
        found = sorted((e.name, e.is_dir(follow_symlinks=False)) for e in entries if not e.name.startswith("."))
    for name, is_folder in found:
        path = folder / name
        if is_folder:
            yield from _walk(path)
        elif path.suffix.lower() in SUFFIXES and path.is_file():
            yield path


def _lines(file: Path) -> Iterator[str]:
    """A text file's lines without their ends, those of Windows and old Macs included."""
    offset = 0
    with file.open("rb") as stream:
        for raw in stream:  # parted at \n, which no other character holds in UTF-8
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{file} is not UTF-8 (byte {offset + error.start}): convert it, e.g. iconv -f latin1 -t utf-8"
                ) from error
            line = line.removeprefix("\ufeff") if offset == 0 else line  # a byte order mark is no text
            offset += len(raw)
            yield from line.removesuffix("\n").removesuffix("\r").replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _rows(file: Path, column: str) -> Iterator[str]:
    """The column's text, row by row."""
    return _jsonl_rows(file, column) if file.suffix.lower() == ".jsonl" else _parquet_rows(file, column)


def _jsonl_rows(file: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # not of its form, or a number or a nesting beyond reason
            what = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise ValueError(f"{file} line {number} is no JSON ({what}): expected an object a line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{file} line {number} holds a {type(row).__name__}: expected an object a line")
        yield text_in(row, column, f"{file} line {number}")


def _parquet_rows(file: Path, column: str) -> Iterator[str]:
    try:
        with pq.ParquetFile(file) as opened:
            # Of a column that is not there, the first batch's check tells; a file may have no row.
            wanted = [column] if column in opened.schema_arrow.names else None
            row = 0
            for group in range(opened.num_row_groups):  # asked for all at once, arrow holds on to some of each
                for batch in opened.iter_batches(_PARQUET_BATCH_ROWS, row_groups=[group], columns=wanted):
                    for values in batch.to_pylist():
                        yield text_in(values, column, f"{file} row {row}")
                        row += 1
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # a real one, not arrow's own use of it
            raise
        first_line = str(error).partition("\n")[0]
        raise ValueError(
            f"{file} is no parquet file that can be read ({first_line}): fetch or write it anew"
        ) from error


def text_in(row: Mapping[str, Any], column: str, place: str) -> str:
    """The text in a row's column without white space around it; `place` is what an error calls the row.

    Null is no text. Halves of characters that JSON may hold (lone surrogates) become U+FFFD: no tokenizer takes them.

    Raises:
        ValueError: The row has no such column, or something else than text in it.
    """
    if column not in row:
        raise ValueError(f"{place} has no column {column!r}: choose corpus.text_column from {', '.join(row)}")
    text = row[column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(f"{place}: column {column!r} holds a {type(text).__name__}, expected text")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()
