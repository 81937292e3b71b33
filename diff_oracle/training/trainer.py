"""The loop of training: `transformers.Trainer`, made to measure on the way, to keep the best and to go on after a kill.

What is written is what is trained, adapter and injector: the base model's weights never are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list, save_fsdp_optimizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from diff_oracle.oracle.injection import decoder_blocks
from diff_oracle.training.checkpoints import Checkpoints

TRAINED = "trained.safetensors"
SELECTION = "selection/metric"
KEPT = 2  # of the latest checkpoints

Scores = dict[str, float]
Line = dict[str, Any]


class OracleTrainer(Trainer):
    """Trains an oracle, with what it takes to stop at any moment and go on.

    Args:
        oracle: Trained in place: an oracle, or another module that has a model `lm` and gives a loss.
        make_optimizer: Makes the optimiser of all that is trained.
        measure: Scores the oracle; its scores go into the log.
        select: What is to be highest, from these scores: the state where it was is what training ends with. None: the
            last state.
        evaluations: How often it is measured, at even distances; the last time at the end.
        patience: Training stops after so many measurements in a row that were no better. None: never.
        checkpoints: Where they go; there is one more at every measurement.
        checkpoint_every: Steps between them.
        callbacks: More of them.
        options: Other arguments of `Trainer`.
    """

    def __init__(
        self,
        oracle: nn.Module,
        make_optimizer: Callable[[Any], torch.optim.Optimizer],
        measure: Callable[[Any], Scores],
        select: Callable[[Scores], float] | None,
        evaluations: int,
        patience: int | None,
        checkpoints: Checkpoints,
        checkpoint_every: int,
        callbacks: Sequence[TrainerCallback] = (),
        **options: Any,
    ) -> None:
        self._oracle, self._make_optimizer, self._measure, self._select = oracle, make_optimizer, measure, select
        self._patience, self._checkpoints = patience, checkpoints
        self.optimizer: Any
        self.control: TrainerControl
        block = decoder_blocks(cast(Any, oracle).lm.get_base_model())[0]
        cast(Any, oracle)._no_split_modules = [type(block).__name__]  # what FSDP gathers at once
        timetable = _Timetable(self, evaluations, checkpoint_every)
        super().__init__(model=oracle, callbacks=[*callbacks, timetable], **options)

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        """The optimiser, made once."""
        if self.optimizer is None:
            self.optimizer = self._make_optimizer(self._oracle)
        return self.optimizer

    def fit(self) -> list[Line]:
        """Trains from the last checkpoint, or from the start; the oracle ends in its best state. Returns the log.

        Raises:
            ValueError: The loss or the weights are not finite.
        """
        last = self._checkpoints.last()
        if self.args.should_save:
            self._checkpoints.tidy_up()
        if last is not None:
            self.state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME))
        if not self.is_over():
            self.train(resume_from_checkpoint=None if last is None else str(last))
        # Without the time it took, and in the order that lines have which come from a checkpoint.
        history = [dict(sorted(line.items())) for line in self.state.log_history if "train_runtime" not in line]
        load_trained(self._oracle, self._checkpoints.path(best_step(history) or self.state.global_step))
        return history

    def is_over(self) -> bool:
        """Whether all steps are taken, or patience is at its end."""
        values = [line[SELECTION] for line in self.state.log_history if SELECTION in line]
        if self._patience is not None and values and len(values) - 1 - values.index(max(values)) >= self._patience:
            return True
        return self.state.global_step >= self.args.max_steps

    def evaluate(self, *_: Any, **__: Any) -> Scores:
        """Measures the oracle, in every process, as FSDP needs; what the main one finds counts."""
        self._oracle.eval()
        if isinstance(self._oracle, FSDPModule):  # `generate` is registered by Trainer
            register_fsdp_forward_method(self._oracle, "choice_log_probs")
        scores = self._measure(self._oracle)
        if isinstance(self._oracle, FSDPModule):
            self._oracle.reshard()
        if self._select is not None:
            scores = scores | {SELECTION: self._select(scores)}
        (scores,) = broadcast_object_list([scores])
        self.log(scores)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    def log(self, logs: Scores, start_time: float | None = None) -> None:
        """Adds a line to the log.

        Raises:
            ValueError: The loss is not finite.
        """
        loss = logs.get("loss", 0.0)
        if not math.isfinite(loss):
            raise ValueError(self._lost(f"the loss is {loss} at step {self.state.global_step}"))
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes what is trained.

        Raises:
            ValueError: It is not finite.
        """
        assert output_dir is not None
        tensors = {name: _whole(parameter).detach().cpu() for name, parameter in trained(self._oracle).items()}
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise ValueError(self._lost(f"the weights are not finite after step {self.state.global_step}"))
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            save_file(tensors, Path(output_dir) / TRAINED)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # into `args.output_dir`, which is `Checkpoints.partial`
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._checkpoints.add(self.state.global_step)
            best = best_step(self.state.log_history) or self.state.global_step
            self._checkpoints.keep({best, *self._checkpoints.steps()[-KEPT:]})
        self.accelerator.wait_for_everyone()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        # Trainer would write the base model's weights here.
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained(self._oracle, Path(resume_from_checkpoint))

    def _lost(self, what: str) -> str:
        """What has happened to a training, and what to do about it."""
        steps = self._checkpoints.steps()
        if not steps:
            return f"{what}: lower training.learning_rate"
        return (
            f"{what}: lower training.learning_rate, with another run_dir= or after deleting "
            f"{self._checkpoints.folder}, which keeps the checkpoint of step {steps[-1]}"
        )


class _Timetable(TrainerCallback):
    """When to measure and to save, and when it is over.

    A line of the log ends at every checkpoint, for a checkpoint holds no sum of losses.
    """

    def __init__(self, trainer: OracleTrainer, evaluations: int, checkpoint_every: int) -> None:
        self._trainer, self._evaluations, self._checkpoint_every = trainer, evaluations, checkpoint_every

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measures and saves."""
        measured = {math.ceil(state.max_steps * (i + 1) / self._evaluations) for i in range(self._evaluations)}
        control.should_evaluate = state.global_step in measured
        if control.should_evaluate or state.global_step % self._checkpoint_every == 0:
            control.should_log = control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stops where patience is at its end."""
        control.should_training_stop = control.should_training_stop or self._trainer.is_over()


def best_step(history: Sequence[Mapping[str, Any]]) -> int | None:
    """The step of the highest selection value, of equal ones the latest; None where there is no such value."""
    measured = [(line[SELECTION], line["step"]) for line in history if SELECTION in line]
    return max(measured)[1] if measured else None


def trained(oracle: nn.Module) -> dict[str, nn.Parameter]:
    """All that is trained, by name."""
    return {name: parameter for name, parameter in oracle.named_parameters() if parameter.requires_grad}


def load_trained(oracle: nn.Module, checkpoint: Path) -> None:
    """Puts a checkpoint's weights into an oracle."""
    saved = load_file(checkpoint / TRAINED)
    with torch.no_grad():
        for name, parameter in trained(oracle).items():
            value = saved[name].to(parameter.device)
            if isinstance(parameter, DTensor):
                value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            parameter.copy_(value)


def _whole(parameter: Tensor) -> Tensor:
    """The parameter, gathered where FSDP has each process hold a piece of it."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
