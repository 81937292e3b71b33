"""bfloat16 is used where it is wanted and the device computes in it."""

import logging

import pytest
import torch

from diff_oracle.training import precision
from diff_oracle.training.precision import bf16_there, computes_bf16


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_a_cpu_without_bfloat16_takes_float32_and_says_so(
    wanted: bool, there: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "computes_bf16", lambda device: there)
    with caplog.at_level(logging.WARNING):
        assert bf16_there(wanted, "cpu", "training.bf16") is (wanted and there)
    assert ("training.bf16=true, but this CPU" in caplog.text) is (wanted and not there)


def test_a_gpu_computes_in_it_and_a_cpu_where_its_instructions_do() -> None:
    assert computes_bf16("cuda:0")
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        assert not computes_bf16("cpu")
