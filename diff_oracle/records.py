"""The dataset: its schema, its manifest, opening, splitting. Between measurement and language.

A dataset is a directory of parquet files, its parts, one row per (document, position, site); `manifest.json`, which
says what was measured, on which model and text, by which conventions; and a card for people. The directory's name ends
in a hash of everything that changes a row. `data_gen.parts` writes it beside its final place and renames it when
whole: with a manifest, it is a whole dataset.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool

from diff_oracle.subject.capture import Diff

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
Split = Literal["train", "select", "test"]
SPLITS: tuple[Split, ...] = ("train", "select", "test")

CONVENTIONS = {
    "layer": "blocks are counted from 0; L{l} = resid_post[l] - resid_pre[l]",
    "position": "token index in the context; the first token is 0 and is never used",
    "diff": "raw float32, never normalised",
    "logit_lens": "direct logit shift: (diff * gamma / sigma_final) W_U, no bias, no softcap, centred over vocabulary",
    "attention": "share of each source position <= p in the weight of the site's heads, summed over heads and blocks; "
    "position 0 is the sink and stands apart; value_weighted: |a_s W_O v_s . w| with w the direction of the head's "
    "write, pattern: a_s; no label (null) for an MLP",
    "layer_skip": "the next-token distribution at the position with the diff taken out of the residual, there "
    "(scope position) or everywhere (scope sequence), and everything behind it run again; probabilities over the whole "
    "vocabulary, of the tokens that a label may name; kl = KL(base || skipped) in nats; deltas = skipped - base",
}

LABEL_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "logit_lens": {
        "promoted_ids": pa.list_(pa.int32()),
        "promoted_scores": pa.list_(pa.float32()),
        "suppressed_ids": pa.list_(pa.int32()),
        "suppressed_scores": pa.list_(pa.float32()),
    },
    "attention": {
        "attended_positions": pa.list_(pa.int32()),
        "attended_ids": pa.list_(pa.int32()),
        "attended_weights": pa.list_(pa.float32()),
        "sink_weight": pa.float32(),
    },
    "layer_skip": {
        "base_ids": pa.list_(pa.int32()),
        "base_probs": pa.list_(pa.float32()),
        "skipped_ids": pa.list_(pa.int32()),
        "skipped_probs": pa.list_(pa.float32()),
        "kl": pa.float32(),
        "gained_ids": pa.list_(pa.int32()),
        "gained_deltas": pa.list_(pa.float32()),
        "lost_ids": pa.list_(pa.int32()),
        "lost_deltas": pa.list_(pa.float32()),
    },
}


def split_of(text: str, select_fraction: float = 0.1, test_fraction: float = 0.2) -> Split:
    """A document's split, from a hash of its text with white space normalised, so one text is in one split."""
    digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
    unit = int.from_bytes(digest[:8], "big") / 2**64
    if unit < test_fraction:
        return "test"
    return "select" if unit < test_fraction + select_fraction else "train"


def schema(d_model: int, tasks: Iterable[str]) -> pa.Schema:
    """The columns of a dataset whose labels are those of `tasks`."""
    vector = pa.list_(pa.float32(), d_model)
    columns = {
        "doc_id": pa.string(),
        "split": pa.string(),
        "site": pa.string(),
        "position": pa.int32(),
        "token_ids": pa.list_(pa.int32()),
        "diff": vector,
        "before": vector,
        "diff_norm": pa.float32(),
        "before_norm": pa.float32(),
    }
    for task in tasks:
        columns |= LABEL_COLUMNS[task]
    return pa.schema(list(columns.items()))


@dataclass(frozen=True)
class Record(Diff):
    """A row of a dataset: a diff, and what was measured about it."""

    doc_id: str
    """The document that the context is from."""
    labels: Mapping[str, Any]
    """The label columns of this row."""


class RecordSet:
    """The rows of one split."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows.combine_chunks()  # rows are taken by index, which is slow from many chunks

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        return self.take([index])[0]

    def take(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        """The records at `indices`, in that order, read in one go."""
        rows = self._rows.take(pa.array(np.asarray(indices, dtype=np.int64)))
        columns = {name: _as_numpy(rows[name]) for name in rows.column_names}
        return [self._record({name: column[i] for name, column in columns.items()}) for i in range(len(rows))]

    def where(self, mask: Bool[np.ndarray, "row"]) -> RecordSet:
        """The rows at which the mask is true."""
        return self if mask.all() else RecordSet(self._rows.filter(pa.array(mask)))

    @property
    def column_names(self) -> set[str]:
        """The columns that the dataset has."""
        return set(self._rows.column_names)

    def column(self, name: str) -> np.ndarray | list[np.ndarray]:
        """A whole column: numbers or words as one array, vectors as [row, d_model], lists as an array a row.

        Raises:
            KeyError: There is no such column.
        """
        return _as_numpy(self._rows[name])

    @cached_property
    def doc_ids(self) -> list[str]:
        """Each row's document."""
        return [str(x) for x in self.column("doc_id")]

    @cached_property
    def sites(self) -> list[str]:
        """Each row's site."""
        return [str(x) for x in self.column("site")]

    @staticmethod
    def _record(row: Mapping[str, Any]) -> Record:
        return Record(
            doc_id=str(row["doc_id"]),
            site=str(row["site"]),
            position=int(row["position"]),
            token_ids=tuple(int(i) for i in row["token_ids"]),
            diff=row["diff"],
            before=row["before"],
            labels={name: row[name] for columns in LABEL_COLUMNS.values() for name in columns if name in row},
        )


