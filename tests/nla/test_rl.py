"""Reinforcement learning learns what is rewarded, stops when it goes wrong, and goes on after a kill as if nothing was.

python -m tests.nla.test_rl RUN_DIR STEP THREADS        a run that ends by SIGKILL in that step
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diff_oracle.nla.grpo import advantages
from diff_oracle.nla.health import StopConfig, degenerate, draw_health, explanation_health, reward_health
from diff_oracle.nla.pair import DiffNLA
from diff_oracle.nla.reconstructor import Reconstructor, ReconstructorConfig
from diff_oracle.nla.reward import Judged, RewardConfig
from diff_oracle.nla.rl import ReinforcementLearning
from diff_oracle.nla.rows import Rows, read_rows
from diff_oracle.nla.sampler import log_probs, sample
from diff_oracle.nla.steps import RlConfig
from diff_oracle.nla.updates import UpdateConfig, update_policy
from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.oracle.injection import InjectionConfig
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import PromptConfig
from diff_oracle.oracle.storage import OracleConfig
from diff_oracle.subject.loading import SubjectConfig, load_hf_model
from diff_oracle.subject.model import Subject
from diff_oracle.tasks.claims import Claim
from diff_oracle.tasks.explanation import ExplanationConfig
from diff_oracle.tasks.truth import TruthConfig
from diff_oracle.training.sft import TrainingConfig, make_optimizer
from diff_oracle.training.trainer import trained
from tests.helpers import diff_at
from tests.tasks.made import make_rows, mixed_records

BASE = SubjectConfig(source="random", architecture="llama")
NAMED = ExplanationConfig(num_raised=1, num_lowered=0, num_read=0)
TIMES = ("tokens_per_second", "share_sampling", "share_scoring", "share_updating")
SHORT: dict[str, Any] = {
    "reward": RewardConfig(length_penalty=0.1),
    "steps": 4, "diffs": 2, "group_size": 3, "max_new_tokens": 5, "min_spread": 0.0, "evaluations": 2,
    "selection_rows": 4, "checkpoint_every": 1, "gate": False, "tracker": "none", "credit": "answer",
}  # fmt: skip
NEVER = StopConfig(max_failed=2.0, max_kl=100.0, min_distinct=-1.0, max_dropped=2.0)


def fresh_oracle() -> Oracle:
    torch.manual_seed(0)
    parts = OracleConfig(LoraOptions(rank=4, alpha=4.0), PromptConfig(), InjectionConfig())
    return Oracle.create(BASE, parts).eval()


def rows() -> tuple[Rows, Rows]:
    oracle = fresh_oracle()
    records = make_rows(
        mixed_records(24), "logit_lens", "attention", "layer_skip", per_document=2, width=oracle.identity.d_model
    )
    all_rows = read_rows(records, NAMED, oracle.vocabulary, None, 0)
    return tuple(Rows(*(v[part] for v in vars(all_rows).values())) for part in (slice(0, 16), slice(16, 20)))  # type: ignore[return-value]


def made(run_dir: Path, floor: bool = False, **config: Any) -> tuple[ReinforcementLearning, DiffNLA]:
    """A run on a random pair; explanations of a random model are no claims, so that a fixed one stands in for them."""
    torch.manual_seed(1)
    ar = Reconstructor.create(BASE, ReconstructorConfig(lora=LoraOptions(rank=4, alpha=4.0))).eval()
    pair, (train, select) = DiffNLA(fresh_oracle(), ar, NAMED), rows()
    if floor:
        ar.fit_floor(train, select, (train.gold, select.gold))
    settings = RlConfig(**{**SHORT, "stop": NEVER, **config})
    run = ReinforcementLearning(
        pair,
        fresh_oracle(),
        train,
        select,
        Subject(load_hf_model(BASE)),
        TruthConfig(),
        settings,
        run_dir,
        asdict(settings),
    )
    claim = (Claim("raises", 500),)

    def judged(samples: Any, records: Any) -> list[Judged]:
        """All but the last sample are explanations."""
        return [Judged(*[claim * (i < len(samples) - 1)] * 2, (), (), n + int(ids[0]) % 7, False)
                for i, (ids, n) in enumerate(zip(samples.ids, samples.lengths.tolist(), strict=True))]  # fmt: skip

    run._steps._judge = judged  # type: ignore[method-assign]
    return run, pair


def weights(pair: DiffNLA) -> dict[str, torch.Tensor]:
    parts = {"av": trained(pair.av), "ar": trained(pair.ar)}
    return {f"{part}.{name}": p.detach().clone() for part, all_of in parts.items() for name, p in all_of.items()}


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def test_a_planted_task_is_learned() -> None:
    policy, reference = fresh_oracle(), fresh_oracle()
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((4, policy.prompts.d_model)).astype(np.float32)
    prompts = [policy.prompts.about(diff_at("L0", vector), ("Why?",)) for vector in vectors]
    generator = torch.Generator().manual_seed(0)
    first = sample(policy, prompts, 16, 4, generator)
    frequency = torch.tensor([float((first.ids == token).any(dim=1).float().mean()) for token in range(4096)])
    planted = int((frequency - 0.1).abs().argmin())  # one that stands in a tenth of all answers
    config = UpdateConfig(learning_rate=5e-3, kl=0.0)
    optimizer = make_optimizer(policy, TrainingConfig(learning_rate=config.learning_rate, tracker="none"))
    shares = []
    for step in range(20):
        samples = sample(policy, prompts, 16, 4, generator)
        contains = (samples.ids == planted).any(dim=1).float()
        shares.append(float(contains.mean()))
        advantage = advantages(contains.reshape(4, 16), 1e-3).flatten()
        line = update_policy(
            policy,
            reference,
            optimizer,
            samples,
            advantage[:, None].expand(samples.ids.shape),
            config,
            np.random.default_rng(step),
        )
        if step == 0:
            assert line["kl"] == pytest.approx(0, abs=1e-5)
            assert line["clipped"] == 0 and line["drift"] < 1e-4
    assert shares[0] < 0.3
    assert np.mean(shares[-4:]) > 0.9


def test_the_update_is_the_gradient_of_the_mean_token_loss() -> None:
    """By hand: the mean over tokens of −ρA + kl·(e^d − d − 1), d = log p_ref − log p, and anchor · the gold loss."""
    policy, reference, rng = fresh_oracle(), fresh_oracle(), np.random.default_rng(0)
    with torch.no_grad():
        for name, weight in trained(policy).items():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    vectors = rng.standard_normal((3, policy.prompts.d_model)).astype(np.float32)
    prompts = [policy.prompts.about(diff_at("L0", vector), ("Why?",)) for vector in vectors]
    samples = sample(policy, prompts, 2, 5, torch.Generator().manual_seed(0))
    advantage = torch.from_numpy(rng.standard_normal(samples.ids.shape)).float()
    gold = [(prompts[0], [5, 6, 7]), (prompts[1], [8])]
    kl, anchor = 0.3, 0.7
    new = [log_probs(of, samples) for of in (policy, reference)]
    d = new[1].detach() - new[0]
    losses = -(new[0] - samples.log_probs).exp() * advantage + kl * (d.exp() - d - 1)
    batch = policy.prompts.collate([prompt for prompt, _ in gold], [answer for _, answer in gold])
    (losses[samples.mask].mean() + anchor * policy(**batch)["loss"]).backward()
    expected = {name: weight.grad.clone() for name, weight in trained(policy).items() if weight.grad is not None}
    policy.zero_grad(set_to_none=True)
    found: dict[str, torch.Tensor] = {}

    class Caught(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            found.update({n: w.grad.clone() for n, w in trained(policy).items() if w.grad is not None})

    config = UpdateConfig(kl=kl, sft_anchor=anchor, max_grad_norm=1e9, rows_at_once=4)
    update_policy(policy, reference, Caught(policy.parameters(), lr=1.0), samples, advantage, config, rng, gold)
    assert found.keys() == expected.keys() and len(found) > 4
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) < 1e-3 * float(gradient.norm())


@pytest.mark.parametrize("arm", ["rl", "frozen_av", "sft_continued"])
def test_what_an_arm_moves(arm: str, tmp_path: Path) -> None:
    run, pair = made(tmp_path, arm=arm, steps=2, updates=UpdateConfig(learning_rate=1e-2, kl=0.1, sft_anchor=0.1))
    before = weights(pair)
    run._checkpoints.keep = lambda steps: None  # type: ignore[method-assign]
    run.fit()
    assert [line["step"] for line in run.lines] == [0, 1, 2]
    assert {line["step"] for line in run.lines if "select/fve" in line} == {0, 1, 2}
    run._load(run._checkpoints.path(2))
    moved = {name[:2] for name, value in weights(pair).items() if not torch.equal(value, before[name])}
    assert moved == ({"ar"} if arm == "frozen_av" else {"av", "ar"})
    sampled = {"reward", "spread", "fve", "entropy", "length", "failed", "cut_off", "distinct", "quotes", "true_claims"}
    wanted = {"ar_loss", "ar_grad_norm", "tokens_per_second"} | (sampled if arm != "sft_continued" else {"sft_loss"})
    wanted |= {"kl", "drift", "clipped", "grad_norm"} if arm == "rl" else set()
    assert not wanted - set(run.lines[-1])
    assert draw_health(run.lines, "a run").axes


def test_lines_are_credited_where_the_reconstructor_has_a_floor(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it has none \(ar.floor\): choose rl.credit=answer"):
        made(tmp_path / "none", credit="lines")
    made(tmp_path / "arm", credit="lines", arm="frozen_av")  # credits nothing
    once = UpdateConfig(learning_rate=1e-2, kl=0.0)
    run, pair = made(tmp_path / "fitted", True, credit="lines", steps=1, updates=once)
    before = weights(pair)
    run._checkpoints.keep = lambda steps: None  # type: ignore[method-assign]
    run.fit()
    run._load(run._checkpoints.path(1))
    assert {name[:2] for name, value in weights(pair).items() if not torch.equal(value, before[name])} == {"av", "ar"}


def test_it_ends_in_the_best_state(tmp_path: Path) -> None:
    run, pair = made(tmp_path, updates=UpdateConfig(learning_rate=1e-2))
    states, values = [], iter([0.1, 0.5, 0.2])

    def measured() -> dict[str, float]:
        states.append(weights(pair))
        return {"select/fve": next(values)}

    run._selection.measure = measured  # type: ignore[method-assign]
    run._selection.examples = list  # type: ignore[method-assign, assignment]
    run.fit()
    assert run.best_step == 2
    assert all(torch.equal(value, states[1][name]) for name, value in weights(pair).items())
    assert not all(torch.equal(value, states[2][name]) for name, value in weights(pair).items())
    assert run._checkpoints.steps() == [2, 3, 4]


def by_lines(run_dir: Path, learning_rate: float = 1e-2) -> tuple[ReinforcementLearning, DiffNLA]:
    return made(run_dir, floor=True, credit="lines", updates=UpdateConfig(learning_rate=learning_rate, parts=2))


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    expected, pair = by_lines(tmp_path / "whole")
    expected.fit()
    command = [sys.executable, "-m", "tests.nla.test_rl", str(tmp_path / "cut"), "3", str(torch.get_num_threads())]
    killed = subprocess.run(command, check=False)
    assert killed.returncode == -signal.SIGKILL
    run, resumed = by_lines(tmp_path / "cut")
    assert run._checkpoints.steps()[-1] == 2
    run.fit()
    assert without_times(run.lines) == without_times(expected.lines)
    assert run.examples == expected.examples
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(pair).items())
    with pytest.raises(ValueError, match="unfinished training with other settings"):
        by_lines(tmp_path / "cut", learning_rate=2e-2)


def test_the_gate_is_closed_for_a_pair_that_learned_nothing(tmp_path: Path) -> None:
    run, _ = made(tmp_path, gate=True)
    with pytest.raises(ValueError, match=r"no better with an explanation than with another diff's: FVE matched - shuf"):
        run.fit()


def test_it_stops_when_log_probs_drift(tmp_path: Path) -> None:
    policy = made(tmp_path)[1].av
    samples = sample(policy, [policy.prompts.about(r, ("Why?",)) for r in rows()[0].records[:2]], 2, 4, None)
    wrong = replace(samples, log_probs=samples.log_probs - 0.01)
    optimizer = make_optimizer(policy, TrainingConfig(tracker="none"))
    with pytest.raises(ValueError, match=r"at sampling and at training differ by 0\.01"):
        update_policy(
            policy,
            fresh_oracle(),
            optimizer,
            wrong,
            torch.ones(wrong.ids.shape),
            UpdateConfig(),
            np.random.default_rng(0),
        )


def test_a_degenerate_run_says_why() -> None:
    config = StopConfig(window=2)
    fine = {"failed": 0.0, "kl": 0.1, "dropped_groups": 0.2, "distinct": 0.9}
    assert degenerate([fine] * 3, config) is None
    assert degenerate([fine | {"failed": 1.0}], config) is None  # one step is not enough
    for name, value, said in (
        ("failed", 0.9, "0.9 of the answers are no explanation"),
        ("kl", 3.0, "3 nats a token"),
        ("dropped_groups", 1.0, "1 of the groups teach nothing"),
        ("distinct", 0.01, "0.01 of the explanations are different ones, in the last 2 steps; wanted at least 0.05"),
    ):
        reason = degenerate([fine, *[fine | {name: value}] * 2], config)
        assert reason is not None and said in reason
    assert degenerate([{"sft_loss": 1.0}] * 5, config) is None


def test_health_by_hand() -> None:
    a, b = Claim("raises", 500), Claim("lowers", 501)
    some = [
        Judged((a, b), (a,), (b,), (a, b), 10, False),
        Judged((a, b), (a, b), (), (), 20, True, 2),
        Judged((), (), (), (), 3, False),
    ]
    shares = {"failed": 2 / 3, "cut_off": 1 / 3, "distinct": 2 / 3, "quotes": 0.5, "true_claims": 0.75}
    shares["with_other_lines"] = 1 / 3
    assert explanation_health(some) == pytest.approx({"length": 11, "claims": 4 / 3, **shares})
    found = reward_health(np.array([[1.0, 3.0], [2.0, 2.0]]), 1e-3)
    assert found == {"reward": 2.0, "spread": 0.5, "dropped_groups": 0.5}


def main(run_dir: str, step: str, threads: str) -> None:
    """A run that is killed in a step, when the policy has been updated and the reconstructor has not."""
    torch.set_num_threads(int(threads))  # sums depend on it
    run, _ = by_lines(Path(run_dir))
    teach = run._steps._teach_reading

    def die(*arguments: Any) -> Any:
        if run._step == int(step) - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return teach(*arguments)

    run._steps._teach_reading = die  # type: ignore[method-assign]
    run.fit()


if __name__ == "__main__":
    main(*sys.argv[1:])
