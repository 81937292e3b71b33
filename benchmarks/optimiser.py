"""Seconds of an optimiser step, beside torch's own Muon, whose orthogonal steps are in bfloat16.

    python benchmarks/optimiser.py [model ...]        default: tiny, smollm2_135m

Both move the same adapter and injector by the same gradients; they take turns in one process.
"""

import json
import sys
import time
from statistics import median

import torch

from diff_oracle.cli import compose
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.storage import OracleConfig
from diff_oracle.provenance import provenance
from diff_oracle.subject.loading import pick_device
from diff_oracle.train import TrainConfig
from diff_oracle.training.muon import Muon

ROUNDS = 5


def measure(model: str, device: str) -> dict[str, float]:
    config = compose("train", TrainConfig, ["+task=logit_lens", f"model={model}"])
    oracle = Oracle.create(config.model, OracleConfig(config.lora, config.prompt, config.injection), device)
    trained = [parameter for parameter in oracle.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.randn_like(parameter)
    optimizers = {
        "ours": Muon(trained, lr=1e-6),
        "torch's": torch.optim.Muon(trained, lr=1e-6, adjust_lr_fn="match_rms_adamw"),
    }
    took: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(1 + ROUNDS):
        for name, optimizer in optimizers.items():
            start = now(device)
            optimizer.step()
            took[name].append(now(device) - start)
    seconds = {name: median(of[1:]) for name, of in took.items()}  # the first allocates
    return {
        "millions of weights": sum(parameter.numel() for parameter in trained) / 1e6,
        **{f"seconds a step, {name}": value for name, value in seconds.items()},
        "torch's / ours": seconds["torch's"] / seconds["ours"],
    }


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    device = pick_device("auto")
    found = {
        f"{model}: {name}": value
        for model in sys.argv[1:] or ("tiny", "smollm2_135m")
        for name, value in measure(model, device).items()
    }
    print(json.dumps({"rounds": ROUNDS, **found, "provenance": provenance(device)}, indent=1))


if __name__ == "__main__":
    main()
