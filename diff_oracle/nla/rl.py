"""Reinforcement learning of the pair: explanations that rebuild their diffs better are made likelier.

A step: the policy explains some diffs several times each, the reconstructor reads what it said, and each explanation is
rewarded by how near that comes (`reward`). The policy is moved towards what was better than its group (`grpo`), held
near the oracle it began as, and the reconstructor goes on learning to read what is said now. Two arms tell what of a
gain is whose: with `frozen_av` only the reconstructor learns, with `sft_continued` both go on as before, on as many
rows.

Every draw is keyed by the step, so that a killed run goes on from its last checkpoint as if nothing had happened. Of
several processes (`accelerate launch`) the first measures and writes; all hold the whole pair.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from diff_oracle.nla.health import Line, degenerate
from diff_oracle.nla.metrics import Means
from diff_oracle.nla.pair import DiffNLA
from diff_oracle.nla.rows import Rows
from diff_oracle.nla.selection import METRIC, Selection
from diff_oracle.nla.steps import RlConfig, Steps
from diff_oracle.oracle.model import Oracle
from diff_oracle.subject.model import Subject
from diff_oracle.tasks.truth import TruthConfig, measured
from diff_oracle.training.checkpoints import Checkpoints
from diff_oracle.training.processes import of_first, rank, wait
from diff_oracle.training.sft import CHECKPOINTS, TrainingConfig, make_optimizer
from diff_oracle.training.tracking import open_tracker
from diff_oracle.training.trainer import KEPT, TRAINED, load_trained, trained

logger = logging.getLogger(__name__)
STATE, OPTIMIZERS = "state.json", "optimizers.pt"


class ReinforcementLearning:
    """One run: the pair, and what of it a checkpoint holds.

    Args:
        pair: Trained in place.
        reference: The policy as it began; it stays.
        train: What is explained and rebuilt.
        select: What states are compared on.
        subject: On which claims are checked.
        truth: Which of them are true.
        config: How.
        run_dir: Checkpoints go in here.
        settings: What must be the same for a run to go on.

    Attributes:
        lines: The health of every step, and what was measured; first of all before the first step.
        examples: Explanations of rows of `select` at every measurement, beside what was measured on the model.
        stopped: Why the run ended before its last step; None where it did not.
    """

    def __init__(
        self,
        pair: DiffNLA,
        reference: Oracle,
        train: Rows,
        select: Rows,
        subject: Subject,
        truth: TruthConfig,
        config: RlConfig,
        run_dir: Path,
        settings: dict[str, Any] | None = None,
    ) -> None:
        pair.av.eval(), pair.ar.eval(), reference.eval().requires_grad_(False)
        self._config, means = config, Means.of(train.sites, train.target)
        holds = measured(select.records, subject, pair.av.vocabulary, truth)
        self._selection = Selection(pair, select, holds, means, config.reward.truth_gated, config.seed)
        self._checkpoints = Checkpoints(run_dir / CHECKPOINTS)
        self._checkpoints.refuse_others(settings or {})
        if rank() == 0:
            self._checkpoints.claim(settings or {})
        rates = {"policy": config.updates.learning_rate, "ar": config.updates.ar_learning_rate}
        self._parts: dict[str, Any] = {"policy": pair.av, "ar": pair.ar}
        self._optimizers = {
            name: make_optimizer(part, TrainingConfig(learning_rate=rates[name], tracker="none"))
            for name, part in self._parts.items()
        }
        self._steps = Steps(pair, reference, train, means, subject, truth, config, self._optimizers)
        self._rates, self._step = rates, 0
        self._run_dir, self._settings = run_dir, settings or {}
        self.lines: list[Line] = []
        self.examples: list[Line] = []
        self.stopped: str | None = None

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self._checkpoints.last() is not None

    @property
    def gain(self) -> float:
        """What the best state has over the first, in FVE on `select`."""
        found = [line[METRIC] for line in self.lines if METRIC in line]
        return float(max(found) - found[0])

    @property
    def best_step(self) -> int:
        """After which step the pair was best on `select`; of equal ones the latest."""
        return int(max((line[METRIC], line["step"]) for line in self.lines if METRIC in line)[1])

    def fit(self) -> None:
        """Runs from the last checkpoint, or from the start; the pair ends in its best state.

        Raises:
            ValueError: The gate is closed; or weights or log-probabilities are not what they must be.
        """
        last = self._checkpoints.last()
        wait()
        if rank() == 0:
            self._checkpoints.tidy_up()
        if last is not None:
            self._load(last)
        else:
            self.lines = [{"step": 0, **self._measure()}]
            if self._config.gate and rank() == 0:
                self._selection.check_gate()
            self._save()
        tracker = open_tracker(self._config.tracker, self._run_dir, self._settings, self._step) if rank() == 0 else None
        bar = tqdm(
            total=self._config.steps, initial=self._step, desc=self._config.arm, unit=" steps", disable=rank() > 0
        )
        while self._step < self._config.steps and self.stopped is None:
            self._set_rates()
            take = self._steps.supervised if self._config.arm == "sft_continued" else self._steps.reinforced
            line = take(self._step)
            self._step += 1
            self.lines.append({"step": self._step, **line})
            self.stopped = degenerate(self.lines[1:], self._config.stop)
            self._write_down()
            if tracker is not None:
                tracker.log({n if "/" in n else f"train/{n}": v for n, v in self.lines[-1].items()}, step=self._step)
            bar.update()
        bar.close()
        if tracker is not None:
            tracker.finish()
        if self.stopped is not None:
            logger.warning("stopped after step %d: %s", self._step, self.stopped)
        for name, part in self._parts.items():
            load_trained(part, self._checkpoints.path(self.best_step) / name)

    def _write_down(self) -> None:
        """Measures and saves where it is time to."""
        steps, number = self._config.steps, self._config.evaluations
        due = {math.ceil(steps * (i + 1) / number) for i in range(number)}
        if self._step in due or self.stopped is not None:
            self.lines[-1] |= self._measure()
        elif self._step % self._config.checkpoint_every:
            return
        self._save()

    def _measure(self) -> dict[str, float]:
        scores = of_first(self._selection.measure() if rank() == 0 else {})
        if rank() > 0:
            return scores
        self.examples += [{"step": self._step, **example} for example in self._selection.examples()]
        logger.info("step %d: %s", self._step, ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
        return scores

    def _set_rates(self) -> None:
        """Linear warm-up, cosine decay to zero."""
        steps, warmup = self._config.steps, self._config.updates.warmup_steps
        share = min(1.0, (self._step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * self._step / steps))
        for name, optimizer in self._optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self._rates[name] * share

    def _save(self) -> None:
        """Writes a checkpoint; the best one and the latest are kept.

        Raises:
            ValueError: A weight is not finite.
        """
        if rank() > 0:
            wait()
            return
        folder = self._checkpoints.partial / self._checkpoints.path(self._step).name
        for name, part in self._parts.items():
            tensors = {key: parameter.detach().cpu().contiguous() for key, parameter in trained(part).items()}
            if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
                raise ValueError(
                    f"weights of {name} are not finite after step {self._step}: lower rl.updates.learning_rate or "
                    "rl.updates.ar_learning_rate, with another run_dir="
                )
            (folder / name).mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / name / TRAINED)
        torch.save({name: o.state_dict() for name, o in self._optimizers.items()}, folder / OPTIMIZERS)
        state = {"step": self._step, "lines": self.lines, "examples": self.examples, "stopped": self.stopped}
        (folder / STATE).write_text(json.dumps(state))
        self._checkpoints.add(self._step)
        self._checkpoints.keep({self.best_step, *self._checkpoints.steps()[-KEPT:]})
        wait()

    def _load(self, folder: Path) -> None:
        for name, part in self._parts.items():
            load_trained(part, folder / name)
        for name, state in torch.load(folder / OPTIMIZERS, weights_only=True).items():
            self._optimizers[name].load_state_dict(state)
        state = json.loads((folder / STATE).read_text())
        self._step, self.lines, self.examples = state["step"], state["lines"], state["examples"]
        self.stopped = state["stopped"]
