"""A saved oracle: a folder with everything needed to load it, checked on load.

oracle.json             base model, configuration, and the SHA-256 of all that follows
adapter/                the trained weights of the model, as PEFT saves them
injector.safetensors    the injector's
README.md               a card for people and for the Hugging Face hub
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from diff_oracle import __version__
from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.oracle.injection import InjectionConfig
from diff_oracle.oracle.prompt import PromptConfig
from diff_oracle.records import file_hash
from diff_oracle.subject.loading import SubjectConfig

SIDECAR, CARD, INJECTOR, ADAPTER = "oracle.json", "README.md", "injector.safetensors", "adapter"
FORMAT_VERSION = 3
TINY, TINY_RUN = "tiny", Path(__file__).parents[1] / "assets" / "tiny_oracle"
"""What the oracle is called that comes with the package and explains the bundled model; and its run directory."""


@dataclass
class OracleConfig:
    """What an oracle is made of, beside its base model."""

    lora: LoraOptions
    prompt: PromptConfig
    injection: InjectionConfig
    base_dtype: str | None = None
    """Precision of the weights that are not trained; the subject's own where it is not given."""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What it was trained to answer, and the tasks' settings; nothing where that is not known."""


@dataclass(frozen=True)
class Sidecar:
    """The content of oracle.json."""

    base: SubjectConfig
    """Where the base model comes from: the subject, at its own precision."""
    identity: Mapping[str, Any]
    """Which model it is (`SubjectIdentity`)."""
    config: OracleConfig
    """What the oracle is made of."""


def write_oracle(
    folder: Path, sidecar: Sidecar, lm: PeftModel, injector: nn.Module, place: str | None = None, scores: str = ""
) -> None:
    """Writes a folder; an oracle that stands there is replaced once the new one is whole.

    Args:
        folder: Where to.
        sidecar: What oracle.json says.
        lm: The model with its adapter.
        injector: The injector.
        place: What the card says to load; the folder where it is not given.
        scores: A table in Markdown, for the card.

    Raises:
        ValueError: Something that is no oracle stands there.
        OSError: The disk is full; nothing is left behind.
    """
    if folder.exists() and not (folder / SIDECAR).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} holds something that is no oracle, which saving would delete: choose another folder"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
        partial = Path(scratch) / folder.name
        try:
            _write_adapter(partial / ADAPTER, sidecar, lm)
            state = {name: value.contiguous().cpu() for name, value in injector.state_dict().items()}
            save_file(state, partial / INJECTOR)
        except SafetensorError as error:
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, "no space left for the oracle", str(folder)) from error
            raise
        files = {str(f.relative_to(partial)): file_hash(f) for f in sorted(partial.rglob("*.*"))}
        content = {
            "format_version": FORMAT_VERSION,
            "base": asdict(sidecar.base),
            "identity": dict(sidecar.identity),
            "config": asdict(sidecar.config),
            "files": files,
        }
        (partial / SIDECAR).write_text(signed(content))
        (partial / CARD).write_text(_card(sidecar, place or str(folder), scores), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def read_sidecar(folder: Path) -> Sidecar:
    """Reads oracle.json and makes sure that the folder is what was saved.

    Raises:
        ValueError: The folder holds no oracle, one of another format, or one that was changed since it was saved.
    """
    file = folder / SIDECAR
    if not file.is_file():
        inside = f"; did you mean {folder / 'oracle'}?" if (folder / "oracle" / SIDECAR).is_file() else ""
        raise ValueError(f"{folder} holds no oracle: it has no {SIDECAR}{inside}")
    try:
        content = json.loads(file.read_text())
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {content['format_version']}, expected {FORMAT_VERSION}: train it again")
        check_signature(content)
        parts, files = content["config"], content["files"]
        config = OracleConfig(
            LoraOptions(**parts["lora"]),
            PromptConfig(**parts["prompt"]),
            InjectionConfig(**parts["injection"]),
            parts.get("base_dtype"),
            parts.get("tasks", {}),
        )
        sidecar = Sidecar(SubjectConfig(**content["base"]), content["identity"], config)
    except (KeyError, TypeError, ValueError) as error:  # edited by hand, or by another version
        raise ValueError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    for name, expected in files.items():
        if not (folder / name).is_file() or file_hash(folder / name) != expected:
            raise ValueError(f"{folder} is damaged: {name} is missing or not what was saved")
    return sidecar


def signed(content: Mapping[str, Any]) -> str:
    """The text of a JSON file, with what `check_signature` knows it by."""
    return json.dumps({**content, "sha256": _digest(content)}, indent=2) + "\n"


def check_signature(content: dict[str, Any]) -> None:
    """Makes sure that a file says what `signed` wrote, and takes the signature out of its content.

    Raises:
        ValueError: It was edited.
        KeyError: It has no signature.
    """
    if content.pop("sha256") != _digest(content):
        raise ValueError("it was edited since it was saved, so that it may not describe the weights beside it")


def saved_scores(folder: Path) -> str:
    """The table on an oracle's card; empty where there is none."""
    card = folder / CARD
    _, _, below = (card.read_text(encoding="utf-8") if card.is_file() else "").partition("\n## Scores\n\n")
    return below.partition("\n\n")[2].strip()  # behind the paragraph that says how to read it


def run_folder(name: str | Path) -> Path:
    """A run directory, or that of the oracle that comes with the package where `tiny` is no folder here."""
    return TINY_RUN if str(name) == TINY and not Path(name).exists() else Path(name)


def portable(sidecar: Sidecar) -> Sidecar:
    """The sidecar without paths of this machine: whoever loads it names a local base model anew."""
    return replace(sidecar, base=replace(sidecar.base, path=None, cache_dir=None))


def _write_adapter(folder: Path, sidecar: Sidecar, lm: PeftModel) -> None:
    """PEFT's files, with the base model's name on the hub or none, where PEFT would write a path of this machine."""
    lm.save_pretrained(str(folder))
    (folder / CARD).unlink()
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": _hub_id(sidecar.base), "revision": None}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _hub_id(base: SubjectConfig) -> str | None:
    return base.hub_id or (base.name if base.source == "hub" else None)


def _card(sidecar: Sidecar, place: str, scores: str) -> str:
    data = ModelCardData(
        base_model=_hub_id(sidecar.base),
        library_name="peft",
        tags=["diff_oracle", "interpretability", "activation-oracle"],
    )
    about: dict[str, Any] = {
        "identity": sidecar.identity,
        "injection": sidecar.config.injection,
        "version": __version__,
    }
    template = Path(__file__).with_name("card.md.j2")
    return str(ModelCard.from_template(data, template_path=str(template), place=place, scores=scores, **about))


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
