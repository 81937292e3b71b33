"""Builds a dataset: text -> subject -> diffs -> measured labels -> parquet.

    python -m data_gen.build +task=logit_lens model=tiny corpus=pydoc sites=mixed data_dir=data

One forward pass a window of text serves every site and task. Documents are split before anything else is drawn;
positions and sites come from a generator keyed by the seed and the document, so the same config gives the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from data_gen.corpus import CorpusConfig, Document, describe_corpus, iter_documents
from data_gen.measure import Window, measure
from diff_oracle.cli import entry_point
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import config_hash, is_dataset, schema, split_of, writing
from diff_oracle.subject.lens import label_tokens
from diff_oracle.subject.loading import SubjectConfig, load_hf_model, pick_device
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite, expand_sites
from diff_oracle.tasks import make_tasks

T = TypeVar("T")
logger = logging.getLogger(__name__)

_WINDOWS_PER_FORWARD = 16
_FORWARDS_PER_SHARD = 64


@dataclass
class SitesConfig:
    """Which diffs are taken."""

    names: list[str] = field(default_factory=lambda: ["layers", "components", "heads", "spans"])
    """Site sets (layers, components, heads, spans) or single sites (L3H2); each name is drawn equally often."""
    per_position: int = 6
    """Different sites taken at each position."""

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("sites.names is empty: name at least one set or site, e.g. sites.names=[layers]")
        if self.per_position < 1:
            raise ValueError(f"sites.per_position must be at least 1, got {self.per_position}")


@dataclass
class SamplingConfig:
    """How much text is read, and where."""

    max_documents: int = 1500
    """Documents read from the corpus."""
    context_length: int = 96
    """Tokens a window, the beginning-of-sequence token included."""
    windows_per_document: int = 4
    """Windows taken from a long document, from its start on."""
    positions_per_window: int = 4
    """Positions drawn in a window."""
    min_position: int = 8
    """First position that may be drawn; position 0 never is."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"sampling.{name} must be at least 1, got {value}")
        if self.min_position >= self.context_length:
            raise ValueError(
                f"sampling.min_position={self.min_position} must be below sampling.context_length={self.context_length}"
            )


@dataclass
class BuildConfig:
    """Everything that a dataset depends on."""

    model: SubjectConfig = field(default_factory=SubjectConfig)
    """The subject."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    """Where text comes from."""
    sites: SitesConfig = field(default_factory=SitesConfig)
    """Which diffs are taken."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How much text is read, and where."""
    tasks: dict[str, Any] = field(default_factory=dict)
    """What is measured: filled by +task=NAME."""
    seed: int = 0
    """Keys every draw."""
    data_dir: str = "data"
    """Datasets live in here, one folder each."""
    run_dir: str | None = None
    """Logs and results of this run go here."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: the first of cuda, mps, cpu that is there."""


def build(config: BuildConfig, subject: Subject | None = None) -> Path:
    """Builds the dataset of a config unless it stands already; returns its directory.

    Raises:
        ValueError: A config value is out of range, the corpus is empty or too short, an activation is not finite, or
            something that is no dataset is in the way.
    """
    tasks = make_tasks(config.tasks)
    loaded = subject or load_hf_model(config.model, pick_device(config.device))
    identity, corpus = loaded.identity, describe_corpus(config.corpus)
    content = {
        "subject": identity.to_dict(),
        "corpus": corpus,
        "tasks": {task.name: asdict(task.config) for task in tasks},
        "sites": asdict(config.sites),
        "sampling": asdict(config.sampling),
        "seed": config.seed,
    }
    path = Path(config.data_dir) / f"{identity.name}-{config.corpus.name}-{config_hash(content)}"
    if is_dataset(path):
        logger.info("dataset: %s (already there)", path)
        return path
    logger.info("dataset: building %s", path)
    site_sets = [expand_sites([name], identity.n_layers, identity.n_heads) for name in config.sites.names]
    with writing(path, schema(identity.d_model, config.tasks)) as writer:
        subject = loaded if isinstance(loaded, Subject) else Subject(loaded)
        allowed = label_tokens(subject.tokenizer, identity.vocab_size).to(subject.device)
        counts = {"documents": 0, "documents_too_short": 0, "windows": 0}
        rows: dict[str, list[Any]] = {}
        most = config.sampling.max_documents
        source = islice(iter_documents(config.corpus), most)
        with tqdm(source, desc="measuring", unit=" documents", total=min(most, corpus.get("documents", most))) as bar:
            windows = _windows(subject.tokenizer, iter(bar), site_sets, config, counts)
            for num_forwards, batch in enumerate(_batched(windows, _WINDOWS_PER_FORWARD), start=1):
                for name, values in measure(subject, batch, tasks, allowed).items():
                    rows.setdefault(name, []).extend(values)
                if num_forwards % _FORWARDS_PER_SHARD == 0:
                    writer.write_shard(rows)
                    rows = {}
        if rows:
            writer.write_shard(rows)
        writer.write_manifest(content, counts)
    return path


def _windows(
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterator[Document],
    site_sets: list[list[DiffSite]],
    config: BuildConfig,
    counts: dict[str, int],
) -> Iterator[Window]:
    """Cuts documents into windows and draws each window's positions and sites."""
    sampling = config.sampling
    prefix = tokenizer("")["input_ids"]  # what this tokenizer puts before a text
    length = sampling.context_length - len(prefix)
    for document in documents:
        counts["documents"] += 1
        ids = tokenizer.encode(document.text, add_special_tokens=False, verbose=False)
        split, rng = split_of(document.text), keyed_rng(config.seed, "windows", document.doc_id)
        pieces = [prefix + list(piece) for piece in _batched(ids, length)][: sampling.windows_per_document]
        pieces = [piece for piece in pieces if len(piece) > sampling.min_position]
        if not pieces:
            counts["documents_too_short"] += 1
        for piece in pieces:
            candidates = np.arange(sampling.min_position, len(piece))
            positions = rng.permutation(candidates)[: sampling.positions_per_window]
            queries = [(int(p), site) for p in sorted(positions) for site in _draw_sites(site_sets, config.sites, rng)]
            counts["windows"] += 1
            yield Window(document.doc_id, split, piece, queries)


def _draw_sites(site_sets: list[list[DiffSite]], config: SitesConfig, rng: np.random.Generator) -> list[DiffSite]:
    """Different sites: each time a set is drawn, then a site in it."""
    wanted = min(config.per_position, len({site for sites in site_sets for site in sites}))
    drawn: dict[DiffSite, None] = {}
    while len(drawn) < wanted:
        sites = site_sets[rng.integers(len(site_sets))]
        drawn[sites[rng.integers(len(sites))]] = None
    return list(drawn)


def _batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch


def run(config: BuildConfig) -> None:
    """The command: builds and says where."""
    print(build(config))


main = entry_point("build", BuildConfig, run)

if __name__ == "__main__":
    main()
