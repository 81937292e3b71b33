"""Supervised training of an oracle with `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from diff_oracle.oracle.injection import decoder_blocks
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import Batch
from diff_oracle.records import RecordSet
from diff_oracle.subject.loading import DTYPES
from diff_oracle.tasks import Task
from diff_oracle.training.checkpoints import Checkpoints
from diff_oracle.training.examples import Example, ExampleDataset
from diff_oracle.training.mixture import MixtureConfig
from diff_oracle.training.muon import Muon
from diff_oracle.training.tracking import Tracking, check_tracker
from diff_oracle.training.trainer import OracleTrainer

CHECKPOINTS = "checkpoints"


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
    """Matrix products of training in bfloat16 (autocast); weights and updates stay in float32. A CPU that does not
    compute in bfloat16 takes float32."""
    base_dtype: str | None = None
    """Precision of the weights that are not trained, float32 or bfloat16: as the subject's (`model.dtype`) where it is
    not given. What is trained is float32 either way."""
    gradient_checkpointing: bool = False
    """Activations are computed again in the backward pass instead of being kept: less memory, a third more time."""
    gradient_accumulation: int = 1
    """Parts that a step's diffs are read in, one after the other: less memory, the same loss."""
    evaluations: int = 3
    """Points of the learning curve, measured on split `select`, at even distances; the last one at the end. The oracle
    is kept as it was at the best of them."""
    patience: int | None = None
    """Training stops after so many points in a row that were no better. Not at all where it is not given."""
    checkpoint_every: int = 200
    """Steps between two checkpoints; there is one more at every point of the learning curve."""
    tracker: str = "tensorboard"
    """Where the log goes, beside the run directory: tensorboard (`tensorboard/` in there), wandb, or none."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation", "evaluations", "patience", "checkpoint_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 1, got {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise ValueError(f"training.learning_rate must be above 0, got {self.learning_rate}")
        if self.base_dtype is not None and self.base_dtype not in DTYPES:
            raise ValueError(f"unknown training.base_dtype {self.base_dtype!r}: choose from {', '.join(DTYPES)}")
        check_tracker(self.tracker)

    def batch_size_of_process(self, num_processes: int) -> int:
        """Diffs that a process reads at once.

        Raises:
            ValueError: The batch cannot be split evenly.
        """
        parts = num_processes * self.gradient_accumulation
        if self.batch_size % parts:
            raise ValueError(
                f"training.batch_size={self.batch_size} is not a multiple of {parts}: {num_processes} processes × "
                f"training.gradient_accumulation={self.gradient_accumulation}"
            )
        return self.batch_size // parts


def train_oracle(
    oracle: Oracle,
    records: RecordSet,
    tasks: Sequence[Task],
    config: TrainingConfig,
    mixture: MixtureConfig,
    seed: int,
    measure: Callable[[Oracle], dict[str, float]],
    select: Callable[[dict[str, float]], float] | None = None,
    run_dir: Path | None = None,
) -> list[dict[str, Any]]:
    """Trains in place, from the last checkpoint where there is one.

    Args:
        oracle: As it was made; the same for the same run.
        records: What is asked about.
        tasks: What is asked, fitted.
        config: How it is trained.
        mixture: How much of what is asked.
        seed: Keys every draw.
        measure: Scores an oracle, for the learning curve.
        select: What is to be highest, from these scores: the oracle ends in the state where it was. None: the last.
        run_dir: The tracker's files go in here, and checkpoints, which stay (`Checkpoints.delete`). None: nothing is
            kept and nothing tracked.

    Returns:
        The log: losses, and every so often what `measure` says. The same whether the training was interrupted or not.

    Raises:
        ValueError: The loss or a weight is not finite, or the batch cannot be split evenly over the processes.
    """
    dataset = ExampleDataset(records, tasks, oracle.prompts, mixture, config.steps, config.batch_size, seed)
    collate = collate_shared if reads_apart(oracle, dataset.fullest_group()) else collate_apart
    if config.gradient_checkpointing:
        checkpoint_activations(oracle)
    with TemporaryDirectory() as scratch:
        checkpoints = Checkpoints((run_dir or Path(scratch)) / CHECKPOINTS)
        tracked = run_dir is not None and config.tracker != "none"
        trainer = OracleTrainer(
            oracle,
            partial(make_optimizer, config=config),
            measure,
            select,
            config.evaluations,
            config.patience,
            checkpoints,
            config.checkpoint_every,
            [Tracking(config.tracker, run_dir, checkpoints.settings())] if run_dir and tracked else [],
            args=training_arguments(oracle.device, config, seed, checkpoints.partial),
            train_dataset=dataset,
            data_collator=lambda groups: collate(oracle, groups),
        )
        history = trainer.fit()
    oracle.eval()
    return history


def checkpoint_activations(oracle: Oracle) -> None:
    """Makes the backward pass compute each block's activations again, instead of keeping them.

    Not those of the block behind whose output a diff is injected: it would be computed again outside of `injecting`.

    Raises:
        ValueError: The model does not support it.
    """
    base, injection = oracle.lm.get_base_model(), oracle.config.injection
    # The second is its name in earlier versions of transformers.
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if injection.kind == "residual":
        block: Any = decoder_blocks(base)[injection.block]
        block.gradient_checkpointing = False


def collate_shared(oracle: Oracle, groups: list[list[Example]]) -> Batch:
    """A row a diff; a row a question where one is longer than a sliding window."""
    longest = max(len(e.prompt.ids) + len(e.answer_ids) for group in groups for e in group)
    if longest >= oracle.sliding_window:
        return collate_apart(oracle, groups)
    return oracle.prompts.collate_shared([[(e.prompt, e.answer_ids) for e in group] for group in groups])


def collate_apart(oracle: Oracle, groups: list[list[Example]]) -> Batch:
    """A row a question."""
    examples = [e for group in groups for e in group]
    return oracle.prompts.collate([e.prompt for e in examples], [e.answer_ids for e in examples])


@torch.no_grad()
def reads_apart(oracle: Oracle, group: list[Example]) -> bool:
    """Whether the model reads the questions of a row each as if it stood there alone.

    Recurrent layers do not, and models that make their own masks cannot be told to.
    """
    if not oracle.takes_any_mask:
        return False
    shared, apart = (
        oracle(**{name: value.to(oracle.device) for name, value in collate(oracle, [group]).items()})["loss"]  # type: ignore[attr-defined]
        for collate in (collate_shared, collate_apart)
    )
    return bool(torch.isclose(shared, apart, rtol=1e-2))


def make_optimizer(oracle: torch.nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Muon: momentum whose updates are made orthogonal, so that all directions of a matrix learn alike.

    Reading a diff is copying a vector, its weak directions as well as its strong ones. All that is trained, adapter
    and injector, are matrices, as Muon needs.
    """
    matrices = [parameter for parameter in oracle.parameters() if parameter.requires_grad]
    return Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay)


def training_arguments(device: torch.device, config: TrainingConfig, seed: int, folder: Path) -> TrainingArguments:
    """What `Trainer` is told; it writes into the folder."""
    use_cpu = device.type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size_of_process(PartialState(cpu=use_cpu).num_processes),
        gradient_accumulation_steps=config.gradient_accumulation,
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
        use_cpu=use_cpu,
        ddp_find_unused_parameters=True,  # a batch may leave some out, as with experts
    )
    arguments._n_gpu = 1  # several would be wrapped in DataParallel, whose copies do not know what to inject
    return arguments
