"""Something else in place of a diff: the true one changes nothing, none is a skip, and the rest is a run by hand."""

import pytest
import torch

from diff_oracle.subject.capture import Diff, capture
from diff_oracle.subject.forward import Query, forward
from diff_oracle.subject.model import Subject
from diff_oracle.subject.sites import expand_sites
from diff_oracle.subject.skip import skip
from diff_oracle.subject.splice import kl_divergence, spliced_log_probs
from tests.helpers import ARCHITECTURES, bundled_loaded, random_subject, random_tokens


def diffs_of(subject: Subject) -> tuple[list[Diff], torch.Tensor, torch.Tensor]:
    """Diffs of every kind at several places; log-probabilities as the model has them, and with the diff skipped."""
    token_ids = random_tokens()
    sites = expand_sites(["layers", "components", "heads", "spans"], subject.n_layers, subject.n_heads)
    queries = [Query(row, position, site) for row, position in [(0, 9), (1, 22)] for site in sites]
    captured = capture(subject, token_ids, queries)
    run = forward(subject, token_ids, queries, prefix=True)
    base = subject.unembed(run.final)[run.place].log_softmax(-1)
    skipped = subject.unembed(skip(run, "position")).log_softmax(-1)
    diffs = [
        Diff(str(q.site), q.position, tuple(token_ids[q.row, : q.position + 1].tolist()), d.numpy(), b.numpy())
        for q, d, b in zip(queries, captured.diff, captured.before, strict=True)
    ]
    return diffs, base, skipped


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "tiny"])
def test_the_true_diff_changes_nothing_and_none_is_a_skip(architecture: str) -> None:
    subject = Subject(bundled_loaded()) if architecture == "tiny" else random_subject(architecture)
    diffs, base, skipped = diffs_of(subject)
    true = torch.stack([torch.from_numpy(diff.diff) for diff in diffs])
    assert float(kl_divergence(base, spliced_log_probs(subject, diffs, true)).max()) < 1e-4
    none = spliced_log_probs(subject, diffs, torch.zeros_like(true))
    torch.testing.assert_close(none.exp(), skipped.exp(), rtol=0, atol=1e-4)
    assert float(kl_divergence(base, none).mean()) > 1e-3  # there was something to lose


def test_what_is_spliced_stands_where_the_diff_stood() -> None:
    """The last block's diff goes straight to the final norm."""
    subject = Subject(bundled_loaded())
    last = f"L{subject.n_layers - 1}"
    diffs = [diff for diff in diffs_of(subject)[0] if diff.site == last]
    instead = torch.randn(len(diffs), subject.d_model, generator=torch.Generator().manual_seed(0))
    before = torch.stack([torch.from_numpy(diff.before) for diff in diffs])
    expected = subject.unembed(before + instead).log_softmax(-1)
    torch.testing.assert_close(spliced_log_probs(subject, diffs, instead), expected, rtol=1e-4, atol=1e-4)


def test_a_diff_is_spliced_alike_alone_and_among_others() -> None:
    subject = Subject(bundled_loaded())
    diffs = diffs_of(subject)[0][::7]
    instead = torch.randn(len(diffs), subject.d_model, generator=torch.Generator().manual_seed(1))
    together = spliced_log_probs(subject, diffs, instead)
    for i, diff in enumerate(diffs):
        alone = spliced_log_probs(subject, [diff], instead[i : i + 1])[0]
        torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-4)


def test_kl_is_that_of_its_formula() -> None:
    base, other = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 0.5 * torch.log(torch.tensor(2.0)) + 0.5 * torch.log(torch.tensor(2 / 3))
    assert float(kl_divergence(base, other)) == pytest.approx(float(expected))
