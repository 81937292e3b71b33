"""What the model would do without a diff: the update taken out of the residual, and everything behind it run again.

With scope `position` the update is missing at one position only. What came before is then as it was, so all skips of a
batch run as extra tokens behind it (`_branches`): each stands at its own position, sees the keys and values of the
positions before it and itself, never its neighbours, and its row of the attention mask is the one that its position had
in the run, so a sliding window stays exact. One branch of every piece skips nothing and must give what the run gave;
where it does not, the architecture keeps more than keys and values, and every skip is a run of its own.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from diff_oracle.subject.forward import Forward, Prefix, last_hook
from diff_oracle.subject.model import Subject
from diff_oracle.subject.removal import Where, removal
from diff_oracle.subject.sites import DiffSite

Scope = Literal["position", "sequence"]

# What bounds the memory of a pass, beside the weights.
_TOKENS = {"cpu": 2**10, "cuda": 2**14}  # a CPU is fastest where activations stay in its cache
_SCORE_BYTES = 2**28
_BRANCHES = 64  # of one row in one pass
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


@torch.no_grad()
def skip(run: Forward, scope: Scope) -> Float[Tensor, "query d_model"]:
    """The residual that the final norm reads at each query's position, with the query's update removed.

    Args:
        run: A pass with `prefix=True` (for scope `sequence` it need not have it).
        scope: Remove the update at the query's `position` only, or in the whole `sequence`.
    """
    if not run.queries:
        return torch.empty(0, run.subject.d_model, device=run.subject.device)
    if scope == "sequence":
        return _reruns(run, scope)
    residuals = None if run.prefix is None else _branches(run, run.prefix)
    if residuals is None:
        warnings.warn(
            f"{run.subject.identity.name} ({run.subject.identity.architecture}) has no cache that skips could share: "
            "each skip runs its text anew, which is many times slower",
            stacklevel=2,
        )
        return _reruns(run, scope)
    return residuals


def _branches(run: Forward, prefix: Prefix) -> Float[Tensor, "query d_model"] | None:
    """Scope `position`, the skips of a row in few decode steps; None where a branch without a skip goes astray."""
    subject = run.subject
    layers = [query.site.layer for query in run.queries]
    by_row: dict[int, list[int]] = defaultdict(list)
    # Before the block of its site nothing differs: branches that begin late stand together and begin there.
    for i in sorted(range(len(run.queries)), key=lambda i: layers[i]):
        by_row[run.queries[i].row].append(i)
    pieces = [
        (row, branches[start : start + _BRANCHES])
        for row, branches in by_row.items()
        for start in range(0, len(branches), _BRANCHES)
    ]
    pieces.sort(key=lambda piece: layers[piece[1][0]])
    residuals = torch.empty(len(run.queries), subject.d_model, device=subject.device)
    width = max(len(branches) for _, branches in pieces)
    at_once = _rows_at_once(subject, width + 1, run.token_ids.shape[1] + width + 1)
    for start in range(0, len(pieces), at_once):
        batch = pieces[start : start + at_once]
        rows = torch.tensor([row for row, _ in batch], device=subject.device)
        # A shorter piece is filled up with its first branch; what that computes is not read.
        branch = torch.tensor([b + b[:1] * (width - len(b)) for _, b in batch], device=subject.device)
        real = [(i, j, b) for i, (_, branches) in enumerate(batch) for j, b in enumerate(branches)]
        where: dict[DiffSite, list[tuple[int, ...]]] = defaultdict(list)
        for i, j, b in real:
            where[run.queries[b].site].append((i, j))
        first = layers[batch[0][1][0]] if prefix.bare else 0
        final = _decode(run, prefix, rows, run.place[branch], first, _index(where, subject))
        error = (final[:, -1] - prefix.last[rows]).norm(dim=-1) / prefix.last[rows].norm(dim=-1)
        if not float(error.max()) <= _TOLERANCE[subject.hf_model.dtype]:
            return None
        i, j, b = torch.tensor(real, device=subject.device).T
        residuals[b] = final[i, j]
    return residuals


def _decode(
    run: Forward,
    prefix: Prefix,
    rows: Int[Tensor, "piece"],
    place: Int[Tensor, "piece branch"],
    first: int,
    where: dict[DiffSite, Where],
) -> Float[Tensor, "piece branch_and_control d_model"]:
    """The last residual of tokens that each continue a row's text up to their own place, from block `first` on.

    Behind them stands the control: the row's last position without a skip. It also keeps the length of the text what it
    was in the run, on which some rotary embeddings depend.
    """
    last = run.token_ids.shape[1] - 1
    positions = torch.nn.functional.pad(run.positions[place], (0, 1), value=last)
    start = None
    if first > 0:
        name = f"blocks.{first}.hook_resid_pre"
        start = torch.cat([run.kept[name][place], prefix.before[first][rows, None]], dim=1)
    with _masks(run.subject, _branch_masks(prefix, rows, positions)), _from_block(run.subject, start, first):
        return _final_residual(
            run.subject,
            where,
            input_ids=run.token_ids[rows[:, None], positions],
            position_ids=positions,
            past_key_values=_SharedPrefix(prefix, rows),
            use_cache=True,
        )


@contextmanager
def _from_block(subject: Subject, start: Float[Tensor, "piece branch d_model"] | None, first: int) -> Iterator[None]:
    """Passes over the blocks before `first`, which gets `start`, what it got in the run."""
    if start is None:
        yield
        return
    start = start.to(subject.hf_model.dtype)
    over = [block.original_component for block in subject.bridge.blocks[:first]]
    shadowed = [vars(component).get("forward") for component in over]  # a module may have one of its own already
    for component in over:
        component.forward = lambda hidden_states, *args, **kwargs: hidden_states
    try:
        with subject.bridge.hooks(fwd_hooks=[(f"blocks.{first}.hook_resid_pre", lambda value, hook: start)]):
            yield
    finally:
        for component, own in zip(over, shadowed, strict=True):
            if own is None:
                del component.forward
            else:
                component.forward = own


class _SharedPrefix(DynamicCache):
    """Keys and values of a run, to be read by later tokens; what those add is not kept."""

    def __init__(self, prefix: Prefix, rows: Int[Tensor, "piece"]) -> None:
        super().__init__()
        self._prefix, self._rows = prefix, rows

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._prefix.keys[layer_idx].shape[2]

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.get_seq_length(layer_idx) + query_length, 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._prefix.keys[layer_idx][self._rows], self._prefix.values[layer_idx][self._rows]
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)


def _branch_masks(
    prefix: Prefix, rows: Int[Tensor, "piece"], positions: Int[Tensor, "piece branch"]
) -> list[Float[Tensor, "piece head branch key"]]:
    """Each block's mask: the prefix as the branch's position saw it, but for that position, and the branch itself."""
    made: dict[int, Tensor] = {}
    width = positions.shape[1]
    for mask in prefix.masks:
        if id(mask) in made:
            continue
        blocked = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        free = True if mask.dtype == torch.bool else 0.0
        seen = mask.expand(prefix.keys[0].shape[0], -1, -1, -1)[rows[:, None], :, positions].transpose(1, 2)
        seen = seen.scatter(-1, positions[:, None, :, None].expand(-1, seen.shape[1], -1, 1), blocked)
        own = torch.full((width, width), blocked, dtype=mask.dtype, device=mask.device).fill_diagonal_(free)
        made[id(mask)] = torch.cat([seen, own.expand(*seen.shape[:3], -1)], dim=-1)
    return [made[id(mask)] for mask in prefix.masks]


@contextmanager
def _masks(subject: Subject, masks: Sequence[Tensor]) -> Iterator[None]:
    """Puts masks in place of those that the model makes."""
    handles = [
        subject.bridge.blocks[layer].attn.register_forward_pre_hook(
            lambda module, args, kwargs, mask=mask: (args, kwargs | {"attention_mask": mask}), with_kwargs=True
        )
        for layer, mask in enumerate(masks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reruns(run: Forward, scope: Scope) -> Float[Tensor, "query d_model"]:
    """Every skip a run of its own, a few at once."""
    subject, width = run.subject, run.token_ids.shape[1]
    # In scope `sequence` one run serves all positions of its row.
    jobs: dict[tuple[int, int | None, DiffSite], list[int]] = defaultdict(list)
    for i, query in enumerate(run.queries):
        jobs[query.row, query.position if scope == "position" else None, query.site].append(i)
    residuals = torch.empty(len(run.queries), subject.d_model, device=subject.device)
    at_once = _rows_at_once(subject, width, width)
    keys = list(jobs)
    for start in range(0, len(keys), at_once):
        batch = keys[start : start + at_once]
        where: dict[DiffSite, list[tuple[int, ...]]] = defaultdict(list)
        for i, (_, position, site) in enumerate(batch):
            where[site].append((i,) if position is None else (i, position))
        rows = torch.tensor([row for row, _, _ in batch], device=subject.device)
        final = _final_residual(subject, _index(where, subject), input_ids=run.token_ids[rows], use_cache=False)
        for i, key in enumerate(batch):
            residuals[jobs[key]] = final[i, [run.queries[n].position for n in jobs[key]]]
    return residuals


def _final_residual(subject: Subject, where: dict[DiffSite, Where], **inputs: Any) -> Float[Tensor, "row pos d_model"]:
    """The residual behind the last block, of a pass in which updates are removed."""
    seen: list[Tensor] = []
    fwd_hooks = [hook for site, at in where.items() for hook in removal(subject, site, at)]
    fwd_hooks.append((last_hook(subject), lambda value, hook: seen.append(value.float())))
    with subject.bridge.hooks(fwd_hooks=fwd_hooks):
        subject.hf_model.base_model(**inputs)
    return seen[0]


def _rows_at_once(subject: Subject, num_tokens: int, num_keys: int) -> int:
    """How many rows of so many tokens, each seeing so many keys, a pass takes."""
    tokens = _TOKENS.get(subject.device.type, _TOKENS["cpu"])
    return max(1, min(tokens // num_tokens, _SCORE_BYTES // (4 * subject.n_heads * num_tokens * num_keys)))


def _index(where: dict[DiffSite, Any], subject: Subject) -> dict[DiffSite, Where]:
    """Lists of index tuples as tensors."""
    return {site: tuple(torch.tensor(places, device=subject.device).T) for site, places in where.items()}
