import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diff_oracle import records
from diff_oracle.records import MANIFEST, open_dataset, schema, split_of, writing

COLUMNS = schema(4, ["logit_lens"])
SUBJECT = {"name": "toy", "weights_hash": "w" * 64, "tokenizer_hash": "t" * 64}


def toy_rows(splits: list[str]) -> dict[str, list[Any]]:
    n = len(splits)
    return {
        "doc_id": [f"doc{i}" for i in range(n)],
        "split": splits,
        "site": ["L0"] * n,
        "position": [8] * n,
        "token_ids": [list(range(9))] * n,
        "diff": [np.full(4, i, np.float32) for i in range(n)],
        "before": [np.ones(4, np.float32)] * n,
        "diff_norm": [1.0] * n,
        "before_norm": [2.0] * n,
        "promoted_ids": [[1, 2]] * n,
        "promoted_scores": [[2.0, 1.0]] * n,
        "suppressed_ids": [[3, 4]] * n,
        "suppressed_scores": [[-2.0, -1.0]] * n,
    }


def write_toy(path: Path) -> Path:
    with writing(path, COLUMNS) as writer:
        writer.write_shard(toy_rows(["train", "test", "train"]))
        writer.write_shard(toy_rows(["select", "test"]))
        writer.write_manifest({"subject": SUBJECT}, {"documents": 5})
    return path


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


def test_shards_are_plain_parquet_with_the_contract_s_types(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy")
    assert pq.read_schema(path / "shard-00000.parquet").field("diff").type == pa.list_(pa.float32(), 4)
    assert pq.read_table(path / "shard-00001.parquet")["split"].to_pylist() == ["select", "test"]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "toy", COLUMNS) as writer:
        writer.write_shard(toy_rows(["train"]))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_dataset_leave_the_first_that_ends(tmp_path: Path) -> None:
    path = tmp_path / "toy"
    with writing(path, COLUMNS) as slow:
        slow.write_shard(toy_rows(["train"] * 7))
        write_toy(path)
        slow.write_manifest({"subject": SUBJECT}, {})
    assert open_toy(path).manifest["counts"]["train"] == 2
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_dataset_is_in_the_way_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "toy"
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="in the way: .* remove it"), writing(path, COLUMNS):
        pytest.fail("was let in")
    assert [file.name for file in tmp_path.rglob("*")] == ["toy", "notes.txt"]


def test_a_dataset_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert write_toy(tmp_path / "toy").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_full_disk_is_said_plainly_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records.pq, "write_table", full)
    with pytest.raises(OSError, match="set data_dir=DIR") as caught, writing(tmp_path / "toy", COLUMNS) as writer:
        writer.write_shard(toy_rows(["train"]))
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_no_rows_is_an_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="min_position"), writing(tmp_path / "toy", COLUMNS) as writer:
        writer.write_manifest({"subject": SUBJECT}, {"documents": 3})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["weights_hash", "tokenizer_hash"])
def test_another_subject_is_refused(tmp_path: Path, key: str) -> None:
    path = write_toy(tmp_path / "toy")
    hashes = SUBJECT | {key: "0" * 64}
    with pytest.raises(ValueError, match=f"another subject: toy with {key}"):
        open_dataset(path, hashes["weights_hash"], hashes["tokenizer_hash"])


def test_one_changed_byte_is_found(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy")
    shard = path / "shard-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00001.parquet is missing or corrupt"):
        open_toy(path)


def test_a_missing_shard_a_missing_manifest_and_another_schema_are_refused(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy")
    (path / "shard-00000.parquet").unlink()
    with pytest.raises(ValueError, match="missing or corrupt"):
        open_toy(path)
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | {"schema_version": 0}))
    with pytest.raises(ValueError, match="schema version 0"):
        open_toy(path)
    (path / MANIFEST).unlink()
    with pytest.raises(ValueError, match="no dataset"):
        open_toy(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "JSONDecodeError"),
        ('{"schema_version": 1', "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'schema_version'"),
        ('{"schema_version": 1, "counts": {}, "shards": []}', "KeyError: 'subject'"),
        ('{"schema_version": 1, "counts": {}, "shards": [], "subject": {"name": "toy"}}', "KeyError: 'weights_hash'"),
        ('{"schema_version": 1, "counts": {}, "shards": [{"file": "x"}], "subject": %s}', "KeyError: 'sha256'"),
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


def test_opening_copies_nothing_into_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records.datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert len(open_toy(write_toy(tmp_path / "toy")).split("train")) == 2
    assert not (tmp_path / "cache").exists()


@given(st.text(min_size=1))
def test_the_same_words_are_in_the_same_split(text: str) -> None:
    assert split_of(text) == split_of(f"  {text}\n") == split_of(" ".join(text.split()))


def test_splits_have_their_shares() -> None:
    splits = [split_of(f"document {i}") for i in range(4000)]
    assert splits.count("test") / 4000 == pytest.approx(0.2, abs=0.03)
    assert splits.count("select") / 4000 == pytest.approx(0.1, abs=0.03)


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    with writing(tmp_path / "toy", COLUMNS) as writer:
        writer.write_shard(toy_rows(["train"]))
        writer.write_manifest({"subject": SUBJECT}, {})
    with pytest.raises(ValueError, match="has no test rows"):
        open_toy(tmp_path / "toy").split("test")
