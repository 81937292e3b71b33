"""Rollouts a second, beside generating and scoring one prompt at a time with `generate`.

    python benchmarks/rollouts.py [model ...]        default: tiny, and smollm2_135m where there is a CUDA GPU

A rollout is an explanation, sampled and read by the reconstructor. Ours reads each prompt once, samples the groups of
all prompts together and scores them together. The plain way takes one prompt after the other, as small reference
implementations do: `generate` draws its group (`num_return_sequences`), or one sample after the other, and the
reconstructor reads that. All are of the same length, for an untrained oracle hardly ever ends an answer. The ways take
turns in one process. Beside that: the share of a step's time in sampling, scoring and updating.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from diff_oracle.cli import compose
from diff_oracle.nla.pair import QUESTION
from diff_oracle.nla.reconstructor import Reconstructor, ReconstructorConfig
from diff_oracle.nla.sampler import sample
from diff_oracle.nla.updates import UpdateConfig, update_policy, update_reconstructor
from diff_oracle.oracle.adapter import LoraOptions
from diff_oracle.oracle.injection import InjectionConfig
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import PromptConfig
from diff_oracle.oracle.storage import OracleConfig
from diff_oracle.provenance import provenance
from diff_oracle.records import Record
from diff_oracle.subject.loading import pick_device
from diff_oracle.tasks.text import Text
from diff_oracle.train import TrainConfig
from diff_oracle.training.sft import TrainingConfig, make_optimizer

GROUP = 8
PROMPTS = 16  # a step
TOKENS = 64
ROUNDS = 3


class Bench:
    """A pair, untrained, and some diffs."""

    def __init__(self, model: str, device: str) -> None:
        torch.manual_seed(0)
        self.device = device
        base = compose("train", TrainConfig, ["+task=logit_lens", f"model={model}"]).model
        self.oracle = Oracle.create(base, OracleConfig(LoraOptions(), PromptConfig(), InjectionConfig()), device).eval()
        self.reference = Oracle.create(base, self.oracle.config, device).eval().requires_grad_(False)
        self.ar = Reconstructor.create(base, ReconstructorConfig(), device).eval()
        rng = np.random.default_rng(0)
        vectors = rng.standard_normal((PROMPTS, 2, self.oracle.prompts.d_model)).astype(np.float32)
        self.records = [
            Record(f"L{i % 3}H{i % 2}", 8, tuple(range(500, 509)), diff, before, "document", {})
            for i, (diff, before) in enumerate(vectors)
        ]
        self.prompts = [self.oracle.prompts.about(record, QUESTION) for record in self.records]
        self.generator = torch.Generator(device).manual_seed(0)

    def ours(self) -> None:
        """All groups at once."""
        samples = sample(self.oracle, self.prompts, GROUP, TOKENS, self.generator)
        self.score(self.records, samples.ids.tolist(), GROUP)

    def prompt_by_prompt(self) -> None:
        """`generate` draws a prompt's group."""
        self.plain(GROUP)

    def one_by_one(self) -> None:
        """`generate` draws one sample after the other."""
        for _ in range(GROUP):
            self.plain(1)

    @torch.no_grad()
    def plain(self, number: int) -> None:
        """So many samples of each prompt, with `generate`."""
        for record, prompt in zip(self.records, self.prompts, strict=True):
            batch = self.oracle.prompts.collate([prompt])
            inputs = {name: value.to(self.device) for name, value in batch.items()}
            slots, vectors = (inputs[name].repeat_interleave(number, dim=0) for name in ("slot_mask", "vectors"))
            with self.oracle.injector.injecting(slots, vectors):
                out = self.oracle.lm.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    max_new_tokens=TOKENS,
                    do_sample=True,
                    top_k=0,
                    num_return_sequences=number,
                    eos_token_id=self.oracle.prompts.eos_id,
                    pad_token_id=self.oracle.prompts.eos_id,
                )
            self.score([record], out[:, len(prompt.ids) :].tolist(), number)

    def score(self, records: list[Record], ids: list[list[int]], number: int) -> None:
        """The reconstructor reads the answers, as they are."""
        self.ar.reconstruct([record for record in records for _ in range(number)], [tuple(row) for row in ids])

    def shares(self) -> dict[str, float]:
        """Of a whole step's time."""
        rates = TrainingConfig(learning_rate=1e-4, tracker="none")
        optimizers = [make_optimizer(part, rates) for part in (self.oracle, self.ar)]
        of_samples = [record for record in self.records for _ in range(GROUP)]
        times = [self.now()]
        samples = sample(self.oracle, self.prompts, GROUP, TOKENS, self.generator)
        times.append(self.now())
        texts: list[Text] = [tuple(row) for row in samples.ids.tolist()]
        self.ar.reconstruct(of_samples, texts)
        times.append(self.now())
        advantage = torch.randn(samples.ids.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        rng, config = np.random.default_rng(0), UpdateConfig()
        update_policy(self.oracle, self.reference, optimizers[0], samples, advantage, config, rng)
        target = np.stack([record.diff for record in of_samples]).astype(np.float64)
        update_reconstructor(self.ar, optimizers[1], of_samples, texts, target, config)
        times.append(self.now())
        parts = dict(zip(("sampling", "scoring", "updating"), np.diff(times).tolist(), strict=True))
        return {f"share of time in {name}": took / sum(parts.values()) for name, took in parts.items()}

    def now(self) -> float:
        """Seconds, behind all that was started."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, way: Callable[[], None]) -> float:
        """That a way takes."""
        start = self.now()
        way()
        return self.now() - start


def measure(model: str, device: str) -> dict[str, float]:
    bench = Bench(model, device)
    ways = {"ours": bench.ours, "prompt by prompt": bench.prompt_by_prompt, "one by one": bench.one_by_one}
    bench.ours()  # what is started for the first time takes longer
    bench.plain(1)
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            took[name].append(bench.seconds(way))
    rates = {name: PROMPTS * GROUP / float(np.median(seconds)) for name, seconds in took.items()}
    result = {f"rollouts a second, {name}": rate for name, rate in rates.items()}
    result |= {f"ours / {name}": rates["ours"] / rates[name] for name in ("prompt by prompt", "one by one")}
    return result | bench.shares()


def main() -> None:
    device = pick_device("auto")
    models = sys.argv[1:] or ["tiny", *(["smollm2_135m"] if device == "cuda" else [])]
    result: dict[str, object] = {"prompts": PROMPTS, "group size": GROUP, "tokens": TOKENS, "rounds": ROUNDS}
    for model in models:
        result |= {f"{model}: {name}": value for name, value in measure(model, device).items()}
    print(json.dumps(result | {"provenance": provenance(device)}, indent=1))


if __name__ == "__main__":
    main()
