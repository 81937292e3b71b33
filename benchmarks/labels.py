"""What labels cost, beside plain forward passes, a full run a skip, and the textbook way.

    python benchmarks/labels.py [model=tiny]

SmolLM2, documents of 128 tokens; every ratio is taken within this one run. `plain` is the Hugging Face model as it
loads (its fastest attention, no hooks), with its head. A full run is a batch of all documents up to the position with a
hook for one skip, its head at the position alone; ours has the pass over the text in it. The textbook way is one
`run_with_cache` of everything with `use_attn_result`, and one run a skip.
"""

import json
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from common.memory import peak_memory

from data_gen import attention, layer_skip, logit_lens
from data_gen.build import BuildConfig
from data_gen.corpus import iter_documents
from data_gen.measure import Window, measure
from diff_oracle.cli import compose
from diff_oracle.provenance import provenance
from diff_oracle.randomness import keyed_rng
from diff_oracle.subject.capture import read_diffs
from diff_oracle.subject.forward import Forward, Query, forward, last_hook
from diff_oracle.subject.lens import direct_logit_shift, label_tokens, top_tokens
from diff_oracle.subject.loading import load_hf_model, pick_device
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite, expand_sites
from diff_oracle.subject.skip import skip
from diff_oracle.tasks import make_tasks

DOCUMENTS, LENGTH, POSITIONS, SITES, ROUNDS = 16, 128, 4, 6, 5
FULL_RUNS = 3  # skips that are timed as full runs; the rest would cost the same

config = compose("build", BuildConfig, ["+task=[logit_lens,attention,layer_skip]", "model=smollm2_135m", *sys.argv[1:]])
device, tasks, rng = pick_device(config.device), make_tasks(config.tasks), keyed_rng(0, "benchmark")
options = {task.name: task.config for task in tasks}
plain, subject = load_hf_model(config.model, device).model, Subject.load(config.model, device)
texts = (subject.tokenizer.encode(document.text, verbose=False)[:LENGTH] for document in iter_documents(config.corpus))
token_ids = torch.tensor([ids for ids in texts if len(ids) == LENGTH][:DOCUMENTS], device=device)
places = [(row, int(p)) for row in range(DOCUMENTS) for p in rng.choice(range(8, LENGTH), POSITIONS, replace=False)]
allowed = label_tokens(subject.tokenizer, len(subject.W_U.T)).to(device)


