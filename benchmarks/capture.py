"""What measuring diffs and logit-lens labels costs, beside a plain forward pass and the textbook way.

    python benchmarks/capture.py [model=smollm2_135m]

The same queries every round: 16 documents of 96 tokens, 4 positions x 6 sites each. `plain` is the model without head;
`ours` is `capture` and labels; `textbook` is `run_with_cache` of everything, indexing, labels (no post-norm models).
"""

import json
import sys
import time
from statistics import median

import torch

from data_gen.build import BuildConfig
from data_gen.corpus import iter_documents
from data_gen.logit_lens import measure
from diff_oracle.cli import compose
from diff_oracle.provenance import provenance
from diff_oracle.randomness import keyed_rng
from diff_oracle.subject.capture import Captured, capture
from diff_oracle.subject.forward import Query
from diff_oracle.subject.lens import label_tokens
from diff_oracle.subject.loading import load_hf_model, pick_device
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import expand_sites
from diff_oracle.tasks import make_tasks

DOCUMENTS, LENGTH, POSITIONS, SITES = 16, 96, 4, 6
MIN_ROUNDS, MAX_ROUNDS, MAX_SECONDS = 3, 15, 30  # a large model has fewer rounds


@torch.no_grad()
def textbook(subject: Subject, token_ids: torch.Tensor, queries: list[Query]) -> Captured:
    _, cache = subject.bridge.run_with_cache(token_ids)
    diff, before = torch.empty(2, len(queries), subject.d_model, device=subject.device)
    places = torch.tensor([[query.row, query.position] for query in queries])
    for site in {query.site for query in queries}:
        chosen, block = torch.tensor([query.site == site for query in queries]), f"blocks.{site.layer}"
        at = tuple(places[chosen].T)
        before[chosen] = cache[f"{block}.hook_resid_{'mid' if site.kind == 'mlp' else 'pre'}"][at]
        if site.kind == "head":
            z = cache[f"{block}.attn.hook_z"][at].reshape(len(at[0]), subject.n_heads, -1)
            diff[chosen] = z[:, site.head] @ subject.W_O(site.layer)[site.head]
        elif site.kind in ("attn", "mlp"):
            diff[chosen] = cache[f"{block}.hook_{site.kind}_out"][at]
        else:
            diff[chosen] = cache[f"blocks.{site.last_layer}.hook_resid_post"][at] - before[chosen]
    last = cache[f"blocks.{subject.n_layers - 1}.hook_resid_post"]
    return Captured(diff, before, subject.final_norm.scale(last[tuple(places.T)]))


config = compose("build", BuildConfig, ["+task=logit_lens", *sys.argv[1:]])
device, (task,), rng = pick_device(config.device), make_tasks(config.tasks), keyed_rng(0, "benchmark")
plain, subject = load_hf_model(config.model, device).model.base_model, Subject.load(config.model, device)
texts = [subject.tokenizer.encode(document.text, verbose=False)[:LENGTH] for document in iter_documents(config.corpus)]
token_ids = torch.tensor([ids for ids in texts if len(ids) == LENGTH][:DOCUMENTS], device=device)
places = [(row, int(p)) for row in range(DOCUMENTS) for p in rng.choice(range(8, LENGTH), POSITIONS, replace=False)]
sites = expand_sites(config.sites.names, subject.n_layers, subject.n_heads)
queries = [Query(*place, sites[i]) for place in places for i in rng.choice(len(sites), SITES, replace=False)]
allowed = label_tokens(subject.tokenizer, len(subject.W_U.T)).to(device)
ways = {
    "plain": lambda: torch.no_grad()(plain)(input_ids=token_ids, use_cache=False)[0].cpu(),
    "ours": lambda: measure(subject, capture(subject, token_ids, queries), allowed, task.config),
    "textbook": lambda: measure(subject, textbook(subject, token_ids, queries), allowed, task.config),
}
same = (method(subject, token_ids, queries).diff for method in (capture, textbook))
torch.testing.assert_close(*same, rtol=1e-3, atol=1e-4)
seconds: dict[str, list[float]] = {name: [] for name in ways}
begun = time.perf_counter()
while (n := len(seconds["textbook"])) < MIN_ROUNDS or (n < MAX_ROUNDS and time.perf_counter() - begun < MAX_SECONDS):
    for name, way in ways.items():
        start = time.perf_counter()
        way()
        seconds[name].append(time.perf_counter() - start)
ours, base, book = (median(seconds[name]) for name in ("ours", "plain", "textbook"))
result = {"model": subject.identity.name, "median_seconds": {"plain": base, "ours": ours, "textbook": book}}
result |= {"ours / plain": ours / base, "textbook / ours": book / ours, "rounds": seconds}
print(json.dumps(result | {"provenance": provenance(device)}, indent=1))
