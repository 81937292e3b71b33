"""Builds a dataset: text -> subject -> diffs -> measured labels -> parquet.

    python -m data_gen.build +task=logit_lens model=tiny corpus=pydoc sites=mixed data_dir=data
    python -m data_gen.build +task=logit_lens shard=3/16          # one of sixteen jobs, in any order, side by side
    python -m data_gen.build -m shard=1/2,2/2 hydra/launcher=submitit_slurm +task=logit_lens        # a Slurm job each
    accelerate launch --num_processes 4 -m data_gen.build +task=logit_lens             # a shard a process and GPU

One forward pass a window of text serves every site and task. Documents are measured in parts of a fixed number, and no
forward pass reaches over two parts: a part has the same bytes whichever job measures it, before or after a kill.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from data_gen.card import dataset_card
from data_gen.corpus import CorpusConfig, Document, describe_corpus, iter_documents
from data_gen.distribution import label_distribution, print_distribution, useless
from data_gen.measure import MEASURES, Window, measure
from data_gen.parts import DatasetWriter, writing
from data_gen.sampling import SamplingConfig, SitesConfig, document_windows
from data_gen.shards import WHOLE, Shard, shard_of_process
from diff_oracle.cli import entry_point
from diff_oracle.records import MANIFEST, config_hash, is_dataset, schema
from diff_oracle.subject.lens import label_tokens, token_texts
from diff_oracle.subject.loading import LoadedModel, SubjectConfig, load_hf_model, pick_device
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite, expand_sites
from diff_oracle.tasks import Task, make_tasks

T = TypeVar("T")
logger = logging.getLogger(__name__)

# None of them changes what is drawn. Yet the last bits of an activation depend on what else is in its batch, so other
# values want another SCHEMA_VERSION.
_DOCUMENTS_PER_PART = 64
_WINDOWS_PER_FORWARD = 16
_TOKENS_PER_FORWARD = 2048  # long windows come in smaller batches


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
    shard: str = WHOLE
    """Which share of the dataset this job builds: 3/16 is the third of sixteen. Any sharding gives the same files."""

    def __post_init__(self) -> None:
        Shard.parse(self.shard)


def build(config: BuildConfig, subject: Subject | None = None) -> Path:
    """Builds the dataset of a config unless it stands already; returns its directory.

    Raises:
        ValueError: As `build_shard`, or the dataset is not whole yet, because other shards are missing.
    """
    path, missing = build_shard(config, subject)
    if missing:
        raise ValueError(_what_is_missing(path, missing))
    return path


def build_shard(config: BuildConfig, subject: Subject | None = None) -> tuple[Path, list[str]]:
    """Builds a job's share of a dataset, and the dataset where that is the last.

    Returns:
        The dataset's directory, and the names of the shards that are missing: where there are any, there is no such
        directory yet.

    Raises:
        ValueError: A config value is out of range, the corpus is empty or too short, an activation is not finite, or
            something that is no dataset is in the way.
    """
    tasks, shard = _measured(make_tasks(config.tasks)), Shard.parse(config.shard)
    if config.corpus.path and Path(config.data_dir).resolve().is_relative_to(Path(config.corpus.path).resolve()):
        raise ValueError(
            f"data_dir={config.data_dir} lies in corpus.path={config.corpus.path}: datasets would be read as text; "
            "choose another data_dir"
        )
    loaded = subject or load_hf_model(config.model, pick_device(config.device))
    identity, most = loaded.identity, config.sampling.max_documents
    corpus = describe_corpus(config.corpus, most)
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
        return path, []
    logger.info("dataset: building %s", path)
    columns = schema(identity.d_model, [task.name for task in tasks])
    missing: list[int] = []
    with writing(path, columns) as writer:
        num_parts = _build_parts(config, loaded, tasks, shard, writer, corpus.get("documents", most))
        missing = writer.missing(num_parts)
        if is_dataset(path):  # closed by another job, which took the parts away
            missing = []
        elif not missing:
            files, texts = [writer.file(part) for part in range(num_parts)], token_texts(loaded.tokenizer)
            about = {"model": _origin(config.model), "labels": label_distribution(files, tasks, texts)}
            manifest = writer.manifest(num_parts, content | about)
            writer.close(manifest, dataset_card(path.name, manifest, columns, files, texts))
    return path, shard.owners(missing)


def _measured(tasks: list[Task]) -> list[Task]:
    """Those that have labels of their own.

    Raises:
        ValueError: None has.
    """
    measured = [task for task in tasks if task.name in MEASURES]
    if not measured:
        raise ValueError(
            f"nothing is measured for {tasks[0].name}, which asks about the labels of other tasks: add them, e.g. "
            f"+task=[{','.join(MEASURES)},{tasks[0].name}]"
        )
    return measured


def _build_parts(
    config: BuildConfig,
    loaded: Subject | LoadedModel,
    tasks: list[Task],
    shard: Shard,
    writer: DatasetWriter,
    num_documents: int,
) -> int:
    """Measures and writes the shard's parts that are missing; returns the number of parts of all shards.

    `num_documents`, of all shards, is for the progress bar: of a corpus on the hub it is an upper bound.
    """
    identity = loaded.identity
    site_sets = [expand_sites([name], identity.n_layers, identity.n_heads) for name in config.sites.names]
    subject = loaded if isinstance(loaded, Subject) else Subject(loaded)
    allowed = label_tokens(subject.tokenizer, identity.vocab_size).to(subject.device)
    own = [part for part in range(-(-num_documents // _DOCUMENTS_PER_PART)) if shard.owns(part)]
    total = sum(min(_DOCUMENTS_PER_PART, num_documents - part * _DOCUMENTS_PER_PART) for part in own)
    whole = [counts for part in own if (counts := writer.counts(part))]
    documents = islice(iter_documents(config.corpus), config.sampling.max_documents)
    num_parts = 0
    with tqdm(desc="measuring", unit=" documents", total=total, initial=sum(c["documents"] for c in whole)) as bar:
        for part, of_part in enumerate(_batched(documents, _DOCUMENTS_PER_PART)):
            num_parts += 1
            if not shard.owns(part) or writer.counts(part):
                continue
            if is_dataset(writer.path):  # jobs of the same shard may run at once
                break
            rows, counts = _measure_part(config, subject, site_sets, tasks, allowed, _counted(of_part, bar))
            writer.write(part, rows, counts)
    return num_parts


def _measure_part(
    config: BuildConfig,
    subject: Subject,
    site_sets: list[list[DiffSite]],
    tasks: list[Task],
    allowed: Bool[Tensor, "vocab"],
    documents: Iterable[Document],
) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """The columns of some documents' rows, and what they were made of."""
    counts = {"documents": 0, "documents_too_short": 0, "windows": 0}

    def windows() -> Iterator[Window]:
        for document in documents:
            found = document_windows(subject.tokenizer, document, site_sets, config.sites, config.sampling, config.seed)
            for name, number in (("documents", 1), ("documents_too_short", not found), ("windows", len(found))):
                counts[name] += number
            yield from found

    rows: dict[str, list[Any]] = {}
    at_once = min(_WINDOWS_PER_FORWARD, max(1, _TOKENS_PER_FORWARD // config.sampling.context_length))
    for batch in _batched(windows(), at_once):
        for name, values in measure(subject, batch, tasks, allowed).items():
            rows.setdefault(name, []).extend(values)
    return rows, counts


def _counted(documents: Iterable[Document], bar: tqdm) -> Iterator[Document]:
    for document in documents:
        yield document
        bar.update()


def _batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch


def _origin(model: SubjectConfig) -> dict[str, str | None]:
    """Where the subject came from, without what is this machine's alone."""
    names = ("source", "name", "package", "hub_id", "revision")
    return {name: getattr(model, name) for name in names}


def _what_is_missing(path: Path, missing: list[str]) -> str:
    shards = ", ".join(f"shard={name}" for name in missing)
    return (
        f"{path} is not whole yet: missing {', '.join(missing)}. Where no job is at work on them, build them with the "
        f"same settings and {shards} (under torchrun or accelerate: the same command again); what is measured is kept"
    )


def run(config: BuildConfig) -> None:
    """The command: builds, says what the labels are like, and where the dataset is or what it still lacks."""
    path, missing = build_shard(replace(config, shard=shard_of_process(config.shard)))
    if missing:
        print(_what_is_missing(path, missing))
        return
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    print_distribution(manifest["labels"])
    for warning in useless(manifest["labels"], manifest["counts"]):
        logger.warning("warning: %s", warning)
    print(path)


main = entry_point("build", BuildConfig, run)

if __name__ == "__main__":
    # By its name: a cluster's job imports what it runs, and its own __main__ is another.
    from data_gen import build as this_module

    this_module.main()