@dataclass(frozen=True)
class DiffDataset:
    """An opened dataset: its manifest and its rows by split."""

    path: Path
    manifest: dict[str, Any]
    _splits: dict[str, RecordSet]

    def split(self, name: Split) -> RecordSet:
        """The rows of a split.

        Raises:
            ValueError: The split has no row.
        """
        if not len(self._splits[name]):
            raise ValueError(
                f"{self.path} has no {name} rows ({self.manifest['counts']}): use more documents "
                "(sampling.max_documents)"
            )
        return self._splits[name]


def config_hash(content: Mapping[str, Any]) -> str:
    """Twelve hex digits of everything that changes rows, the schema's version included."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **content}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_dataset(path: Path) -> bool:
    """Whether a whole dataset stands there."""
    return (path / MANIFEST).is_file()


def open_dataset(path: Path, weights_hash: str, tokenizer_hash: str) -> DiffDataset:
    """Opens a dataset for a subject.

    Raises:
        ValueError: It is no dataset, was written by another schema, for another subject or tokenizer, its manifest is
            damaged, or a part is missing or changed.
    """
    if not is_dataset(path):
        raise ValueError(
            f"{path} is no dataset: it has no {MANIFEST}; if it was moved, data_dir=DIR names its new folder"
        )
    manifest = _read_manifest(path)
    subject = manifest["subject"]
    for key, got in (("weights_hash", weights_hash), ("tokenizer_hash", tokenizer_hash)):
        if subject[key] != got:
            raise ValueError(
                f"{path} was measured on another subject: {subject['name']} with {key} {subject[key][:12]}, but the "
                f"model in use has {got[:12]}: choose that model or build a dataset for this one"
            )
    tables = []
    for part in manifest["parts"]:
        file = path / part["file"]
        if not file.is_file() or file_hash(file) != part["sha256"]:
            raise ValueError(f"part {file} is missing or corrupt: delete {path} and build it again")
        tables.append(pq.read_table(file, partitioning=None))  # a folder called a=b is no column
    rows = pa.concat_tables(tables)
    return DiffDataset(path, manifest, {s: RecordSet(rows.filter(pc.equal(rows["split"], s))) for s in SPLITS})


def git_commit() -> str | None:
    """The commit of the code in use, with "+dirty" where tracked files differ from it; None outside its repository."""
    # An installed package may lie inside somebody else's checkout: that one does not have this file at this place.
    if _git("ls-files", "--full-name", "--", __file__) != f"diff_oracle/{Path(__file__).name}":
        return None
    commit = _git("rev-parse", "HEAD")
    changed = _git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+dirty" if commit and changed else commit


def _git(*arguments: str) -> str | None:
    """What git says in this file's folder; None where it fails or is not installed."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _read_manifest(path: Path) -> dict[str, Any]:
    """A dataset's manifest, with all that opening it needs."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise ValueError(
                f"{path} has schema version {manifest['schema_version']}, expected {SCHEMA_VERSION}: build it again"
            )
        itemgetter("counts", "parts")(manifest)
        itemgetter("name", "weights_hash", "tokenizer_hash")(manifest["subject"])
        for part in manifest["parts"]:
            itemgetter("file", "sha256")(part)
        theirs = manifest["conventions"]
        if other := [name for name in {**CONVENTIONS, **theirs} if theirs.get(name) != CONVENTIONS.get(name)]:
            raise ValueError(
                f"{path} was built with another convention for {other[0]}: {theirs.get(other[0])!r}, but this version "
                f"means {CONVENTIONS.get(other[0])!r}: build it again"
            )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {error}): delete {path} and build it again"
        ) from error
    return manifest


def _as_numpy(column: pa.ChunkedArray) -> np.ndarray | list[np.ndarray]:
    """A column as `RecordSet.column` gives it; whole numbers have 64 bits, what is missing is NaN, or an empty list."""
    values = column.combine_chunks()
    if pa.types.is_fixed_size_list(values.type):
        # A copy, because torch warns of arrays that it could not write to.
        return np.array(values.flatten().to_numpy()).reshape(len(values), values.type.list_size)
    if not pa.types.is_list(values.type):
        return _numbers(values)
    numbers, bounds = _numbers(values.flatten()), values.offsets.to_numpy()
    return [numbers[start:end] for start, end in pairwise((bounds - bounds[0]).tolist())]


def _numbers(values: pa.Array) -> np.ndarray:
    numbers = values.to_numpy(zero_copy_only=False)
    return numbers.astype(np.int64) if pa.types.is_integer(values.type) else numbers


def file_hash(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
