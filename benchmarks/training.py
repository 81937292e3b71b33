"""What training costs, beside the plain recipe: the Hugging Face model with `labels=`, right-padded random batches.

    python benchmarks/training.py [model ...]        default: smollm2_135m gemma3_270m

Both train the same adapter and injector on the same questions with the same optimiser. Ours puts the questions about a
diff in one row, rows of like length in one batch, and computes logits only where an answer stands; the plain recipe has
a row for every question and logits everywhere. Speeds are taken in turn in one process, each peak of memory in a
process of its own. Steps of ours are also taken with nothing injected, for what injection costs: a few percent of a
step, less than steps differ among themselves, so that each is taken `REPEATS` times and the fastest counts. A part of
it, the optimiser's step for the learned maps, costs the same whatever the batch: it is taken for a batch of the default
size, too (logits of the plain recipe would need tens of gigabytes there).
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from tempfile import TemporaryDirectory

import torch
from common.memory import peak_memory
from torch.nn.utils import clip_grad_norm_

from data_gen.build import build
from diff_oracle.cli import compose
from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.prompt import IGNORED, Batch
from diff_oracle.oracle.storage import OracleConfig
from diff_oracle.provenance import provenance
from diff_oracle.randomness import keyed_rng
from diff_oracle.records import open_dataset
from diff_oracle.subject.loading import pick_device
from diff_oracle.tasks import make_tasks
from diff_oracle.train import TrainConfig
from diff_oracle.training.examples import BUCKET_BATCHES, Example, ExampleDataset
from diff_oracle.training.sft import collate_shared, make_optimizer

MODELS = ("smollm2_135m", "gemma3_270m")
REPEATS = 3
LARGE_BATCHES = 2
DIFFS = 6  # a batch, as conf/experiment/cpu_short.yaml has it
SETTINGS = [
    "+task=[logit_lens,attention,layer_skip]", "sampling.max_documents=60", "sampling.windows_per_document=1",
    "mixture.lists_first=0", "mixture.text_only=0", "mixture.none=0",
]  # fmt: skip
Groups = list[list[Example]]


class Bench:
    """An oracle, its optimiser, and the questions of some batches."""

    def __init__(self, model: str, data_dir: str) -> None:
        config = compose("train", TrainConfig, [*SETTINGS, f"model={model}", f"data_dir={data_dir}"])
        self.device = pick_device(config.device)
        torch.manual_seed(0)
        path = build(config)
        self.oracle = Oracle.create(
            config.model, OracleConfig(config.lora, config.prompt, config.injection), self.device
        )
        identity = self.oracle.identity
        records = open_dataset(path, identity.weights_hash, identity.tokenizer_hash).split("train")
        tasks = make_tasks(config.tasks)
        for task in tasks:
            task.fit(records, self.oracle.vocabulary)
        examples = ExampleDataset(records, tasks, self.oracle.prompts, config.mixture, BUCKET_BATCHES, DIFFS, seed=0)
        groups = [examples[i] for i in range(len(examples))]
        self.batches: list[Groups] = [groups[i : i + DIFFS] for i in range(0, len(groups), DIFFS)]
        shuffled = [groups[i] for i in keyed_rng(0, "benchmark").permutation(len(groups))]
        self.random_batches: list[Groups] = [shuffled[i : i + DIFFS] for i in range(0, len(groups), DIFFS)]
        self.optimizer = make_optimizer(self.oracle, config.training)
        self.oracle.train()

        large = config.training.batch_size
        more = ExampleDataset(records, tasks, self.oracle.prompts, config.mixture, LARGE_BATCHES, large, seed=0)
        self.large_batches: list[Groups] = [[more[i + j] for j in range(large)] for i in range(0, len(more), large)]

    def step(self, loss: Callable[[Groups], torch.Tensor], groups: Groups) -> float:
        """Seconds of an optimiser step."""
        start = time.perf_counter()
        loss(groups).backward()
        clip_grad_norm_(self.oracle.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def ours(self, groups: Groups) -> torch.Tensor:
        """The loss as `train_oracle` has it."""
        batch = collate_shared(self.oracle, groups)
        return self.oracle(**{name: value.to(self.device) for name, value in batch.items()})["loss"]

    def without_injection(self, groups: Groups) -> torch.Tensor:
        """The same with the slots left as they are."""
        injecting, self.oracle.injector.injecting = self.oracle.injector.injecting, lambda *_: nullcontext()
        try:
            return self.ours(groups)
        finally:
            self.oracle.injector.injecting = injecting

    def plain(self, groups: Groups) -> torch.Tensor:
        """A row a question, padded on the right, the model's own loss over full logits."""
        left = self.oracle.prompts.collate(
            [e.prompt for group in groups for e in group], [e.answer_ids for group in groups for e in group]
        )
        batch = {name: value.to(self.device) for name, value in right_padded(left).items()}
        with self.oracle.injector.injecting(batch["slot_mask"], batch["vectors"]):
            model_inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
            return self.oracle.lm(**model_inputs, use_cache=False).loss


