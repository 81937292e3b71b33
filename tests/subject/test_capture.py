import pytest
import torch

from diff_oracle.subject.capture import attention_bias_write, capture
from diff_oracle.subject.forward import Query
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import DiffSite, expand_sites
from tests.helpers import ARCHITECTURES, random_loaded, random_subject, random_tokens, relative_error
from tests.subject.reference import reference

ALL = ["layers", "components", "heads", "spans"]
PLACES = [(0, 9), (1, 9), (1, 22)]


def queries_at(subject: Subject, names: list[str], places: list[tuple[int, int]]) -> list[Query]:
    sites = expand_sites(names, subject.n_layers, subject.n_heads)
    return [Query(row, position, site) for row, position in places for site in sites]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_diff_is_what_plain_hooks_see(architecture: str) -> None:
    token_ids = random_tokens()
    expected = reference(random_loaded(architecture).model, architecture, token_ids)
    subject = random_subject(architecture)
    queries = queries_at(subject, ALL, PLACES)
    captured = capture(subject, token_ids, queries)
    for i, query in enumerate(queries):
        name = str(query.site)
        assert relative_error(captured.diff[i], expected.diff[name][query.row, query.position]) < 1e-4, name
        assert relative_error(captured.before[i], expected.before[name][query.row, query.position]) < 1e-4, name
        # A neighbour in depth, head or position would have been noticed.
        others = {site: diff for site, diff in expected.diff.items() if site != name}
        nearest = min(relative_error(captured.diff[i], diff[query.row, query.position]) for diff in others.values())
        shifted = relative_error(captured.diff[i], expected.diff[name][query.row, query.position - 1])
        assert min(nearest, shifted) > 0.02, name
        final = expected.final[query.row, query.position].double()
        if architecture in ("gpt2", "gpt_neox"):
            final = final - final.mean()
        assert captured.final_scale[i].item() == pytest.approx(final.square().mean().sqrt().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        *((name, {}) for name in ARCHITECTURES),
        ("gemma3", {"attention_bias": True}),
        ("gpt_neox", {"use_parallel_residual": False}),
    ],
)
def test_diffs_close(architecture: str, overrides: dict) -> None:
    subject = random_subject(architecture, **overrides)
    token_ids = random_tokens()
    n_layers, n_heads = subject.n_layers, subject.n_heads
    layers = capture(subject, token_ids, queries_at(subject, ["layers"], PLACES)).diff.unflatten(0, (-1, n_layers))
    parts = capture(subject, token_ids, queries_at(subject, ["components"], PLACES)).diff.unflatten(
        0, (-1, n_layers, 2)
    )
    heads = capture(subject, token_ids, queries_at(subject, ["heads"], PLACES)).diff.unflatten(
        0, (-1, n_layers, n_heads)
    )
    bias = attention_bias_write(subject, token_ids, queries_at(subject, ["layers"], PLACES)).unflatten(
        0, (-1, n_layers)
    )
    assert relative_error(heads.sum(2) + bias, parts[:, :, 0]) < 1e-5
    assert relative_error(parts.sum(2), layers) < 1e-5
    spans = queries_at(subject, ["spans"], PLACES)
    for query, span in zip(spans, capture(subject, token_ids, spans).diff, strict=True):
        place = PLACES.index((query.row, query.position))
        assert relative_error(span, layers[place, query.site.layer : query.site.end].sum(0)) < 1e-5


def test_no_head_has_a_share_of_the_bias() -> None:
    """The bias is large here, so a share of it would show in a head's write."""
    subject = random_subject("gpt2")
    bias = attention_bias_write(subject, random_tokens(), [Query(0, 9, DiffSite("layer", 1))])
    attention = capture(subject, random_tokens(), [Query(0, 9, DiffSite("attn", 1))]).diff
    assert bias.norm() > 0.1 * attention.norm()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_and_batching_change_nothing(architecture: str) -> None:
    subject = random_subject(architecture)
    short, other = random_tokens(1, 12), random_tokens(1, 30, seed=1)
    queries = queries_at(subject, ALL, [(0, 11)])
    alone = capture(subject, short, queries)
    padding = torch.full((1, 18), subject.tokenizer.pad_token_id)
    batched = capture(subject, torch.cat([torch.cat([short, padding], 1), other]), queries)
    assert relative_error(batched.diff, alone.diff) < 1e-4
    assert relative_error(batched.before, alone.before) < 1e-4
    assert torch.allclose(batched.final_scale, alone.final_scale, rtol=1e-4)


def test_queries_may_come_in_any_order_and_repeat() -> None:
    subject, token_ids = random_subject(), random_tokens()
    queries = queries_at(subject, ALL, PLACES)
    straight = capture(subject, token_ids, queries)
    order = [*reversed(range(len(queries))), 3, 3]
    shuffled = capture(subject, token_ids, [queries[i] for i in order])
    for field in ("diff", "before", "final_scale"):
        assert torch.equal(getattr(shuffled, field), getattr(straight, field)[order])


def test_no_hook_is_left_behind() -> None:
    subject = random_subject()
    capture(subject, random_tokens(), queries_at(subject, ALL, PLACES))
    assert not [name for name, hook in subject.bridge.hook_dict.items() if hook.fwd_hooks]


def test_what_is_not_finite_is_named() -> None:
    loaded = random_loaded("gpt2")
    embedding = loaded.model.get_input_embeddings().weight
    subject = Subject(loaded)
    token_ids = random_tokens()
    token_ids[1, 15] = 5  # occurs nowhere else
    with torch.no_grad():
        embedding[5] = torch.nan
    site = DiffSite.parse("L1.mlp")
    capture(subject, token_ids, [Query(0, 20, site)])
    with pytest.raises(ValueError, match=r"not finite at row 1, position 16, site 'L1.mlp'"):
        capture(subject, token_ids, [Query(0, 20, site), Query(1, 16, site)])


@pytest.mark.parametrize(
    ("row", "position", "site", "message"),
    [
        (0, 0, "L0", "position 0 is out of range: choose from 1…23"),
        (0, 24, "L0", "position 24 is out of range"),
        (0, -1, "L0", "position -1 is out of range"),
        (2, 9, "L0", "row 2 is out of range: the batch has rows 0…1"),
        (0, 9, "L4", "site 'L4' is out of range"),
        (0, 9, "L0H4", "site 'L0H4' is out of range"),
    ],
)
def test_queries_out_of_range_are_refused(row: int, position: int, site: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        capture(random_subject(), random_tokens(), [Query(row, position, DiffSite.parse(site))])
