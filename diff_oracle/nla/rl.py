"""Reinforcement learning of the pair: explanations that rebuild their diffs better are made likelier.

A step: the policy explains some diffs several times each, the reconstructor reads what it said, and each explanation is
rewarded by how near that comes (`reward`). The policy is moved towards what was better than its group (`grpo`), held
near the oracle it began as, and the reconstructor goes on learning to read what is said now. Two arms tell what of a
gain is whose: with `frozen_av` only the reconstructor learns, with `sft_continued` both go on as before, on as many
rows.

Every draw is keyed by the step, so that a killed run goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from diff_oracle.nla.grpo import advantages
from diff_oracle.nla.health import Line, StopConfig, degenerate, explanation_health, fve, reward_health
from diff_oracle.nla.metrics import Means
from diff_oracle.nla.pair import QUESTION, DiffNLA, as_read, longest_explanation
from diff_oracle.nla.reward import Judged, RewardConfig, judge, rewards
from diff_oracle.nla.rows import Claims, Rows
from diff_oracle.nla.sampler import Samples, sample
from diff_oracle.nla.selection import METRIC, Selection
from diff_oracle.nla.training import ReadingConfig, ReadingDataset
from diff_oracle.nla.updates import UpdateConfig, update_policy, update_reconstructor, update_supervised
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import Prompt
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import Record
from diff_oracle.subject.model import Subject
from diff_oracle.tasks.claims import write
from diff_oracle.tasks.truth import TruthConfig, measured
from diff_oracle.training.checkpoints import Checkpoints
from diff_oracle.training.sft import CHECKPOINTS, TrainingConfig, make_optimizer
from diff_oracle.training.trainer import KEPT, TRAINED, load_trained, trained

logger = logging.getLogger(__name__)
ARMS = ("rl", "frozen_av", "sft_continued")
STATE, OPTIMIZERS = "state.json", "optimizers.pt"


@dataclass
class RlConfig:
    """How the pair is trained."""

    arm: str = "rl"
    """`rl`; `frozen_av`, the same without updates of the policy; `sft_continued`, both supervised on gold explanations,
    with as many rows a step."""
    steps: int = 200
    """Steps."""
    diffs: int = 16
    """Diffs a step."""
    group_size: int = 8
    """Explanations of each."""
    max_new_tokens: int | None = None
    """Where an explanation is cut off; where the longest one ends if it is not given."""
    min_spread: float = 1e-3
    """Groups whose rewards have no larger standard deviation are dropped."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """What is rewarded."""
    updates: UpdateConfig = field(default_factory=UpdateConfig)
    """How the parts are updated."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    """How explanations are varied while the reconstructor learns to read them."""
    stop: StopConfig = field(default_factory=StopConfig)
    """When a run has degenerated."""
    gate: bool = True
    """Whether nothing is begun unless the reconstructor does better with an explanation than with another diff's."""
    evaluations: int = 4
    """Measurements on split `select` after the first, at even distances; the pair is kept as it was at the best."""
    selection_rows: int = 400
    """Rows of split `select` that are measured."""
    checkpoint_every: int = 25
    """Steps between two checkpoints; there is one more at every measurement."""
    seed: int = 0
    """Keys every draw."""

    def __post_init__(self) -> None:
        if self.arm not in ARMS:
            raise ValueError(f"unknown rl.arm {self.arm!r}: choose from {', '.join(ARMS)}")
        if self.group_size < 2:
            raise ValueError(f"rl.group_size must be at least 2, got {self.group_size}: samples are compared")
        for name in ("steps", "diffs", "evaluations", "selection_rows", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"rl.{name} must be at least 1, got {getattr(self, name)}")


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
        self._policy, self._ar = pair.av.eval(), pair.ar.eval()
        self._reference = reference.eval().requires_grad_(False)
        self._train, self._subject, self._truth = train, subject, truth
        self._config, self._seed = config, config.seed
        self._means = Means.of(train.sites, train.target)
        holds = measured(select.records, subject, pair.av.vocabulary, truth)
        self._selection = Selection(pair, select, holds, self._means, config.reward.truth_gated, config.seed)
        self._max_new_tokens = config.max_new_tokens or longest_explanation(pair.config)
        self._by_site: dict[str, list[int]] = {}
        for i, site in enumerate(train.sites):
            self._by_site.setdefault(site, []).append(i)
        self._checkpoints = Checkpoints(run_dir / CHECKPOINTS)
        self._checkpoints.refuse_others(settings or {})
        self._checkpoints.claim(settings or {})
        rates = {"policy": config.updates.learning_rate, "ar": config.updates.ar_learning_rate}
        self._parts: dict[str, Any] = {"policy": self._policy, "ar": self._ar}
        self._optimizers = {
            name: make_optimizer(part, TrainingConfig(learning_rate=rates[name], tracker="none"))
            for name, part in self._parts.items()
        }
        self._rates, self._step = rates, 0
        self.lines: list[Line] = []
        self.examples: list[Line] = []
        self.stopped: str | None = None

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
        self._checkpoints.tidy_up()
        if last is not None:
            self._load(last)
        else:
            self.lines = [{"step": 0, **self._measure()}]
            if self._config.gate:
                self._selection.check_gate()
            self._save()
        bar = tqdm(total=self._config.steps, initial=self._step, desc=self._config.arm, unit=" steps")
        while self._step < self._config.steps and self.stopped is None:
            self._set_rates()
            line = self._supervised() if self._config.arm == "sft_continued" else self._reinforced()
            self._step += 1
            self.lines.append({"step": self._step, **line})
            self.stopped = degenerate(self.lines[1:], self._config.stop)
            self._write_down()
            bar.update()
        bar.close()
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

    def _reinforced(self) -> Line:
        """A step of sampling, rewarding and updating."""
        config, rng = self._config, keyed_rng(self._seed, "rl step", self._step)
        rows = self._rows(config.diffs)
        prompts = [self._policy.prompts.about(self._train.records[i], QUESTION) for i in rows]
        generator = torch.Generator(self._policy.device).manual_seed(int(rng.integers(2**62)))
        times = [time.perf_counter()]
        with config.updates.precision(self._policy.device):
            samples = sample(self._policy, prompts, config.group_size, self._max_new_tokens, generator)
        times.append(time.perf_counter())
        of_samples = np.repeat(rows, config.group_size)
        records, target = [self._train.records[i] for i in of_samples], self._train.target[of_samples]
        judged = self._judge(samples, [self._train.records[i] for i in rows])
        rebuilt = self._ar.reconstruct(records, [as_read(j.read) for j in judged])
        wrong = self._train.target[self._wrong(of_samples, rng)] if config.reward.contrastive else None
        earned = rewards(judged, rebuilt, target, config.reward, wrong).reshape(len(rows), config.group_size)
        times.append(time.perf_counter())
        line: Line = reward_health(earned, config.min_spread) | explanation_health(judged)
        line |= {"fve": fve(rebuilt, target, self._means.at([record.site for record in records]))}
        line |= {"entropy": float(samples.entropy.sum() / samples.mask.sum())}
        if config.arm == "rl":
            advantage = advantages(torch.from_numpy(earned).float(), config.min_spread).flatten()
            line |= update_policy(
                self._policy,
                self._reference,
                self._optimizers["policy"],
                samples,
                advantage.to(self._policy.device),
                config.updates,
                rng,
                self._gold(rows) if config.updates.sft_anchor else (),
            )
        read = [i for i, j in enumerate(judged) if not j.failed]
        line |= self._teach_reading([int(of_samples[i]) for i in read], [judged[i].read for i in read])
        times.append(time.perf_counter())
        return line | _shares(times, int(samples.mask.sum()))

    def _supervised(self) -> Line:
        """A step of both parts on as many gold explanations as would be sampled."""
        rows = [i for i in self._rows(self._config.diffs * self._config.group_size) if self._train.gold[i]]
        start = time.perf_counter()
        gold = self._gold(rows)
        line = update_supervised(self._policy, self._optimizers["policy"], gold, self._config.updates)
        line |= self._teach_reading(rows, [self._train.gold[i] for i in rows])
        tokens = sum(len(answer) + 1 for _, answer in gold)
        return line | {"tokens_per_second": tokens / (time.perf_counter() - start)}

    def _teach_reading(self, rows: Sequence[int], claims: Sequence[Claims]) -> dict[str, float]:
        """The reconstructor learns to read explanations of some rows, in other orders and words."""
        if not rows:
            return {}
        seed = int(keyed_rng(self._seed, "rl reading", self._step).integers(2**62))
        varied = ReadingDataset(claims, self._config.reading, len(claims), seed)
        examples = [varied[i] for i in range(len(varied))]
        order = [rows[place] for place, _ in examples]
        return update_reconstructor(
            self._ar,
            self._optimizers["ar"],
            [self._train.records[i] for i in order],
            [text for _, text in examples],
            self._train.target[order],
            self._config.updates,
        )

    def _judge(self, samples: Samples, records: Sequence[Record]) -> list[Judged]:
        size = len(samples) // len(records)
        truth = [m for m in measured(records, self._subject, self._policy.vocabulary, self._truth) for _ in range(size)]
        contexts = [record.token_ids for record in records for _ in range(size)]
        parts = zip(
            samples.texts(self._policy),
            samples.lengths.tolist(),
            samples.cut_off.tolist(),
            contexts,
            truth,
            strict=True,
        )
        gated = self._config.reward.truth_gated
        return [judge(*part, self._policy.vocabulary, gated) for part in parts]

    def _gold(self, rows: Sequence[int]) -> list[tuple[Prompt, list[int]]]:
        prompts, encode = self._policy.prompts, self._policy.vocabulary.encode
        train = self._train
        return [(prompts.about(train.records[i], QUESTION), encode(write(train.gold[i]))) for i in rows]

    def _rows(self, number: int) -> list[int]:
        """The rows of this step: pass after pass over all of them, each in another order."""
        rows, orders = [], {}
        for index in range(self._step * number, (self._step + 1) * number):
            epoch, place = divmod(index, len(self._train))
            if epoch not in orders:
                orders[epoch] = keyed_rng(self._seed, "rl order", epoch).permutation(len(self._train))
            rows.append(int(orders[epoch][place]))
        return rows

    def _wrong(self, rows: Sequence[int] | np.ndarray, rng: np.random.Generator) -> list[int]:
        """For each row another of its site, of another document where there is one."""
        result = []
        for row in rows:
            record = self._train.records[row]
            same = self._by_site[record.site]
            others = [i for i in same if self._train.records[i].doc_id != record.doc_id] or same
            result.append(others[rng.integers(len(others))])
        return result

    def _measure(self) -> dict[str, float]:
        scores = self._selection.measure()
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

    def _load(self, folder: Path) -> None:
        for name, part in self._parts.items():
            load_trained(part, folder / name)
        for name, state in torch.load(folder / OPTIMIZERS, weights_only=True).items():
            self._optimizers[name].load_state_dict(state)
        state = json.loads((folder / STATE).read_text())
        self._step, self.lines, self.examples = state["step"], state["lines"], state["examples"]
        self.stopped = state["stopped"]


def _shares(times: Sequence[float], num_tokens: int) -> dict[str, float]:
    """Of a step's time, and tokens a second."""
    total = times[-1] - times[0]
    names = ("share_sampling", "share_scoring", "share_updating")
    shares = {name: (times[i + 1] - times[i]) / total for i, name in enumerate(names)}
    return shares | {"tokens_per_second": num_tokens / total}
