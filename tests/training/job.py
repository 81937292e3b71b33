"""A small training, also as a process of its own: what tests kill, and start several of.

    python -m tests.training.job RUN_DIR '{"steps": 12, ...}' [STEP]

The settings are those of TrainingConfig, and `architecture` and `dtype`. With a STEP the process ends by SIGKILL in
that step, or, where it is negative, while the checkpoint of that step is written.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState

from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.oracle.injection import InjectionConfig
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import PromptConfig
from diff_oracle.oracle.storage import OracleConfig
from diff_oracle.records import RecordSet
from diff_oracle.subject.loading import SubjectConfig
from diff_oracle.tasks import make_tasks
from diff_oracle.training.mixture import MixtureConfig
from diff_oracle.training.sft import CHECKPOINTS, TrainingConfig, train_oracle
from diff_oracle.training.trainer import OracleTrainer, best_step, load_trained
from tests.tasks.made import make_rows, mixed_records

TASKS: dict[str, Any] = {"logit_lens": {"k": 8, "num_asked": 3}}


def fresh_oracle(architecture: str = "gpt2", dtype: str = "float32", **lora: Any) -> Oracle:
    """On a random model; GPT-2 has dropout, so that a training depends on the state of the random generator."""
    torch.manual_seed(0)
    base = SubjectConfig(source="random", architecture=architecture, dtype=dtype)
    config = OracleConfig(LoraOptions(**{"rank": 4, "alpha": 4.0, **lora}), PromptConfig(), InjectionConfig())
    return Oracle.create(base, config).eval()


def log_prob(oracle: Oracle, records: RecordSet) -> dict[str, float]:
    """A measurement: how likely answers about a few rows are. Some text is generated too."""
    prompts = [oracle.prompts.about(records[i], ("Which?",)) for i in range(3)]
    scores = oracle.choice_log_probs(prompts, [[(300,), (301,)]] * 3)
    oracle.generate(prompts, max_new_tokens=2)
    return {"select/log_prob": float(torch.cat(scores).mean())}


def train(
    oracle: Oracle,
    run_dir: Path | None,
    measure: Callable[[Oracle], dict[str, float]] | None = None,
    select: Callable[[dict[str, float]], float] = lambda scores: scores["select/log_prob"],
    **settings: Any,
) -> list[dict[str, Any]]:
    """Trains on made-up rows."""
    records = make_rows(mixed_records(48), *TASKS, width=oracle.identity.d_model)
    tasks = make_tasks(TASKS)
    for task in tasks:
        task.fit(records, oracle.vocabulary)
    config = TrainingConfig(**{"batch_size": 4, "warmup_steps": 1, "tracker": "none", **settings})
    mixture = MixtureConfig(lists_first=0.5, text_only=0.2, none=0.1)
    measure = measure or partial(log_prob, records=records)
    return train_oracle(oracle, records, tasks, config, mixture, 0, measure, select, run_dir)


def die_in(step: int) -> None:
    """Arranges for this process's end: in a step, or while the checkpoint of step −`step` is written."""
    whole_step, save_rng_state = OracleTrainer.training_step, OracleTrainer._save_rng_state

    def training_step(self: OracleTrainer, *arguments: Any) -> Any:
        result = whole_step(self, *arguments)
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def save(self: OracleTrainer, output_dir: str) -> None:
        if self.state.global_step == -step:
            os.kill(os.getpid(), signal.SIGKILL)
        save_rng_state(self, output_dir)

    OracleTrainer.training_step, OracleTrainer._save_rng_state = training_step, save


def live(run_dir: Path, settings: dict[str, Any]) -> None:
    """Trains to the end, and writes `history.json` and `oracle/`."""
    made = {name: settings[name] for name in ("architecture", "dtype") if name in settings}
    oracle = fresh_oracle(**made)
    history = train(oracle, run_dir, **{name: value for name, value in settings.items() if name not in made})
    if PartialState().is_main_process:
        if PartialState().distributed_type == DistributedType.FSDP:
            oracle = fresh_oracle(**made)
            load_trained(oracle, run_dir / CHECKPOINTS / f"checkpoint-{best_step(history)}")
        oracle.save(run_dir / "oracle")
        (run_dir / "history.json").write_text(json.dumps(history))


def main(run_dir: str, settings: str, step: str = "") -> None:
    torch.set_num_threads(1)
    if step:
        die_in(int(step))
    live(Path(run_dir), json.loads(settings))


if __name__ == "__main__":
    main(*sys.argv[1:])
