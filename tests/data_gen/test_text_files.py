"""Files on this machine become documents with stable ids, none of them read as a whole."""

import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen.text_files import passages, read_texts


def passages_of_the_whole(text: str) -> list[str]:
    """The definition, on a text that is held as a whole."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if found and len(found[-1]) < 1000:
            found[-1] += "\n\n" + paragraph
        else:
            found.append(paragraph)
    if len(found) > 1 and len(found[-1]) < 1000:
        rest = found.pop()
        found[-1] += "\n\n" + rest
    return [passage for passage in found if passage]


blocks = st.lists(
    st.one_of(
        st.sampled_from(["\n", " \n", "\t\n\n", "  indented\n", "word ", "end. \n", "\f\n"]), st.integers(1, 1200)
    ),
    max_size=30,
).map(lambda drawn: "".join("x" * piece if isinstance(piece, int) else piece for piece in drawn))


@given(blocks)
def test_passages_of_lines_are_those_of_the_whole_text(text: str) -> None:
    assert list(passages(iter(text.split("\n")))) == passages_of_the_whole(text)


def write_jsonl(file: Path, rows: list[Any]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_folder_may_mix_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "novel.txt").write_text("A novel.\r\nIts end.\n")
    write_jsonl(tmp_path / "a.jsonl", [{"text": "first"}, {"text": " "}, {"text": "third\n", "id": 3}])
    pq.write_table(pa.table({"id": [1, 2], "text": ["one", "two"]}), tmp_path / "c.parquet")
    (tmp_path / "notes.md").write_text("not read")
    assert list(read_texts(tmp_path, "text")) == [
        ("a.jsonl#0", "first"),
        ("a.jsonl#2", "third"),
        ("b/novel.txt", "A novel.\nIts end."),
        ("c.parquet#0", "one"),
        ("c.parquet#1", "two"),
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_single_file_of_rows_and_another_column(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows{suffix}"
    rows = [{"text": "no", "body": f"Body {i}"} for i in range(600)]
    if suffix == ".jsonl":
        write_jsonl(file, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    assert list(read_texts(file, "body")) == [(f"rows{suffix}#{i}", f"Body {i}") for i in range(600)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.jsonl",
            b'{"text": "x"}\n{"body": "y", "id": 1}\n',
            "a.jsonl line 2 has no column 'text': .* from body, id",
        ),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', "a.jsonl line 3 is no JSON"),
        ("a.jsonl", b'["x"]\n', "a.jsonl line 1 holds a list: expected an object a line"),
        ("a.jsonl", b'{"text": 1}\n', "a.jsonl line 1: column 'text' holds a int, expected text"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, "a.jsonl line 1 is no JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', r"a.jsonl is not UTF-8 \(byte 24\): convert it"),
        ("a.txt", b"fine\n\nvoil\xe0", r"a.txt is not UTF-8 \(byte 10\): convert it"),
        ("a.parquet", b"PAR1 and nothing else", "a.parquet is no parquet file that can be read"),
        ("a.parquet", b"", "a.parquet is no parquet file that can be read"),
    ],
)
@pytest.mark.parametrize("in_folder", [True, False])
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, said: str, in_folder: bool) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        list(read_texts(tmp_path if in_folder else tmp_path / name, "text"))
    assert type(caught.value) is ValueError


def test_parquet_columns_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), file)
    with pytest.raises(
        ValueError, match=r"a.parquet row 0 has no column 'text': choose corpus.text_column from id, body"
    ):
        list(read_texts(file, "text"))
    with pytest.raises(ValueError, match="a.parquet row 0: column 'id' holds a int, expected text"):
        list(read_texts(file, "id"))
    pq.write_table(pa.table({"text": ["x" * 50 + str(i) for i in range(5000)]}), file, compression="none")
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = b"\xff" * 4000
    file.write_bytes(content)
    with pytest.raises(ValueError, match="a.parquet"):
        list(read_texts(file, "text"))


def a_txt(file: Path, times: int) -> None:
    file.write_text(f"{'Of shoes and ships. ' * 20}\n\n" * 200 * times)


def a_jsonl(file: Path, times: int) -> None:
    write_jsonl(file, [{"text": "Of shoes and ships. " * 20}] * 200 * times)


@pytest.mark.parametrize(("name", "write"), [("a.txt", a_txt), ("a.jsonl", a_jsonl)])
def test_a_long_file_needs_no_more_memory(tmp_path: Path, name: str, write: Callable[[Path, int], None]) -> None:
    peaks = []
    for times in (1, 20):
        write(tmp_path / name, times)
        tracemalloc.start()
        assert sum(1 for _ in read_texts(tmp_path / name, "text")) > 60 * times
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_a_long_parquet_file_needs_no_more_memory(tmp_path: Path) -> None:
    peaks = []
    for times in (1, 20):
        file = tmp_path / f"{times}.parquet"
        with pq.ParquetWriter(file, pa.schema({"text": pa.string()})) as writer:
            for group in range(10 * times):
                writer.write_table(pa.table({"text": [f"{i} {group} {'of ships ' * 40}" for i in range(500)]}))
        start, peak = pa.total_allocated_bytes(), 0
        for _ in read_texts(file, "text"):
            peak = max(peak, pa.total_allocated_bytes() - start)
        peaks.append(peak)
    assert peaks[1] < 1.5 * peaks[0]


def test_marks_halves_of_characters_and_nulls(tmp_path: Path) -> None:
    """A byte order mark is no text, half a character is replaced, null is left out; hidden files are not read."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello\r\n")
    rows = [b'{"text": "cut \\ud83d off"}', b'{"text": null}', b'{"text": "whole \\ud83d\\ude00"}']
    (tmp_path / "b.JSONL").write_bytes(b"\xef\xbb\xbf" + b"\n".join(rows))
    (tmp_path / ".hidden.txt").write_text("not for readers")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "folder.txt")
    texts = [("a.txt", "hello"), ("b.JSONL#0", "cut \ufffd off"), ("b.JSONL#2", "whole \U0001f600")]
    assert list(read_texts(tmp_path, "text")) == texts
