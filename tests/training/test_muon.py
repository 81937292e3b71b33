import pytest
import torch
from torch import nn

from diff_oracle.training.muon import Muon, orthogonal

COEFFICIENTS = (3.4445, -4.775, 2.0315)


@pytest.mark.parametrize("shape", [(24, 24), (20, 12), (40, 12), (12, 40)])
def test_singular_values_go_through_the_polynomial_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = sum(c * values**power for c, power in zip(COEFFICIENTS, (1, 3, 5), strict=True))
    torch.testing.assert_close(
        orthogonal(matrix, COEFFICIENTS, 5, 1e-7).double(), left * values @ right, atol=1e-4, rtol=0
    )
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3


def test_directions_that_a_gradient_has_not_stay_small() -> None:
    random = torch.Generator().manual_seed(0)
    low_rank = torch.randn((24, 3), generator=random) @ torch.randn((3, 96), generator=random)
    values = torch.linalg.svdvals(orthogonal(low_rank, COEFFICIENTS, 5, 1e-7))
    assert float(values[2]) > 0.6 and float(values[3]) < 1e-3


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_are_those_of_torch_but_for_its_rounding_to_bfloat16(weight_decay: float) -> None:
    start = torch.randn(16, 48, generator=torch.Generator().manual_seed(1))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    options = {"lr": 1e-2, "weight_decay": weight_decay}
    optimizers = Muon([ours], **options), torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)
    for step in range(4):
        if step == 2:  # the state of one is the other's
            optimizers[0].load_state_dict(optimizers[1].state_dict())
            ours.data.copy_(theirs)
        ours.grad = torch.randn(start.shape, generator=torch.Generator().manual_seed(2 + step))
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        assert float((ours - theirs).detach().norm()) < 0.15 * float((ours - start).detach().norm())