def seconds(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def side_by_side(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each, taken in turn, so that a busy machine is busy for all."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            times[name].append(seconds(way))
    return {name: median(values) for name, values in times.items()}


def queries_at(where: list[tuple[int, int]], names: list[str]) -> list[Query]:
    sites = expand_sites(names, subject.n_layers, subject.n_heads)
    return [Query(row, position, site) for row, position in where for site in sites]


def lens_and_attention(queries: list[Query]) -> None:
    run = forward(subject, token_ids, queries, attention=True)
    captured = read_diffs(run)
    logit_lens.measure(run, captured, allowed, options["logit_lens"])
    attention.measure(run, captured, allowed, options["attention"])


def skips(queries: list[Query]) -> None:
    run = forward(subject, token_ids, queries, prefix=True)
    layer_skip.measure(run, read_diffs(run), allowed, options["layer_skip"])


@torch.no_grad()
def full_run(position: int, site: DiffSite, rows: slice = slice(None)) -> torch.Tensor:
    """A run of the texts without a site's update at a position: what a skip of each costs by itself."""
    before: list[torch.Tensor] = []
    block = f"blocks.{site.layer}"

    def restore(value, hook):
        value[:, position] = before[0][:, position]
        return value

    def silence(value, hook):
        value[:, position] = 0
        return value

    def silence_head(value, hook):
        value[:, position, site.head] = 0
        return value

    hooks = {
        "attn": [(f"{block}.hook_attn_out", silence)],
        "mlp": [(f"{block}.hook_mlp_out", silence)],
        "head": [(f"{block}.attn.hook_z", silence_head)],
    }
    through = [
        (f"{block}.hook_resid_pre", lambda value, hook: before.append(value.clone())),
        (f"blocks.{site.last_layer}.hook_resid_post", restore),
    ]
    last: list[torch.Tensor] = []
    keep = (last_hook(subject), lambda value, hook: last.append(value[:, -1].float()))
    with subject.bridge.hooks(fwd_hooks=[*hooks.get(site.kind, through), keep]):
        subject.hf_model.base_model(input_ids=token_ids[rows, : position + 1], use_cache=False)
    return subject.unembed(last[0]).log_softmax(-1)


def seconds_a_skip(names: str) -> dict[str, float]:
    """Of every skip of a site set at the end of each text, beside full runs of a few."""
    queries = queries_at([(row, LENGTH - 1) for row in range(DOCUMENTS)], [names])
    some = [queries[i] for i in rng.choice(len(queries), FULL_RUNS, replace=False)]
    took = side_by_side(
        {"ours": lambda: skips(queries), "full runs": lambda: [full_run(q.position, q.site) for q in some]}
    )
    return {"ours": took["ours"] / len(queries), "full run": took["full runs"] / FULL_RUNS / DOCUMENTS}


@torch.no_grad()
def textbook(windows: tuple[Window, ...]) -> None:
    """The three tasks' labels of drawn sites, the way a notebook would do it."""
    ids = torch.tensor([window.token_ids for window in windows], device=device)
    logits, cache = subject.bridge.run_with_cache(ids)
    base = logits.float().log_softmax(-1)
    for row, window in enumerate(windows):
        for position, site in window.queries:
            pre = cache[f"blocks.{site.layer}.hook_resid_pre"][row, position]
            if site.kind in ("attn", "mlp"):
                diff = cache[f"blocks.{site.layer}.hook_{site.kind}_out"][row, position]
            elif site.kind == "head":
                diff = cache[f"blocks.{site.layer}.attn.hook_result"][row, position, site.head]
            else:
                diff = cache[f"blocks.{site.last_layer}.hook_resid_post"][row, position] - pre
            scale = subject.final_norm.scale(cache[f"blocks.{subject.n_layers - 1}.hook_resid_post"][row, position])
            top_tokens(direct_logit_shift(subject, diff[None], scale[None]), allowed, 10)
            for layer in range(site.layer, site.last_layer + 1) if site.kind != "mlp" else ():
                values = cache[f"blocks.{layer}.attn.hook_v"][row].repeat_interleave(
                    subject.n_heads // cache[f"blocks.{layer}.attn.hook_v"].shape[2], dim=1
                )
                for head in range(subject.n_heads) if site.head is None else [site.head]:
                    writes = values[:, head] @ subject.W_O(layer)[head]
                    parts = cache[f"blocks.{layer}.attn.hook_pattern"][row, head, position, :, None] * writes
                    whole = cache[f"blocks.{layer}.attn.hook_result"][row, position, head]
                    (parts @ whole / whole.norm()).abs().topk(10)
            skipped = full_run(position, site, slice(row, row + 1))[0]
            change = skipped.exp() - base[row, position].exp()
            (base[row, position].exp() * (base[row, position] - skipped)).sum()
            top_tokens(change[None], allowed, 10)


def drawn_windows(count: int) -> tuple[Window, ...]:
    sites = expand_sites(config.sites.names, subject.n_layers, subject.n_heads)
    return tuple(
        Window(str(row), "train", token_ids[row].tolist(), [
            (p, sites[i]) for r, p in places if r == row for i in rng.choice(len(sites), SITES, replace=False)
        ])
        for row in range(count)
    )  # fmt: skip


def profile(queries: list[Query]) -> dict[str, float]:
    """Where the time of all labels goes."""
    parts: dict[str, float] = {}
    runs: list[Forward] = []

    def clock(name: str, way: Callable[[], object]) -> None:
        parts[name] = seconds(way)

    clock(
        "forward pass with hooks",
        lambda: runs.append(forward(subject, token_ids, queries, attention=True, prefix=True)),
    )
    run, captured = runs[0], read_diffs(runs[0])
    clock("diffs", lambda: read_diffs(run))
    clock("attention labels", lambda: attention.measure(run, captured, allowed, options["attention"]))
    clock("lens labels", lambda: logit_lens.measure(run, captured, allowed, options["logit_lens"]))
    clock("skips: decode steps", lambda: skip(run, "position"))
    clock("skips: all of it", lambda: layer_skip.measure(run, captured, allowed, options["layer_skip"]))
    return parts


def peak_over_weights(queries: list[Query]) -> float:
    """GB that measuring needs above what stands in memory before it."""

    def work() -> None:
        run = forward(subject, token_ids, queries, attention=True, prefix=True)
        captured = read_diffs(run)
        for task, module in (("logit_lens", logit_lens), ("attention", attention), ("layer_skip", layer_skip)):
            module.measure(run, captured, allowed, options[task])

    return peak_memory(work, device)


layers, heads = queries_at(places, ["layers"]), queries_at(places, ["heads"])
windows = drawn_windows(DOCUMENTS)
memory = peak_over_weights(heads)
label_seconds = side_by_side(
    {
        "plain": lambda: torch.no_grad()(plain)(input_ids=token_ids, use_cache=False),
        "plain without head": lambda: torch.no_grad()(plain.base_model)(input_ids=token_ids, use_cache=False),
        "labels": lambda: lens_and_attention(layers),
    }
)
skip_seconds = {names: seconds_a_skip(names) for names in ("layers", "heads")}
build = seconds(lambda: measure(subject, windows, tasks, allowed))
subject.bridge.cfg.use_attn_result = True
book = seconds(lambda: textbook(windows[: DOCUMENTS // 4])) * 4
subject.bridge.cfg.use_attn_result = False
result = {
    "model": subject.identity.name,
    "documents": DOCUMENTS,
    "tokens a document": LENGTH,
    "positions a document": POSITIONS,
    "lens and attention labels of all layers / plain forward pass": label_seconds["labels"] / label_seconds["plain"],
    "the same / plain forward pass without head": label_seconds["labels"] / label_seconds["plain without head"],
    **{
        f"skips of all {names} at the last position: full run / ours": took["full run"] / took["ours"]
        for names, took in skip_seconds.items()
    },
    "three tasks, drawn sites: textbook / ours": book / build,
    "peak memory over the weights, all heads (GB)": memory,
    "seconds": {**label_seconds, "a skip": skip_seconds, "three tasks": build, "three tasks, textbook": book},
    "where the time goes, all layers (seconds)": profile(layers),
}
print(json.dumps(result | {"provenance": provenance(device)}, indent=1))
