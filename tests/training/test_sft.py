"""Training is the same for the same seed, leaves no files, and stops when the loss is lost."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data_gen.build import BuildConfig, SamplingConfig, build
from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.oracle.injection import InjectionConfig, decoder_blocks
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import PromptConfig
from diff_oracle.oracle.storage import OracleConfig
from diff_oracle.records import RecordSet, open_dataset
from diff_oracle.subject.loading import SubjectConfig, load_hf_model
from diff_oracle.tasks import Task, make_tasks
from diff_oracle.tasks.text import Vocabulary
from diff_oracle.training import sft
from diff_oracle.training.examples import Example
from diff_oracle.training.mixture import MixtureConfig
from diff_oracle.training.sft import TrainingConfig, train_oracle
from tests.helpers import diff_at

Data = tuple[RecordSet, list[Task]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    sampling = SamplingConfig(max_documents=30, windows_per_document=1, positions_per_window=2)
    tasks = {"logit_lens": {"k": 5, "num_asked": 3}}
    path = build(BuildConfig(sampling=sampling, tasks=tasks, data_dir=str(tmp_path_factory.mktemp("data"))))
    loaded = load_hf_model(SubjectConfig())
    records = open_dataset(path, loaded.identity.weights_hash, loaded.identity.tokenizer_hash).split("train")
    made = make_tasks(tasks)
    made[0].fit(records, Vocabulary(loaded.tokenizer, loaded.identity.vocab_size))
    return records, made


def fresh_oracle(model: SubjectConfig | None = None) -> Oracle:
    torch.manual_seed(0)
    config = OracleConfig(LoraOptions(4, 4.0), PromptConfig(), InjectionConfig())
    return Oracle.create(model or SubjectConfig(), config).eval()


def losses(data: Data, seed: int) -> list[float]:
    config = TrainingConfig(steps=6, batch_size=4, warmup_steps=1, evaluations=2)
    history = train_oracle(
        fresh_oracle(), *data, config, MixtureConfig(), seed, measure=lambda oracle: {"select/measured": 1.0}
    )
    assert [entry["step"] for entry in history if "select/measured" in entry] == [3, 6]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_the_same_seed_gives_the_same_losses_and_no_files(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = losses(data, seed=0)
    assert len(first) == 6
    assert first == losses(data, seed=0) != losses(data, seed=1)
    assert list(tmp_path.iterdir()) == []


def test_training_stops_when_the_loss_is_not_a_number(data: Data) -> None:
    oracle = fresh_oracle()
    with torch.no_grad():
        next(p for n, p in oracle.lm.named_parameters() if "lora_B" in n).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"the loss is nan at step 1: lower training.learning_rate"):
        train_oracle(
            oracle,
            *data,
            TrainingConfig(steps=4, batch_size=2, evaluations=1),
            MixtureConfig(),
            0,
            measure=lambda oracle: {},
        )


def test_questions_share_rows_only_where_they_are_read_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def random_oracle(architecture: str) -> Oracle:
        return fresh_oracle(SubjectConfig(source="random", architecture=architecture))

    def group(oracle: Oracle) -> list[Example]:
        diff = np.ones(oracle.prompts.d_model, np.float32)
        prompts = [oracle.prompts.about(diff_at("L1", diff), (text,)) for text in ("Why?", "Which?")]
        return [Example(prompt, [300, 301]) for prompt in prompts]

    for architecture, dimensions in (("llama", 4), ("gemma3", 2)):  # the latter with a window of 8
        oracle = random_oracle(architecture)
        assert sft.collate_shared(oracle, [group(oracle)])["attention_mask"].ndim == dimensions
    oracle = random_oracle("llama")
    assert sft.reads_apart(oracle, group(oracle))

    def leak(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return output + output.cumsum(1)  # as a recurrent layer would

    hook = decoder_blocks(oracle.lm.get_base_model())[0].register_forward_hook(leak)
    assert not sft.reads_apart(oracle, group(oracle))
    hook.remove()
    assert sft.reads_apart(oracle, group(oracle))
    monkeypatch.setattr(oracle.lm.get_base_model(), "_supports_attention_backend", False)
    assert not sft.reads_apart(oracle, group(oracle))


def test_the_check_has_several_questions_though_training_begins_with_one(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []

    def remember(oracle: Oracle, group: list[Example]) -> bool:
        checked.append(len(group))
        return True

    monkeypatch.setattr(sft, "reads_apart", remember)
    config = TrainingConfig(steps=2, batch_size=2, evaluations=1)
    mixture = MixtureConfig(one_list_first=0.5, lists_first=0.5)
    train_oracle(fresh_oracle(), *data, config, mixture, 0, measure=lambda oracle: {})
    assert checked == [3]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"steps": 0}, "training.steps must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "training.learning_rate must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainingConfig(**setting)  # type: ignore[arg-type]
