"""A step of reinforcement learning, and of the arm that goes on supervised: what is drawn, judged and learned from.

Every draw is keyed by the step. Of several processes each takes its share of the step's rows; what is learned is the
same as of one, but for what each draws for itself: samples, and other wordings of what is read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diff_oracle.nla.credit import claims_by_line, line_advantages, line_numbers, line_worths
from diff_oracle.nla.grpo import advantages
from diff_oracle.nla.health import Line, StopConfig, explanation_health, fve, reward_health
from diff_oracle.nla.metrics import Means
from diff_oracle.nla.pair import QUESTION, DiffNLA, as_read, longest_explanation
from diff_oracle.nla.reward import Judged, RewardConfig, judge, rewards, worth
from diff_oracle.nla.rows import Claims, OtherDocuments, Rows
from diff_oracle.nla.sampler import Samples, sample
from diff_oracle.nla.training import ReadingConfig, ReadingDataset
from diff_oracle.nla.updates import UpdateConfig, update_policy, update_reconstructor, update_supervised
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import Prompt
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import Record
from diff_oracle.subject.model import Subject
from diff_oracle.tasks.claims import write
from diff_oracle.tasks.truth import TruthConfig, measured
from diff_oracle.training.processes import count, gathered, rank, summed
from diff_oracle.training.tracking import check_tracker

ARMS = ("rl", "frozen_av", "sft_continued")
CREDITS = ("answer", "lines")


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
    credit: str = "lines"
    """What a token is credited with: `lines`, how much more is to be expected of the answer behind its line than before
    (`nla.credit`); `answer`, how much better its answer is than the group's: plain GRPO."""
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
    tracker: str = "tensorboard"
    """Where the health of every step goes beside `health.json`: `tensorboard`, `wandb`, or `none`."""
    seed: int = 0
    """Keys every draw."""

    def __post_init__(self) -> None:
        if self.arm not in ARMS:
            raise ValueError(f"unknown rl.arm {self.arm!r}: choose from {', '.join(ARMS)}")
        if self.credit not in CREDITS:
            raise ValueError(f"unknown rl.credit {self.credit!r}: choose from {', '.join(CREDITS)}")
        if self.group_size < 2:
            raise ValueError(f"rl.group_size must be at least 2, got {self.group_size}: samples are compared")
        check_tracker(self.tracker)
        for name in ("steps", "diffs", "evaluations", "selection_rows", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"rl.{name} must be at least 1, got {getattr(self, name)}")


