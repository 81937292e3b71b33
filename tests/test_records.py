import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diff_oracle import records
from diff_oracle.records import MANIFEST, open_dataset, split_of
from tests.toy_dataset import SUBJECT, write_toy


def open_toy(path: Path) -> records.DiffDataset:
    return open_dataset(path, SUBJECT["weights_hash"], SUBJECT["tokenizer_hash"])


def test_what_is_written_is_read_split_by_split(tmp_path: Path) -> None:
    dataset = open_toy(write_toy(tmp_path / "toy"))
    train = dataset.split("train")
    assert [r.doc_id for r in train.take([1, 0])] == ["doc2", "doc0"]
    assert train[1].diff.dtype == np.float32
    assert train[1].diff.tolist() == [2, 2, 2, 2]
    assert train[1].relative_size == pytest.approx(4 / 2)
    assert train[0].labels["suppressed_ids"].tolist() == [3, 4]
    assert dataset.manifest["counts"] == {"documents": 5, "train": 2, "select": 1, "test": 2}
    assert dataset.split("test").doc_ids == ["doc1", "doc1"]


def test_parts_are_plain_parquet_with_the_contract_s_types(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy")
    assert pq.read_schema(path / "part-00000.parquet").field("diff").type == pa.list_(pa.float32(), 4)
    assert pq.read_table(path / "part-00001.parquet")["split"].to_pylist() == ["select", "test"]


@pytest.mark.parametrize("key", ["weights_hash", "tokenizer_hash"])
def test_another_subject_is_refused(tmp_path: Path, key: str) -> None:
    path = write_toy(tmp_path / "toy")
    hashes = SUBJECT | {key: "0" * 64}
    with pytest.raises(ValueError, match=f"another subject: toy with {key}"):
        open_dataset(path, hashes["weights_hash"], hashes["tokenizer_hash"])


def test_one_changed_byte_is_found(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy")
    part = path / "part-00001.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(ValueError, match=r"part-00001.parquet is missing or corrupt"):
        open_toy(path)


def test_a_missing_part_a_missing_manifest_and_another_schema_are_refused(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy")
    (path / "part-00000.parquet").unlink()
    with pytest.raises(ValueError, match="missing or corrupt"):
        open_toy(path)
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | {"schema_version": 0}))
    with pytest.raises(ValueError, match="schema version 0"):
        open_toy(path)
    (path / MANIFEST).unlink()
    with pytest.raises(ValueError, match="no dataset"):
        open_toy(path)


@pytest.mark.parametrize("change", [{"layer": "counted from 1"}, {"steering": "none"}])
def test_other_conventions_are_refused(tmp_path: Path, change: dict[str, str]) -> None:
    path = write_toy(tmp_path / "toy")
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["conventions"] |= change
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"built with another convention for {next(iter(change))}: .*: build it again"):
        open_toy(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "JSONDecodeError"),
        ('{"schema_version": 2', "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'schema_version'"),
        ('{"schema_version": 2, "counts": {}, "parts": []}', "KeyError: 'subject'"),
        ('{"schema_version": 2, "counts": {}, "parts": [], "subject": {"name": "toy"}}', "KeyError: 'weights_hash'"),
        ('{"schema_version": 2, "counts": {}, "parts": [{"file": "x"}], "subject": %s}', "KeyError: 'sha256'"),
    ],
)
def test_a_damaged_manifest_is_refused_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = write_toy(tmp_path / "toy")
    (path / MANIFEST).write_text(content.replace("%s", json.dumps(SUBJECT)))
    with pytest.raises(ValueError, match=f"{MANIFEST} is damaged .{said}") as caught:
        open_toy(path)
    assert type(caught.value) is ValueError and "\n" not in str(caught.value)


def test_a_folder_s_name_is_no_column(tmp_path: Path) -> None:
    dataset = open_toy(write_toy(tmp_path / "seed=1" / "site=L9"))
    assert dataset.split("train").sites == ["L0", "L0"]


@given(st.text(min_size=1))
def test_the_same_words_are_in_the_same_split(text: str) -> None:
    assert split_of(text) == split_of(f"  {text}\n") == split_of(" ".join(text.split()))


def test_splits_have_their_shares() -> None:
    splits = [split_of(f"document {i}") for i in range(4000)]
    assert splits.count("test") / 4000 == pytest.approx(0.2, abs=0.03)
    assert splits.count("select") / 4000 == pytest.approx(0.1, abs=0.03)


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy", [["train"]])
    with pytest.raises(ValueError, match="has no test rows"):
        open_toy(tmp_path / "toy").split("test")
