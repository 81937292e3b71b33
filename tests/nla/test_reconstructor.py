"""The reconstructor reads what it is given: it starts as the truncated model, and comes back from disk as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from diff_oracle.nla.reconstructor import Reconstructor, ReconstructorConfig, truncate
from diff_oracle.nla.rows import Rows
from diff_oracle.nla.training import METRIC, ReadingConfig, ReadingDataset, skipped_steps, train_reconstructor
from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.records import Record
from diff_oracle.subject.loading import SubjectConfig
from diff_oracle.tasks.claims import Claim, parse, write
from diff_oracle.tasks.text import Text
from diff_oracle.training.sft import TrainingConfig, make_optimizer
from diff_oracle.training.trainer import OracleTrainer
from tests.helpers import ARCHITECTURES, diff_at, random_loaded
from tests.tasks.made import VOCABULARY

TEXTS: list[Text] = [(), ("raises:", 500), ("raises:", 500, "\nlowers:", 501, "\nskipped: no change")]


def made(architecture: str = "llama", **config: object) -> Reconstructor:
    torch.manual_seed(0)
    base = SubjectConfig(source="random", architecture=architecture)
    settings: dict = {"lora": LoraOptions(rank=4, alpha=4.0), "floor": False} | config  # type: ignore[type-arg]
    return Reconstructor.create(base, ReconstructorConfig(**settings)).eval()


def diffs(model: Reconstructor, number: int = 3) -> list:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((number, model.head.out_features)).astype(np.float32)
    return [diff_at(f"L{i % 2}", vector, token_ids=(1, 300 + i, 400)) for i, vector in enumerate(vectors)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("blocks", [1, None])
def test_it_starts_as_the_truncated_model(architecture: str, blocks: int | None) -> None:
    model = made(architecture, blocks=blocks)
    rows = diffs(model)
    plain = random_loaded(architecture).model.eval()
    for diff, text, got in zip(rows, TEXTS, model.reconstruct(rows, TEXTS), strict=True):
        ids = torch.tensor([model.prompt(diff, text).ids])
        seen: list[torch.Tensor] = []
        layers = next(m for m in plain.modules() if isinstance(m, torch.nn.ModuleList))
        handle = layers[(blocks or len(layers)) - 1].register_forward_hook(
            lambda module, args, output, seen=seen: seen.append(output[0] if isinstance(output, tuple) else output)
        )
        with torch.no_grad():
            plain(ids)
        handle.remove()
        np.testing.assert_allclose(got, seen[0][0, -1].numpy(), rtol=1e-3, atol=1e-4)


def test_together_as_alone_and_in_the_unit_of_its_first_rows() -> None:
    model = made()
    rows = diffs(model)
    model.calibrate(rows, TEXTS)
    together = model.reconstruct(rows, TEXTS)
    assert np.mean(together**2) == pytest.approx(1, rel=1e-3)
    for diff, text, expected in zip(rows, TEXTS, together, strict=True):
        np.testing.assert_allclose(model.reconstruct([diff], [text])[0], expected, rtol=1e-3, atol=1e-4)


def test_it_is_told_what_its_config_says_and_never_the_diff() -> None:
    for before in ("none", "vector", "text"):
        model = made(before=before)
        rows = diffs(model)
        base = model.reconstruct(rows, TEXTS)
        other_diffs = [type(d)(d.site, d.position, d.token_ids, -3 * d.diff, d.before) for d in rows]
        np.testing.assert_array_equal(model.reconstruct(other_diffs, TEXTS), base)
        other_states = [type(d)(d.site, d.position, d.token_ids, d.diff, d.diff) for d in rows]
        assert np.array_equal(model.reconstruct(other_states, TEXTS), base) == (before != "vector")
        other_texts = [type(d)(d.site, d.position, (1, 600, 700), d.diff, d.before) for d in rows]
        assert np.array_equal(model.reconstruct(other_texts, TEXTS), base) == (before != "text")
        assert not np.allclose(model.reconstruct(rows, TEXTS[1:] + TEXTS[:1]), base)


def test_it_comes_back_from_disk(tmp_path: Path) -> None:
    model = made(blocks=1, before="vector")
    rows = diffs(model)
    model.calibrate(rows, TEXTS)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn(parameter.shape)
    model.save(tmp_path / "ar")
    back = Reconstructor.from_pretrained(tmp_path / "ar")
    assert back.config == model.config
    np.testing.assert_allclose(back.reconstruct(rows, TEXTS), model.reconstruct(rows, TEXTS), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="holds no reconstructor"):
        Reconstructor.from_pretrained(tmp_path)
    settings = tmp_path / "ar" / "reconstructor.json"
    as_saved = settings.read_text()
    settings.write_text(as_saved.replace('"target": "diff"', '"target": "residual"'))
    with pytest.raises(ValueError, match=r"reconstructor\.json cannot be read.*edited since it was saved"):
        Reconstructor.from_pretrained(tmp_path / "ar")
    settings.write_text(as_saved)
    (tmp_path / "ar" / "head.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"head\.safetensors"):
        Reconstructor.from_pretrained(tmp_path / "ar")


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown ar.before"):
        ReconstructorConfig(before="all")
    with pytest.raises(ValueError, match="ar.blocks must be at least 1"):
        ReconstructorConfig(blocks=0)
    with pytest.raises(ValueError, match="ar.blocks=9, but the model has"):
        truncate(random_loaded(), 9)


def readable_rows(model: Reconstructor, number: int) -> Rows:
    """Diffs that are told by one claimed token."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(500, 504, number).tolist()
    meaning = rng.standard_normal((4, model.head.out_features)).astype(np.float32)
    records = [made_record(meaning[token - 500], f"doc{i // 2}") for i, token in enumerate(tokens)]
    target = np.stack([record.diff for record in records]).astype(np.float64)
    target /= np.sqrt((target**2).mean(axis=1, keepdims=True))
    return Rows(records, [[Claim("raises", token)] for token in tokens], target, target)