class Steps:
    """What the steps of a run work on, and how each is done.

    Args:
        pair: Trained in place.
        reference: The policy as it began; it stays.
        train: What is explained and rebuilt.
        means: μ, of these rows' sites.
        subject: On which claims are checked.
        truth: Which of them are true.
        config: How.
        optimizers: Of `policy` and `ar`.

    Raises:
        ValueError: The diffs of a step cannot be split evenly over the processes, or lines cannot be credited.
    """

    def __init__(
        self,
        pair: DiffNLA,
        reference: Oracle,
        train: Rows,
        means: Means,
        subject: Subject,
        truth: TruthConfig,
        config: RlConfig,
        optimizers: dict[str, torch.optim.Optimizer],
    ) -> None:
        if config.diffs % count():
            raise ValueError(f"rl.diffs={config.diffs} cannot be split evenly over {count()} processes")
        if config.arm == "rl" and config.credit == "lines" and pair.ar.floor is None:
            raise ValueError(
                "rl.credit=lines is reckoned by the reconstructor's floor, but it has none (ar.floor): choose "
                "rl.credit=answer"
            )
        self._policy, self._ar, self._reference = pair.av, pair.ar, reference
        self._train, self._means, self._subject, self._truth = train, means, subject, truth
        self._config, self._seed, self._optimizers = config, config.seed, optimizers
        self._max_new_tokens = config.max_new_tokens or longest_explanation(pair.config)
        self._others = OtherDocuments(train.records) if config.reward.contrastive else None

    def reinforced(self, step: int) -> Line:
        """A step of sampling, rewarding and updating."""
        config, rng = self._config, keyed_rng(self._seed, "rl step", step, rank())
        rows = self._rows(step, config.diffs)
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
        wrong = None
        if self._others is not None:
            wrong = self._train.target[[self._others.draw(i, rng) for i in rows]].repeat(config.group_size, axis=0)
        worths = worth(judged, rebuilt, target, config.reward, wrong)
        earned = rewards(judged, worths, config.reward.failed).reshape(len(rows), config.group_size)
        times.append(time.perf_counter())
        line: Line = reward_health(np.array(gathered(list(earned))), config.min_spread)
        line |= explanation_health(gathered(judged))
        mean = self._means.at([record.site for record in records])
        line |= {"fve": fve(*(np.array(gathered(list(values))) for values in (rebuilt, target, mean)))}
        entropy, num_tokens = summed([float(samples.entropy.sum()), float(samples.mask.sum())], self._policy.device)
        line |= {"entropy": entropy / num_tokens}
        if config.arm == "rl":
            advantage = self._advantage(samples, judged, earned, [r.site for r in records], rebuilt, target, wrong)
            line |= update_policy(
                self._policy,
                self._reference,
                self._optimizers["policy"],
                samples,
                advantage,
                config.updates,
                rng,
                self._gold(rows) if config.updates.sft_anchor else (),
            )
        read = [i for i, j in enumerate(judged) if not j.failed]
        line |= self._teach_reading(step, [int(of_samples[i]) for i in read], [judged[i].read for i in read])
        times.append(time.perf_counter())
        return line | _shares(times, num_tokens)

    def _advantage(
        self,
        samples: Samples,
        judged: Sequence[Judged],
        earned: Float[np.ndarray, "group member"],
        sites: Sequence[str],
        rebuilt: Float[np.ndarray, "sample d_model"],
        target: Float[np.ndarray, "sample d_model"],
        wrong: Float[np.ndarray, "sample d_model"] | None,
    ) -> Float[Tensor, "sample token"]:
        """Of every sampled token: that of its answer, or of its line."""
        config, policy = self._config, self._policy
        if config.credit == "answer":
            of_answer = advantages(torch.from_numpy(earned).float(), config.min_spread).flatten()
            return of_answer[:, None].expand(samples.ids.shape).to(policy.device)
        newline, eos, floor = policy.vocabulary.newline[-1], policy.prompts.eos_id, self._ar.floor
        assert floor is not None  # made sure of at the start
        numbers = line_numbers(samples.ids, newline, eos)
        lines = [
            claims_by_line([token for token in ids if token != eos], newline, policy.vocabulary)
            for ids in samples.ids.tolist()
        ]
        worths = line_worths(lines, numbers, judged, sites, rebuilt, target, floor, config.reward, wrong)
        return line_advantages(worths, earned, numbers, config.min_spread)

    def supervised(self, step: int) -> Line:
        """A step of both parts on as many gold explanations as would be sampled."""
        rows = [i for i in self._rows(step, self._config.diffs * self._config.group_size) if self._train.gold[i]]
        start = time.perf_counter()
        gold = self._gold(rows)
        line = update_supervised(self._policy, self._optimizers["policy"], gold, self._config.updates)
        line |= self._teach_reading(step, rows, [self._train.gold[i] for i in rows])
        (num_tokens,) = summed([float(sum(len(answer) + 1 for _, answer in gold))], self._policy.device)
        return line | {"tokens_per_second": num_tokens / (time.perf_counter() - start)}

    def _teach_reading(self, step: int, rows: Sequence[int], claims: Sequence[Claims]) -> dict[str, float]:
        """The reconstructor learns to read explanations of some rows, in other orders and words."""
        seed = int(keyed_rng(self._seed, "rl reading", step, rank()).integers(2**62))
        varied = ReadingDataset(claims, self._config.reading, len(claims), seed, self._ar.wordings)
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

    def _rows(self, step: int, number: int) -> list[int]:
        """This process's share of a step's rows: pass after pass over all of them, each in another order."""
        rows, orders = [], {}
        for index in range(step * number + rank(), (step + 1) * number, count()):
            epoch, place = divmod(index, len(self._train))
            if epoch not in orders:
                orders[epoch] = keyed_rng(self._seed, "rl order", epoch).permutation(len(self._train))
            rows.append(int(orders[epoch][place]))
        return rows


def _shares(times: Sequence[float], num_tokens: float) -> dict[str, float]:
    """Of a step's time, and tokens a second."""
    total = times[-1] - times[0]
    names = ("share_sampling", "share_scoring", "share_updating")
    shares = {name: (times[i + 1] - times[i]) / total for i, name in enumerate(names)}
    return shares | {"tokens_per_second": num_tokens / total}
