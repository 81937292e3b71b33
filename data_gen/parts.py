"""Writes a dataset part by part, so that many jobs can write it and a killed one goes on. Between measurement and disk.

While parts are missing they lie in NAME.partial/whole beside the dataset's place, each put there in one step together
with its counts: what has a part's name is whole. The job that finds all of them there adds the manifest and the card
and renames the folder; unfinished files lie in NAME.partial itself and are never part of a dataset. Nothing is locked:
jobs that write the same part write the same bytes, and of jobs that close at once the first wins.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diff_oracle import __version__
from diff_oracle.records import CONVENTIONS, MANIFEST, SCHEMA_VERSION, SPLITS, file_hash, git_commit, is_dataset

logger = logging.getLogger(__name__)

_COUNTS = b"diff_oracle.counts"
CARD = "README.md"


class DatasetWriter:
    """The parts of a dataset that is not whole yet."""

    def __init__(self, path: Path, columns: pa.Schema) -> None:
        self.path, self._columns = path, columns
        self._partial = path.with_name(f"{path.name}.partial")
        self.whole = self._partial / "whole"

    def counts(self, part: int) -> dict[str, int] | None:
        """What a whole part holds, as `write` was told; None where it is missing. A damaged one is removed."""
        file = self.file(part)
        try:
            return _read_counts(file)
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # a real one, not arrow's own use of it
                raise
            logger.warning("%s cannot be read and is measured again", file)
            file.unlink(missing_ok=True)
            return None

    def missing(self, num_parts: int) -> list[int]:
        """The parts that are not there, of any job."""
        return [part for part in range(num_parts) if self.counts(part) is None]

    def file(self, part: int) -> Path:
        """Where a whole part lies."""
        return self.whole / f"part-{part:05d}.parquet"

    def write(self, part: int, rows: Mapping[str, Any], counts: Mapping[str, int]) -> None:
        """Writes a part; `rows` maps each column to its values, and nothing to a part without rows."""
        arrays = {f.name: pa.array(rows.get(f.name, []), type=f.type) for f in self._columns}
        counts = {**counts, **{split: list(rows.get("split", [])).count(split) for split in SPLITS}}
        columns = self._columns.with_metadata({_COUNTS: json.dumps(counts)})
        with self._put(self.file(part)) as file:
            pq.write_table(pa.table(arrays, schema=columns), file, write_page_checksum=True)

    def manifest(self, num_parts: int, content: Mapping[str, Any]) -> dict[str, Any]:
        """Says what the whole dataset is.

        Raises:
            ValueError: No part has a row, or one is damaged.
        """
        counts: dict[str, int] = {}
        parts = []
        for part in range(num_parts):
            file = self.file(part)
            of_part = _read_counts(file)
            self._check(file)
            for name, value in of_part.items():
                counts[name] = counts.get(name, 0) + value
            rows = sum(of_part[split] for split in SPLITS)
            parts.append({"file": file.name, "rows": rows, "sha256": file_hash(file)})
        if not any(counts[split] for split in SPLITS):
            shutil.rmtree(self._partial)  # going on from here would lead to the same end
            raise ValueError(
                f"no rows: {counts}. Documents shorter than sampling.min_position + 1 tokens are left out: lower it or "
                "bring longer text"
            )
        return {
            "schema_version": SCHEMA_VERSION,
            **content,
            "conventions": CONVENTIONS,
            "counts": counts,
            "parts": parts,
            "package_version": __version__,
            "git_commit": git_commit(),
        }

    @staticmethod
    def _check(file: Path) -> None:
        """Reads a whole part by its checksums: a disk may have damaged it since a job wrote it."""
        try:
            pq.read_table(file, page_checksum_verification=True, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            file.unlink()
            raise ValueError(
                f"{file} was damaged on the disk and is removed: run the same command again to measure it anew"
            ) from error

    def close(self, manifest: Mapping[str, Any], card: str) -> None:
        """Makes the parts a dataset."""
        for name, text in ((CARD, card), (MANIFEST, json.dumps(manifest, indent=2) + "\n")):
            with self._put(self.whole / name) as file:
                file.write_text(text, encoding="utf-8")
        try:
            self.whole.rename(self.path)
        except OSError:
            if not is_dataset(self.path):  # else another job was first, with the same content
                raise

    @contextmanager
    def _put(self, place: Path) -> Iterator[Path]:
        """Gives a file to write, which is at `place` once it is whole."""
        self.whole.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._partial, prefix="unfinished-") as folder:
            file = Path(folder) / place.name
            yield file
            file.replace(place)

    def tidy_up(self) -> None:
        """Removes what a dataset that is whole has left over, else only folders that are empty."""
        if is_dataset(self.path):
            shutil.rmtree(self._partial, ignore_errors=True)
            return
        for folder in (self.whole, self._partial):
            with contextlib.suppress(OSError):  # it holds whole parts, or files of other jobs, or was never made
                folder.rmdir()


def _read_counts(file: Path) -> dict[str, int]:
    counts: dict[str, int] = json.loads(pq.read_schema(file).metadata[_COUNTS])
    return counts


@contextmanager
def writing(path: Path, columns: pa.Schema) -> Iterator[DatasetWriter]:
    """Gives a `DatasetWriter`; after an error whole parts are left and nothing else.

    Raises:
        ValueError: Something that is no dataset is at `path`.
        OSError: There is no space, or no permission to write.
    """
    if path.exists() and not is_dataset(path):
        raise ValueError(f"{path} is in the way: it is no dataset, it has no {MANIFEST}; remove it")
    writer = DatasetWriter(path, columns)
    try:
        yield writer
    except FileNotFoundError:
        if not is_dataset(path):  # else another job has closed the dataset and taken the parts away
            raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(
                errno.ENOSPC, "no space left for the dataset: free some or set data_dir=DIR", str(path)
            ) from error
        raise
    finally:
        writer.tidy_up()
