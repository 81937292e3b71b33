"""Training a reconstructor with `transformers.Trainer`: explanations in, diffs out."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from diff_oracle.nla.floor import shortened
from diff_oracle.nla.metrics import Means, spread
from diff_oracle.nla.reconstructor import Reconstructor
from diff_oracle.nla.rows import Claims, Rows
from diff_oracle.randomness import keyed_rng
from diff_oracle.tasks.claims import WORDINGS, ClaimKind, write
from diff_oracle.tasks.explanation import reworded
from diff_oracle.tasks.text import Text
from diff_oracle.training.checkpoints import Checkpoints
from diff_oracle.training.sft import CHECKPOINTS, TrainingConfig, make_optimizer, training_arguments
from diff_oracle.training.trainer import OracleTrainer, trained

logger = logging.getLogger(__name__)
METRIC = "select/fve"
SKIPPED, IN_A_ROW = "skipped_steps", "skipped_in_a_row"
MAX_IN_A_ROW = 10  # more are no accident


@dataclass
class ReadingConfig:
    """How explanations are varied while a reconstructor learns to read them."""

    reworded: float = 0.5
    """Share in another order and other words."""
    shortened: float = 0.3
    """Share of which some claims are left out, so that what is missing is not taken for a sign."""
    context_only: bool = False
    """No claims at all: what the reconstructor's other input tells."""

    def __post_init__(self) -> None:
        for name in ("reworded", "shortened"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"reading.{name} must be 0…1, got {getattr(self, name)}")


class ReadingDataset(torch.utils.data.Dataset[tuple[int, Text]]):
    """Rows in random order, pass after pass, each with a writing of its claims; the i-th depends on the seed and i."""

    def __init__(
        self,
        claims: Sequence[Claims],
        config: ReadingConfig,
        num_examples: int,
        seed: int,
        wordings: Mapping[ClaimKind, tuple[str, ...]] = MappingProxyType(WORDINGS),
    ) -> None:
        self._claims, self._config, self._length, self._seed = claims, config, num_examples, seed
        self._wordings = wordings
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[int, Text]:
        epoch, place = divmod(index, len(self._claims))
        if self._order[0] != epoch:
            self._order = epoch, keyed_rng(self._seed, "reading order", epoch).permutation(len(self._claims))
        row = int(self._order[1][place])
        if self._config.context_only:
            return row, ()
        claims, rng = list(self._claims[row]), keyed_rng(self._seed, "reading", index)
        if rng.random() < self._config.shortened:
            claims = list(shortened(claims, rng))
        in_other_words = rng.random() < self._config.reworded
        return row, reworded(claims, rng, self._wordings) if in_other_words else write(claims)


class ReconstructorTrainer(OracleTrainer):
    """Leaves out steps whose loss or gradient is not finite: weights, momentum and logged loss know nothing of them.

    How many there were so far, and how many in a row, stands in the log from the first one on. A checkpoint holds the
    log, which ends with it, so that a training that goes on counts on.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._loss = torch.zeros(())  # of the step so far
        self._sum, self._taken, self._left_out = 0.0, 0, 0  # since the last line of the log
        self._skipped, self._in_a_row = 0, 0
        super().__init__(*arguments, **options)
        self.add_callback(_Watch(self))

    def count_on(self) -> None:
        """Takes the counts from the log."""
        last: Mapping[str, Any] = next((line for line in reversed(self.state.log_history) if SKIPPED in line), {})
        self._skipped, self._in_a_row = last.get(SKIPPED, 0), last.get(IN_A_ROW, 0)

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        """The gradients of a batch, or of a part of it, and its loss."""
        loss = super().training_step(*arguments, **options)
        self._loss = self._loss.to(loss.device) + loss
        return loss.nan_to_num(0.0, 0.0, 0.0)  # `Trainer` adds it up

    def check_step(self) -> None:
        """Takes away the gradients of a step that is not finite, without which the optimiser does nothing.

        Raises:
            ValueError: There were too many in a row.
        """
        parameters = trained(self._oracle).values()
        finite = [self._loss.isfinite(), *(p.grad.isfinite().all() for p in parameters if p.grad is not None)]
        loss, self._loss = float(self._loss), torch.zeros(())
        if bool(torch.stack(finite).all()):
            self._sum, self._taken, self._in_a_row = self._sum + loss, self._taken + 1, 0
            return
        for parameter in parameters:
            parameter.grad = None
        self._left_out, self._skipped, self._in_a_row = self._left_out + 1, self._skipped + 1, self._in_a_row + 1
        step = self.state.global_step + 1
        logger.warning("step %d is left out: its loss or gradient is not finite", step)
        if self._in_a_row >= MAX_IN_A_ROW:
            raise ValueError(self._lost(f"loss or gradient are not finite in {MAX_IN_A_ROW} steps in a row, to {step}"))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds a line to the log; its loss is the mean over the steps that were taken."""
        if "loss" in logs:
            if self._left_out:
                del logs["loss"]
                logs |= {"loss": self._sum / self._taken} if self._taken else {}
            if not math.isfinite(logs.get("grad_norm", 0.0)):
                del logs["grad_norm"]
            if self._skipped:
                logs |= {SKIPPED: self._skipped, IN_A_ROW: self._in_a_row}
            self._sum, self._taken, self._left_out = 0.0, 0, 0
        super().log(logs, start_time)


