"""The optimiser: torch's Muon, made fast where bfloat16 is not.

Muon makes the momentum of a matrix orthogonal before it is applied, by five Newton-Schulz steps. `torch.optim.Muon`
takes them in bfloat16, which is slow on a CPU that only emulates it (`benchmarks/optimiser.py`). Here they have float32
unless the matrix is on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor


class Muon(torch.optim.Muon):
    """As `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`: an update has a root mean square of 0.2 × the rate.

    Its state is the same, so that each goes on from the other's.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        assert closure is None  # nobody here has one
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        grad, state, rate = parameter.grad, self.state[parameter], group["lr"]
        assert grad is not None
        momentum = state.setdefault("momentum_buffer", torch.zeros_like(grad))
        momentum.lerp_(grad, 1 - group["momentum"])
        update = grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        update = orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.add_(update, alpha=-rate * 0.2 * math.sqrt(max(parameter.shape)))


def orthogonal(
    matrix: Float[Tensor, "row column"], coefficients: tuple[float, float, float], steps: int, eps: float
) -> Float[Tensor, "row column"]:
    """The matrix with singular values near 1, its singular vectors as they were.

    Each step takes a singular value s, of a matrix of Frobenius norm 1 at the start, to a·s + b·s³ + c·s⁵
    (https://kellerjordan.github.io/posts/muon).
    """
    a, b, c = coefficients
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide.bfloat16() if matrix.is_cuda else wide.float()
    x = x / x.norm().clamp(min=eps)
    # A DTensor, FSDP's matrix in pieces, has no diagonal to add to.
    if x.dtype == torch.float32 and x.shape[1] >= 2 * x.shape[0] and steps <= 5 and not isinstance(x, DTensor):
        x = _product_of_steps(x @ x.T, coefficients, steps) @ x
    else:
        for _ in range(steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.T


def _product_of_steps(
    gram: Float[Tensor, "row row"], coefficients: tuple[float, float, float], steps: int
) -> Float[Tensor, "row row"]:
    """What all steps multiply a matrix X by, from X·Xᵀ: for a low-rank adapter's far smaller than X itself.

    A step multiplies by Q = a + b·G + c·G², where G is the Gram matrix of X at that step, and makes it Q·G·Q. Rounding
    errors of G grow with the square of a in each step: float32 has room for five steps of them, bfloat16 has not.
    """
    a, b, c = coefficients
    product = torch.eye(len(gram), device=gram.device)
    for _ in range(steps):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product, gram = factor @ product, factor @ gram @ factor
    return product
