"""A finished run of `diff_oracle.train_ar`, read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from diff_oracle.nla.evaluation import AR, CODE_AR, CONTEXT_AR, SECOND_AR, LadderConfig
from diff_oracle.nla.pair import AV, DiffNLA
from diff_oracle.nla.reconstructor import Reconstructor
from diff_oracle.oracle.model import Oracle
from diff_oracle.tasks.explanation import ExplanationConfig
from diff_oracle.tasks.truth import TruthConfig

PAIR = "nla"
FOLDERS = {AR: "ar", SECOND_AR: "second_ar", CONTEXT_AR: "context_ar", CODE_AR: "code_ar"}
"""Of each reader in the run directory; the first one's holds checkpoints alone, for it is saved with the pair."""


def oracle_of(run: Path) -> Path:
    """The oracle's folder in a run directory: of an oracle, or of a pair."""
    own = run / "oracle"
    return own if own.is_dir() or not (run / PAIR).is_dir() else run / PAIR / AV


@dataclass(frozen=True)
class PairRun:
    """What a run directory holds."""

    av: Oracle
    readers: dict[str, Reconstructor]
    named: ExplanationConfig
    ladder: LadderConfig
    seed: int
    dataset: Path


def load_pair_run(folder: Path, device: str) -> PairRun:
    """Reads a run directory.

    Raises:
        ValueError: It is none, or another version wrote it.
    """
    file = folder / "run.json"
    if not file.is_file():
        raise ValueError(f"nla={folder} is no run directory of diff_oracle.train_ar: it has no run.json")
    try:
        about = json.loads(file.read_text())
        settings = about["config"]
        ladder = LadderConfig(**settings["ladder"] | {"truth": TruthConfig(**settings["ladder"]["truth"])})
        named, seed, dataset = ExplanationConfig(**about["named"]), settings["seed"], Path(about["dataset"])
        oracle = oracle_of(Path(about["oracle"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} cannot be read: {type(error).__name__}: {error}; it is damaged, no run of train_ar, or "
            "another version wrote it"
        ) from error
    if not (folder / PAIR).is_dir():  # bag_of_words alone
        return PairRun(Oracle.from_pretrained(oracle, device), {}, named, ladder, seed, dataset)
    pair = DiffNLA.from_pretrained(folder / PAIR, device)
    readers = {AR: pair.ar}
    for name in (SECOND_AR, CONTEXT_AR, CODE_AR):
        if name in about.get("skipped_steps", FOLDERS) and (folder / FOLDERS[name]).is_dir():
            readers[name] = Reconstructor.from_pretrained(folder / FOLDERS[name], device)
    return PairRun(pair.av, readers, named, ladder, seed, dataset)