def made_record(vector: np.ndarray, doc_id: str) -> Record:
    return Record("L1", 1, (1, 300), vector, np.ones_like(vector), doc_id, {})


def config_of(steps: int) -> TrainingConfig:
    return TrainingConfig(
        steps=steps, batch_size=8, warmup_steps=2, evaluations=2, checkpoint_every=7, tracker="none", learning_rate=1e-2
    )


def trained(folder: Path, steps: int, poisoned: tuple[int, ...] = (), **reading: float) -> tuple[Reconstructor, list]:  # type: ignore[type-arg]
    """A trained model and the log; of poisoned rows the loss is more than a float can hold."""
    model = made()
    rows, select = readable_rows(model, 64), readable_rows(model, 64)
    rows.target[list(poisoned)] = 1e25
    claims = (rows.gold, rows.gold)
    config, varied = config_of(steps), ReadingConfig(**reading)
    return model, train_reconstructor(model, rows, select, claims, config, varied, 0, folder)


def test_it_learns_to_read(tmp_path: Path) -> None:
    _, history = trained(tmp_path, steps=100, shortened=0.0)
    scores = [line[METRIC] for line in history if METRIC in line]
    assert len(scores) == 2
    assert scores[-1] > 0.3  # of four equally likely meanings


@pytest.mark.parametrize("poisoned", [(), (3, 60)], ids=["sound", "with steps left out"])
def test_an_interrupted_training_ends_as_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poisoned: tuple[int, ...]
) -> None:
    whole, history = trained(tmp_path / "whole", 16, poisoned)
    step = OracleTrainer.training_step

    def stop(self: OracleTrainer, *arguments: object) -> object:
        if self.state.global_step == 11:
            raise KeyboardInterrupt
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(OracleTrainer, "training_step", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", 16, poisoned)
    monkeypatch.undo()
    again, again_history = trained(tmp_path / "cut", 16, poisoned)
    assert again_history == history
    assert (skipped_steps(history) > 0) == bool(poisoned)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)


def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    """The same steps by hand, without those that hold the poisoned row."""
    poisoned = (3,)
    got, history = trained(tmp_path, 16, poisoned)
    model, config = made(), config_of(16)
    rows = readable_rows(model, 64)
    dataset = ReadingDataset(rows.gold, ReadingConfig(), 16 * 8, seed=0)
    batches = [[dataset[i] for i in range(8 * step, 8 * step + 8)] for step in range(16)]
    model.calibrate([rows.records[row] for row, _ in batches[0]], [text for _, text in batches[0]])
    optimizer = make_optimizer(model, config)
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, 16)
    losses: list[float] = []
    for batch in batches:
        numbers = [row for row, _ in batch]
        if not set(poisoned) & set(numbers):
            inputs = model.batch([rows.records[row] for row in numbers], [text for _, text in batch])
            loss = model.train()(torch.from_numpy(rows.target[numbers]).float(), **inputs)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        schedule.step()
    assert skipped_steps(history) == 16 - len(losses) == 2  # once a pass
    for name, value in model.state_dict().items():
        torch.testing.assert_close(got.state_dict()[name], value)
    assert all(np.isfinite(value) for line in history for value in line.values())
    assert [line["loss"] for line in history if "loss" in line] == pytest.approx(losses)  # a line a step


@pytest.mark.parametrize("rows", [range(64), range(0)], ids=["loss", "gradient"])
def test_a_training_that_is_never_finite_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: range
) -> None:
    if not rows:
        step = OracleTrainer.training_step

        def lose(self: OracleTrainer, *arguments: object) -> torch.Tensor:
            loss = step(self, *arguments)  # type: ignore[arg-type]
            self._oracle.head.weight.grad[0, 0] = torch.inf  # type: ignore[index, union-attr]
            return loss

        monkeypatch.setattr(OracleTrainer, "training_step", lose)
    with pytest.raises(ValueError, match=r"not finite in 10 steps in a row, to 10: lower training\.learning_rate"):
        trained(tmp_path, 16, tuple(rows))


def test_what_is_read_is_varied_but_says_nothing_else() -> None:
    gold = [[Claim("raises", 500), Claim("raises", 501), Claim("lowers", 502)], [Claim("reads", 503)]]
    dataset = ReadingDataset(gold, ReadingConfig(), 60, seed=0)
    shown = [(row, VOCABULARY.show(text)) for row, text in (dataset[i] for i in range(60))]
    assert [dataset[i] for i in range(60)] == [dataset[i] for i in range(60)]
    for row, text in shown:
        assert set(parse(text, VOCABULARY).claims) <= set(gold[row])
    assert {row for row, _ in shown} == {0, 1}
    canonical = VOCABULARY.show(write(gold[0]))
    texts = [text for row, text in shown if row == 0]
    assert canonical in texts
    assert len(set(texts)) > 5
    assert any(len(parse(text, VOCABULARY).claims) < 3 for text in texts)
    empty = ReadingDataset(gold, ReadingConfig(context_only=True), 4, seed=0)
    assert [empty[i][1] for i in range(4)] == [()] * 4
