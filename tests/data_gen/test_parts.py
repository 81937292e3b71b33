"""What has a part's name is whole; a dataset is there once, whoever ends first; errors leave whole parts alone."""

import errno
from pathlib import Path

import pytest

from data_gen import parts
from data_gen.parts import writing
from diff_oracle.records import DiffDataset, is_dataset, open_dataset
from tests.toy_dataset import COLUMNS, SUBJECT, toy_rows, write_toy


def open_toy(path: Path) -> DiffDataset:
    return open_dataset(path, SUBJECT["weights_hash"], SUBJECT["tokenizer_hash"])


def names(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*"))


def test_a_dataset_is_parts_a_manifest_and_a_card(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    files = ["README.md", "manifest.json", "part-00000.parquet", "part-00001.parquet"]
    assert names(tmp_path) == ["toy", *(f"toy/{file}" for file in files)]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("not finite"), OSError("broken disk")])
def test_after_an_error_the_next_run_has_the_whole_parts_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "toy"
    with pytest.raises(type(error)), writing(path, COLUMNS):
        raise error
    assert names(tmp_path) == []
    with pytest.raises(type(error)), writing(path, COLUMNS) as writer:
        writer.write(3, toy_rows(["train", "test"]), {"documents": 7})
        raise error
    assert names(tmp_path) == ["toy.partial", "toy.partial/whole", "toy.partial/whole/part-00003.parquet"]
    with writing(path, COLUMNS) as writer:
        assert writer.counts(3) == {"documents": 7, "train": 1, "select": 0, "test": 1}
        assert writer.missing(5) == [0, 1, 2, 4]


def test_a_part_without_rows_is_a_part(tmp_path: Path) -> None:
    with writing(tmp_path / "toy", COLUMNS) as writer:
        writer.write(0, {}, {"documents": 2})
        assert writer.counts(0) == {"documents": 2, "train": 0, "select": 0, "test": 0}
    assert len(open_toy(write_toy(tmp_path / "other", [[], ["train"]])).split("train")) == 1


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"\0" * 5000])
def test_a_damaged_part_is_missing(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with writing(tmp_path / "toy", COLUMNS) as writer:
        for part in range(2):
            writer.write(part, toy_rows(["train"]), {})
        content = writer.file(1).read_bytes()
        writer.file(1).write_bytes(damage or content[:-50])
        assert writer.missing(2) == [1]
        assert "part-00001.parquet cannot be read and is measured again" in caplog.text
        writer.write(1, toy_rows(["train"]), {})
        assert writer.file(1).read_bytes() == content


def test_two_writers_of_one_dataset_leave_the_first_that_ends(tmp_path: Path) -> None:
    path = tmp_path / "toy"
    with writing(path, COLUMNS) as slow:
        slow.write(0, toy_rows(["train", "test", "train"]), {"documents": 3})
        write_toy(path)
        slow.write(1, toy_rows(["select", "test"]), {"documents": 2})
    assert open_toy(path).manifest["counts"]["train"] == 2
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("moment", ["file", "rename"])
def test_whoever_closes_second_is_content(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one closes while this one reads the parts, or between its manifest and its renaming."""
    path = tmp_path / "toy"
    with writing(path, COLUMNS) as second:
        for part, splits in enumerate((["train", "test", "train"], ["select", "test"])):
            second.write(part, toy_rows(splits), {"documents": len(splits)})
        manifest = second.manifest(2, {"subject": SUBJECT})
        if moment == "file":
            write_toy(path)
            second.manifest(2, {"subject": SUBJECT})
            pytest.fail("read parts that are gone")
        rename = Path.rename

        def late(self: Path, target: Path) -> Path:
            if self == second.whole:
                monkeypatch.undo()
                write_toy(path)
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", late)
        second.close(manifest, "A toy.\n")
    assert open_toy(path).manifest["counts"]["train"] == 2
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_dataset_is_in_the_way_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "toy"
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="in the way: .* remove it"), writing(path, COLUMNS):
        pytest.fail("was let in")
    assert names(tmp_path) == ["toy", "toy/notes.txt"]


def test_a_dataset_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").touch()
    path = write_toy(tmp_path / "toy")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert {file.stat().st_mode for file in path.iterdir()} == {(tmp_path / "plain" / "file").stat().st_mode}


def test_a_full_disk_is_said_plainly_and_leaves_whole_parts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="set data_dir=DIR") as caught, writing(tmp_path / "toy", COLUMNS) as writer:
        writer.write(0, toy_rows(["train"]), {})
        monkeypatch.setattr(parts.pq, "write_table", full)
        writer.write(1, toy_rows(["train"]), {})
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["toy.partial", "toy.partial/whole", "toy.partial/whole/part-00000.parquet"]


def test_no_rows_is_an_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="min_position"), writing(tmp_path / "toy", COLUMNS) as writer:
        writer.write(0, {}, {"documents": 3})
        writer.manifest(1, {"subject": SUBJECT})
    assert names(tmp_path) == []


def test_what_a_killed_job_left_half_written_goes_with_the_last_rename(tmp_path: Path) -> None:
    (tmp_path / "toy.partial" / "unfinished-x").mkdir(parents=True)
    (tmp_path / "toy.partial" / "unfinished-x" / "part-00000.parquet").write_bytes(b"PAR1")
    assert is_dataset(write_toy(tmp_path / "toy"))
    assert [file.name for file in tmp_path.iterdir()] == ["toy"]
