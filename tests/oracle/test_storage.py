"""A saved oracle loads as what it was, or not at all."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors import SafetensorError
from torch import nn

from diff_oracle.oracle import model as oracle_model
from diff_oracle.oracle import storage
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import Prompt
from diff_oracle.subject.loading import SubjectConfig, load_hf_model

MakePrompts = Callable[[Oracle, int], list[Prompt]]


@pytest.mark.parametrize(("kind", "basis"), [("embed", "residual"), ("residual", "unembedding")])
def test_a_loaded_oracle_answers_as_the_saved_one(
    make_oracle: Callable[..., Oracle], make_prompts: MakePrompts, tmp_path: Path, kind: str, basis: str
) -> None:
    oracle = make_oracle(kind=kind, basis=basis, num_slots=2)
    nn.init.normal_(oracle.injector.maps[0])
    oracle.save(tmp_path / "oracle")
    loaded = Oracle.from_pretrained(tmp_path / "oracle")
    prompts = make_prompts(oracle, 3)
    choices = [[("yes",), ("no",)]] * 3
    for mine, theirs in zip(
        oracle.choice_log_probs(prompts, choices), loaded.choice_log_probs(prompts, choices), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    assert loaded.config == oracle.config


def test_another_base_model_and_an_empty_folder_are_refused(make_oracle: Callable[..., Oracle], tmp_path: Path) -> None:
    make_oracle("llama").save(tmp_path / "oracle")
    with pytest.raises(ValueError, match="oracle of another model"):
        Oracle.from_pretrained(tmp_path / "oracle", base=SubjectConfig(source="random", architecture="qwen3"))
    with pytest.raises(ValueError, match="holds no oracle"):
        Oracle.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ValueError, match=f"did you mean {tmp_path / 'oracle'}"):
        Oracle.from_pretrained(tmp_path)  # a run directory


def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def offline(repo_id: str) -> str:
        asked.append(repo_id)
        raise OfflineModeIsEnabled("offline mode is on")

    monkeypatch.setattr(oracle_model, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    said = r"no folder 'runs/nope' here, and no repository .* \(offline mode is on\): check the name and the network"
    with pytest.raises(ValueError, match=said):
        Oracle.from_pretrained("runs/nope")
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match="^runs/nope holds no oracle: it has no oracle.json$"):
        Oracle.from_pretrained("runs/nope")
    assert asked == ["runs/nope"]  # before there was a folder of that name alone


def test_the_subject_keeps_its_precision_under_an_oracle_of_another(
    make_oracle: Callable[..., Oracle], tmp_path: Path
) -> None:
    subject = SubjectConfig(source="random")
    Oracle.create(subject, replace(make_oracle().config, base_dtype="bfloat16")).save(tmp_path / "oracle")
    loaded = Oracle.from_pretrained(tmp_path / "oracle")
    assert loaded.base == subject
    assert load_hf_model(loaded.base).model.dtype == torch.float32
    assert loaded.lm.get_base_model().get_input_embeddings().weight.dtype == torch.bfloat16
    assert loaded.config.base_dtype == "bfloat16"


@pytest.mark.parametrize(
    "file", ["injector.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "oracle.json"]
)
def test_a_damaged_oracle_is_refused(make_oracle: Callable[..., Oracle], tmp_path: Path, file: str) -> None:
    make_oracle().save(tmp_path / "oracle")
    content = (tmp_path / "oracle" / file).read_bytes()
    (tmp_path / "oracle" / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"is damaged|cannot be read"):
        Oracle.from_pretrained(tmp_path / "oracle")


@pytest.mark.parametrize(("key", "value"), [("scale", 2.0), ("block", 0), ("num_slots", 1), ("kind", "residual")])
def test_a_sidecar_edited_by_hand_is_refused(
    make_oracle: Callable[..., Oracle], tmp_path: Path, key: str, value: object
) -> None:
    make_oracle().save(tmp_path / "oracle")
    file = tmp_path / "oracle" / "oracle.json"
    content = json.loads(file.read_text())
    content["config"]["injection"][key] = value
    file.write_text(json.dumps(content, indent=4))
    with pytest.raises(ValueError, match="it was edited since it was saved"):
        Oracle.from_pretrained(tmp_path / "oracle")
    content["config"]["injection"][key] = getattr(make_oracle().config.injection, key)
    file.write_text(json.dumps(content, indent=4))  # written anew with what it said: the same oracle
    Oracle.from_pretrained(tmp_path / "oracle")


def test_only_an_oracle_is_replaced(make_oracle: Callable[..., Oracle], tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("one")
    oracle = make_oracle()
    with pytest.raises(ValueError, match="holds something that is no oracle"):
        oracle.save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "one"
    for _ in range(2):
        oracle.save(tmp_path / "oracle")


def test_an_adapter_of_another_oracle_is_refused(make_oracle: Callable[..., Oracle], tmp_path: Path) -> None:
    make_oracle().save(tmp_path / "one")
    make_oracle(disturb=False).save(tmp_path / "other")
    name = "adapter/adapter_model.safetensors"
    shutil.copy(tmp_path / "other" / name, tmp_path / "one" / name)
    with pytest.raises(ValueError, match=f"{name} is missing or not what was saved"):
        Oracle.from_pretrained(tmp_path / "one")


def test_the_card_is_what_the_hub_reads(make_oracle: Callable[..., Oracle], tmp_path: Path) -> None:
    oracle = make_oracle(kind="residual", block=2)
    oracle.base.hub_id = "someone/model"
    oracle.save(tmp_path / "oracle", scores="| a table |")
    card = ModelCard.load(tmp_path / "oracle" / "README.md")
    assert (card.data.base_model, card.data.library_name) == ("someone/model", "peft")
    assert "behind block\n2" in card.text
    assert "| a table |" in card.text
    assert [f.name for f in (tmp_path / "oracle").rglob("README.md")] == ["README.md"]
    adapter = json.loads((tmp_path / "oracle" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "someone/model"


def test_nothing_of_this_machine_goes_to_the_hub_and_it_comes_back(
    make_oracle: Callable[..., Oracle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    loaded = load_hf_model(SubjectConfig(source="random"))
    loaded.model.save_pretrained(model)
    loaded.tokenizer.save_pretrained(model)
    local = SubjectConfig(source="local", path=str(model))
    oracle = Oracle.create(local, make_oracle().config)
    uploaded = tmp_path / "uploaded"

    def create_repo(self: HfApi, repo_id: str, **options: object) -> str:
        return f"https://hub/{repo_id}"

    def upload_folder(self: HfApi, repo_id: str, folder_path: Path) -> None:
        shutil.copytree(folder_path, uploaded)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    oracle.save(tmp_path / "oracle", scores="| a | table |\n\n| and | one |")
    saved = Oracle.from_pretrained(tmp_path / "oracle")
    assert saved.push_to_hub("someone/oracle") == "https://hub/someone/oracle"
    assert ModelCard.load(uploaded / "README.md").text.rstrip().endswith("| a | table |\n\n| and | one |")
    for file in uploaded.rglob("*.*"):
        assert str(tmp_path).encode() not in file.read_bytes()
    monkeypatch.setattr(oracle_model, "snapshot_download", lambda repo_id: {"someone/oracle": str(uploaded)}[repo_id])
    assert Oracle.from_pretrained("someone/oracle", base=local).config == oracle.config
    with pytest.raises(ValueError, match="path"):
        Oracle.from_pretrained("someone/oracle")


def test_a_full_disk_leaves_the_old_oracle(
    make_oracle: Callable[..., Oracle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = make_oracle()
    oracle.save(tmp_path / "oracle")
    before = (tmp_path / "oracle" / "injector.safetensors").read_bytes()

    def full(*arguments: object, **options: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(OSError, match="no space left for the oracle"):
        oracle.save(tmp_path / "oracle")
    assert [p.name for p in tmp_path.iterdir()] == ["oracle"]
    assert (tmp_path / "oracle" / "injector.safetensors").read_bytes() == before
