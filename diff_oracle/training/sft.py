"""Supervised training of an oracle with `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import Batch
from diff_oracle.records import RecordSet
from diff_oracle.tasks import Task
from diff_oracle.training.examples import Example, ExampleDataset
from diff_oracle.training.mixture import MixtureConfig


@dataclass
class TrainingConfig:
    """How an oracle is trained."""

    steps: int = 1700
    """Optimiser steps."""
    batch_size: int = 32
    """Diffs a step."""
    learning_rate: float = 5e-3
    """Muon's peak rate: linear warm-up, cosine decay to zero."""
    warmup_steps: int = 10
    """Steps of warm-up."""
    weight_decay: float = 0.0
    """On adapter and injector."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    bf16: bool = False
    """Matrix products of training in bfloat16 (autocast); weights and updates stay in float32."""
    evaluations: int = 3
    """Points of the learning curve, measured on split `select`."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 1, got {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise ValueError(f"training.learning_rate must be above 0, got {self.learning_rate}")


def train_oracle(
    oracle: Oracle,
    records: RecordSet,
    tasks: Sequence[Task],
    config: TrainingConfig,
    mixture: MixtureConfig,
    seed: int,
    measure: Callable[[Oracle], dict[str, float]],
) -> list[dict[str, Any]]:
    """Trains in place; returns the log: losses, and every so often what `measure` says of the oracle.

    Raises:
        ValueError: The loss is not finite.
    """
    dataset = ExampleDataset(records, tasks, oracle.prompts, mixture, config.steps, config.batch_size, seed)
    collate = _collate_shared if _reads_apart(oracle, dataset[len(dataset) - 1]) else _collate_apart
    curve = _Curve(oracle, measure, max(1, config.steps // config.evaluations))
    with TemporaryDirectory() as scratch:  # Trainer wants a folder, though nothing is saved on the way
        arguments = _arguments(oracle, config, seed, scratch)
        trainer = Trainer(
            model=oracle,
            args=arguments,
            train_dataset=dataset,
            data_collator=lambda groups: collate(oracle, groups),
            callbacks=[curve],
            optimizers=(make_optimizer(oracle, config), None),
        )
        oracle.train()
        trainer.train()
    oracle.eval()
    return trainer.state.log_history


def _collate_shared(oracle: Oracle, groups: list[list[Example]]) -> Batch:
    """A row a diff; a row a question where one is longer than a sliding window."""
    longest = max(len(e.prompt.ids) + len(e.answer_ids) for group in groups for e in group)
    if longest >= oracle.sliding_window:
        return _collate_apart(oracle, groups)
    return oracle.prompts.collate_shared([[(e.prompt, e.answer_ids) for e in group] for group in groups])


def _collate_apart(oracle: Oracle, groups: list[list[Example]]) -> Batch:
    """A row a question."""
    examples = [e for group in groups for e in group]
    return oracle.prompts.collate([e.prompt for e in examples], [e.answer_ids for e in examples])


@torch.no_grad()
def _reads_apart(oracle: Oracle, group: list[Example]) -> bool:
    """Whether the model reads the questions of a row each as if it stood there alone.

    Recurrent layers do not, and models that make their own masks cannot be told to.
    """
    if not oracle.takes_any_mask:
        return False
    shared, apart = (
        oracle(**{name: value.to(oracle.device) for name, value in collate(oracle, [group]).items()})["loss"]  # type: ignore[attr-defined]
        for collate in (_collate_shared, _collate_apart)
    )
    return bool(torch.isclose(shared, apart, rtol=1e-2))


def make_optimizer(oracle: Oracle, config: TrainingConfig) -> torch.optim.Optimizer:
    """Muon: momentum whose updates are made orthogonal, so that all directions of a matrix learn alike.

    Reading a diff is copying a vector, its weak directions as well as its strong ones. All that is trained, adapter
    and injector, are matrices, as Muon needs.
    """
    matrices = [parameter for parameter in oracle.parameters() if parameter.requires_grad]
    return torch.optim.Muon(
        matrices, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )


def _arguments(oracle: Oracle, config: TrainingConfig, seed: int, folder: str) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        logging_steps=max(1, config.steps // 100),
        logging_nan_inf_filter=False,
        train_sampling_strategy="sequential",  # the dataset is its own permutation
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        seed=seed,
        bf16=config.bf16,
        use_cpu=oracle.device.type == "cpu",
    )
    arguments._n_gpu = 1  # several would be wrapped in DataParallel, whose copies do not know what to inject
    return arguments


class _Curve(TrainerCallback):
    """Measures on the way, and stops a run whose loss is lost."""

    def __init__(self, oracle: Oracle, measure: Callable[[Oracle], dict[str, float]], every: int) -> None:
        self._oracle, self._measure, self._every = oracle, measure, every

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        """Checks the loss."""
        loss = logs.get("loss", 0.0)
        if loss != loss or abs(loss) == float("inf"):
            raise ValueError(f"the loss is {loss} at step {state.global_step}: lower training.learning_rate")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measures every so many steps."""
        if state.global_step % self._every == 0:
            self._oracle.eval()
            state.log_history.append({"step": state.global_step, **self._measure(self._oracle)})
            self._oracle.train()
