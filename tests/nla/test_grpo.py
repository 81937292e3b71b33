"""Advantages and losses equal what comes out by hand; at the first step nothing has moved."""

import math

import pytest
import torch

from diff_oracle.nla.grpo import advantages, clipped_losses, k3, share_clipped


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 3.0, 5.0, 3.0], [2.0, 2.0, 2.0, 2.0001], [-1.0, -1.0, -1.0, 3.0]])
    found = advantages(rewards, min_spread=1e-3)
    root2, root3 = math.sqrt(2), math.sqrt(3)
    expected = [[-root2, 0, root2, 0], [0, 0, 0, 0], [-1 / root3, -1 / root3, -1 / root3, root3]]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [
        (1.0, 2.0, -2.0, True),
        (1.1, 2.0, -2.2, True),
        (1.5, 2.0, -2.4, False),  # good and already much likelier: clipped
        (0.5, 2.0, -1.0, True),
        (0.5, -2.0, 1.6, False),  # bad and already much rarer: clipped
        (1.5, -2.0, 3.0, True),  # bad and likelier: all of it counts
    ],
)
def test_clipped_loss_by_hand(ratio: float, advantage: float, loss: float, moves: bool) -> None:
    old = torch.tensor([[-1.0]])
    new = (old + math.log(ratio)).requires_grad_()
    found = clipped_losses(new, old, torch.full_like(new, advantage), clip=0.2)
    assert found.item() == pytest.approx(loss, rel=1e-5)
    found.sum().backward()  # type: ignore[no-untyped-call]
    # d(−ρA)/d log π = −ρA
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(-ratio * advantage if moves else 0.0, rel=1e-5)


def test_kl_by_hand_and_in_the_mean() -> None:
    new, reference = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]])
    assert k3(new, reference).item() == pytest.approx(0.5 + math.log(2) - 1)
    # Over what the policy samples, it is KL(policy ‖ reference).
    p, q = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    expected = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * k3(p.log()[None], q.log()[None])[0]).sum(), expected)


def test_before_anything_moved() -> None:
    log_probs = -torch.rand(4, 7, generator=torch.Generator().manual_seed(0))
    advantage = torch.tensor([1.0, -1.0, 0.5, 0.0])
    assert torch.equal(k3(log_probs, log_probs), torch.zeros(4, 7))
    torch.testing.assert_close(
        clipped_losses(log_probs, log_probs, advantage[:, None].expand(4, 7), 0.2), -advantage[:, None].expand(4, 7)
    )


def test_share_clipped_counts_sampled_tokens() -> None:
    old, mask = torch.zeros(2, 3), torch.tensor([[True, True, False], [True, True, True]])
    new = torch.tensor([[0.0, 1.0, 5.0], [0.1, -1.0, 0.0]])
    assert share_clipped(new, old, mask, clip=0.2) == pytest.approx(2 / 5)
