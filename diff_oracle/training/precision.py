"""bfloat16 where a device computes in it."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger(__name__)


def computes_bf16(device: str) -> bool:
    """Whether matrix products in bfloat16 are no slower than in float32.

    A CPU without AVX-512 (or AMX, or Arm's own) takes them element by element, many times slower.
    """
    if torch.device(device).type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def bf16_there(wanted: bool, device: str, option: str) -> bool:
    """What is wanted, unless the device would take far longer: then float32, with a warning that names the option."""
    if wanted and not computes_bf16(device):
        logger.warning(
            "%s=true, but this CPU does not compute in bfloat16 (it has no AVX-512): float32 is used, "
            "which is many times faster here",
            option,
        )
        return False
    return wanted
