"""A run that explains: who is asked, what is finished kept on disk, results written. Under the commands."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diff_oracle import __version__
from diff_oracle.explain.asking import Explainer, Query
from diff_oracle.explain.config import AskingConfig
from diff_oracle.explain.explanations import ExplainedText, Explanations
from diff_oracle.explain.page import render_page
from diff_oracle.explain.store import Store
from diff_oracle.nla.pair import SIDECARS as PAIR_SIDECARS
from diff_oracle.nla.pair import DiffNLA
from diff_oracle.nla.runs import PAIR
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.storage import SIDECAR
from diff_oracle.records import file_hash
from diff_oracle.subject.loading import pick_device
from diff_oracle.subject.model import Subject
from diff_oracle.tasks import make_tasks

logger = logging.getLogger(__name__)

_SIDECARS = (SIDECAR, *PAIR_SIDECARS)  # of an oracle, of a pair


def begin(config: AskingConfig) -> tuple[Path, Explainer]:
    """A run's folder, and who explains.

    Raises:
        ValueError: The folder is another command's, or as `load_explainer`.
    """
    assert config.run_dir is not None  # the command sets it
    folder = Path(config.run_dir)
    if (folder / "run.json").exists():
        raise ValueError(f"run_dir={folder} is a run's own folder: choose another one")
    asked = {"free_question": config.free_question, "batch_size": config.batch_size}
    return folder, load_explainer(config.oracle, config.nla, config.tasks_asked, config.device, **asked)


def explain_to_disk(
    explainer: Explainer, texts: Sequence[ExplainedText], queries: Sequence[Query], config: AskingConfig
) -> Explanations:
    """Explains what the run directory does not hold yet; what is finished stays there, whatever happens.

    Raises:
        ValueError: The run directory holds explanations of other texts, or made in another way.
    """
    settings = {
        "oracle": _fingerprint(config.source),
        "texts": [text.text for text in texts],
        "tasks": {task.name: asdict(task.config) for task in explainer.tasks},
        "free_question": explainer.free_question,
        "version": __version__,
    }
    store = Store(Path(config.run_dir or "."), settings)
    keys = [(query.text, query.position, str(query.site)) for query in queries]
    missing = [query for query, key in zip(queries, keys, strict=True) if key not in store.finished]
    there = len(queries) - len(missing)
    logger.info("explaining in %s: %d of %d are there", config.run_dir, there, len(queries))
    logger.info("if it is killed, the same command with run_dir=%s goes on", config.run_dir)
    with tqdm(desc="explaining", unit=" diffs", total=len(queries), initial=there) as bar:
        for part in explainer.explain(texts, missing):
            store.add(part)
            bar.update(len(part))
    items = [store.finished[key] for key in keys]
    return Explanations(explainer.subject.identity.name, config.source, explainer.conventions, list(texts), items)


def write(explanations: Explanations, folder: Path, outputs: Sequence[str]) -> list[Path]:
    """Writes explanations in these forms; returns the files."""
    page = folder / "explanations.html"
    written = explanations.save(folder, [name for name in outputs if name != "html"])
    if "html" in outputs:
        page.write_text(render_page(explanations), encoding="utf-8")
        written.append(page)
    return written


def load_explainer(
    oracle: str | None = None,
    nla: str | None = None,
    tasks_asked: Sequence[str] = (),
    device: str = "auto",
    **options: Any,
) -> Explainer:
    """An oracle, or a pair, with its subject.

    Args:
        oracle: A run directory, an oracle's folder, or an id on the hub.
        nla: In its place, a pair's run directory or folder.
        tasks_asked: Tasks by name; those that the oracle was trained with if none are named.
        device: Where models go.
        options: Of `Explainer`.

    Raises:
        ValueError: There is no such oracle or pair.
    """
    device = pick_device(device)
    loaded: Oracle | DiffNLA
    if nla is not None:
        loaded = DiffNLA.from_pretrained(_weights_folder(nla), device)
    else:
        loaded = Oracle.from_pretrained(_weights_folder(oracle or ""), device)
    av = loaded.av if isinstance(loaded, DiffNLA) else loaded
    tasks = make_tasks({name: av.config.tasks.get(name, {}) for name in tasks_asked}) if tasks_asked else None
    return Explainer(Subject.load(av.base, device), loaded, tasks, **options)


def _weights_folder(source: str) -> str:
    """A run directory's oracle or pair; everything else as it is."""
    inside = [folder for name in ("oracle", PAIR) if (folder := Path(source) / name).is_dir()]
    return str(inside[0]) if inside else source


def _fingerprint(source: str) -> str:
    """Changes when an oracle or a pair does; of one on the hub, its id."""
    files = [file for name in _SIDECARS if (file := Path(_weights_folder(source)) / name).is_file()]
    return "".join(map(file_hash, files)) or source