def right_padded(batch: Batch) -> dict[str, torch.Tensor]:
    """The same rows with their padding moved to the right."""
    order = torch.argsort(1 - batch["attention_mask"], dim=1, stable=True)
    moved = {name: batch[name].gather(1, order) for name in ("input_ids", "attention_mask", "labels", "slot_mask")}
    moved["labels"] = moved["labels"].masked_fill(moved["attention_mask"] == 0, IGNORED)
    return moved | {"vectors": batch["vectors"]}


def speed(model: str, data_dir: str) -> dict[str, float]:
    bench = Bench(model, data_dir)
    for way in (bench.ours, bench.without_injection, bench.plain):  # the first step of each allocates
        bench.step(way, bench.batches[0])
    ours, plain, pairs = 0.0, 0.0, list[tuple[float, float]]()
    for shared, apart in zip(bench.batches, bench.random_batches, strict=True):
        plain += bench.step(bench.plain, apart)
        with_it, without = both_ways(bench, shared)
        ours += median(with_it)
        pairs.append((min(with_it), min(without)))
    large = [(min(with_it), min(without)) for with_it, without in (both_ways(bench, b) for b in bench.large_batches)]
    questions = sum(len(group) for batch in bench.batches for group in batch)
    with torch.no_grad():
        losses = [float(way(bench.batches[0])) for way in (bench.ours, bench.plain)]
    assert abs(losses[0] - losses[1]) < 1e-2 * losses[1], f"the two recipes have different losses: {losses}"
    return {
        "questions a second, ours": questions / ours,
        "questions a second, plain": questions / plain,
        "ours / plain": plain / ours,
        "step with injection / without": ratio(pairs),
        f"step with injection / without, {len(bench.large_batches[0])} diffs": ratio(large),
    }


def both_ways(bench: Bench, groups: Groups) -> tuple[list[float], list[float]]:
    """Seconds of steps with injection and of steps without, in turn."""
    took = [(bench.step(bench.ours, groups), bench.step(bench.without_injection, groups)) for _ in range(REPEATS)]
    return [with_it for with_it, _ in took], [without for _, without in took]


def ratio(pairs: list[tuple[float, float]]) -> float:
    return sum(with_it for with_it, _ in pairs) / sum(without for _, without in pairs)


def peak(model: str, data_dir: str, recipe: str) -> float:
    """GB that steps of a recipe need above what stands in memory before them."""
    bench = Bench(model, data_dir)
    way, batches = (bench.ours, bench.batches) if recipe == "ours" else (bench.plain, bench.random_batches)
    return peak_memory(lambda: [bench.step(way, groups) for groups in batches], bench.device)


def part(*arguments: str) -> dict[str, float]:
    """What a process of its own says."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--part"]:
        what, model, data_dir, *recipe = sys.argv[2:]
        found = speed(model, data_dir) if what == "speed" else peak(model, data_dir, *recipe)
        print(json.dumps(found))
        return
    result: dict[str, object] = {"diffs a batch": DIFFS, "questions a diff": 3}
    with TemporaryDirectory() as data_dir:
        for model in sys.argv[1:] or MODELS:
            found: dict[str, object] = dict(part("--part", "speed", model, data_dir))
            print(json.dumps(found), file=sys.stderr, flush=True)  # the rest takes as long again
            for recipe in ("ours", "plain"):
                found[f"peak memory over the weights, {recipe} (GB)"] = part("--part", "peak", model, data_dir, recipe)
            result |= {f"{model}: {name}": value for name, value in found.items()}
    print(json.dumps(result | {"provenance": provenance(pick_device("auto"))}, indent=1))


if __name__ == "__main__":
    main()