class _Watch(TrainerCallback):
    """Tells a trainer when to look."""

    def __init__(self, trainer: ReconstructorTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Before the first step of a process."""
        self._trainer.count_on()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Between the gradients, which are clipped by then, and the weights."""
        self._trainer.check_step()


def skipped_steps(history: Sequence[Mapping[str, Any]]) -> int:
    """How many steps a training left out, by its log."""
    return max((int(line[SKIPPED]) for line in history if SKIPPED in line), default=0)


def train_reconstructor(
    model: Reconstructor,
    train: Rows,
    select: Rows,
    claims: tuple[Sequence[Claims], Sequence[Claims]],
    config: TrainingConfig,
    reading: ReadingConfig,
    seed: int,
    run_dir: Path,
    settings: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Trains in place, from the last checkpoint where there is one; the best state on the select rows is kept.

    Args:
        model: As it was made.
        train: What is rebuilt.
        select: What the state is chosen on.
        claims: What is read of the rows of `train`, and of those of `select`.
        config: How it is trained.
        reading: How what is read is varied.
        seed: Keys every draw.
        run_dir: Checkpoints go in here, and stay.
        settings: What must be the same for a training to go on.

    Returns:
        The log.

    Raises:
        ValueError: Loss or gradient are not finite in many steps in a row, a weight is not, or a training with other
            settings is unfinished here.
    """
    checkpoints = Checkpoints(run_dir / CHECKPOINTS)
    checkpoints.refuse_others(settings or {})
    checkpoints.claim(settings or {})
    dataset = ReadingDataset(claims[0], reading, config.steps * config.batch_size, seed, model.wordings)
    texts: list[Text] = [() if reading.context_only else write(row) for row in claims[1]]
    first = [dataset[i] for i in range(min(len(dataset), config.batch_size))]
    model.calibrate([train.records[row] for row, _ in first], [text for _, text in first])
    denominator = float(spread(select.target, Means.of(train.sites, train.target).at(select.sites)).mean())

    def measure(reader: Any) -> dict[str, float]:
        rebuilt = reader.reconstruct(select.records, texts)
        return {METRIC: 1 - float(np.mean((rebuilt - select.target) ** 2)) / denominator}

    trainer = ReconstructorTrainer(
        model,
        partial(make_optimizer, config=config),
        measure,
        lambda scores: scores[METRIC],
        config.evaluations,
        config.patience,
        checkpoints,
        config.checkpoint_every,
        args=training_arguments(model.device, config, seed, checkpoints.partial),
        train_dataset=dataset,
        data_collator=lambda examples: _collate(model, train, examples),
    )
    history = trainer.fit()
    model.eval()
    return history


def _collate(model: Reconstructor, rows: Rows, examples: Sequence[tuple[int, Text]]) -> dict[str, Any]:
    batch = model.batch([rows.records[row] for row, _ in examples], [text for _, text in examples])
    return {**batch, "target": torch.from_numpy(rows.target[[row for row, _ in examples]]).float()}
