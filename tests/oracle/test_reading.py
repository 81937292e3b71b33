"""What is read once answers as what is read anew for every question, on every architecture."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from diff_oracle.oracle.model import Oracle
from diff_oracle.oracle.reading import Reading
from diff_oracle.subject.capture import Diff
from tests.helpers import ARCHITECTURES, diff_at
from tests.oracle.conftest import MakeOracle

QUESTIONS = ("Why?", "What does this step do, and to which tokens?")
CHOICES = ((" the",), (" a",), ("no",))


def make_diffs(oracle: Oracle) -> list[Diff]:
    """Of sites whose names are of different lengths, so that rows are padded."""
    rng = np.random.default_rng(0)
    return [
        diff_at(site, rng.standard_normal(oracle.prompts.d_model).astype(np.float32), token_ids=(1, 2, 3 + i))
        for i, site in enumerate(["L0", "L11H7", "L2:4", "L3.attn", "L10H11"])
    ]


@pytest.mark.parametrize(
    ("architecture", "injection"),
    [(name, {}) for name in ARCHITECTURES]
    + [("gemma3", {"kind": "residual"}), ("llama", {"input": "diff_before"}), ("gpt2", {"input": "text"})],
)
def test_answers_are_those_of_whole_prompts(
    architecture: str, injection: dict[str, str], make_oracle: MakeOracle
) -> None:
    oracle = make_oracle(architecture, **injection)
    diffs, rows = make_diffs(oracle), [3, 0, 4]
    reading = Reading(oracle, diffs)
    for question in QUESTIONS:
        prompts = [oracle.prompts.about(diffs[row], (question,)) for row in rows]
        expected = torch.stack(oracle.choice_log_probs(prompts, [CHOICES] * len(rows)))
        assert (expected[0] - expected[1:]).abs().max(dim=1).values.min() > 1e-3  # so that rows can be told apart
        torch.testing.assert_close(reading.choice_log_probs(rows, (question,), CHOICES), expected, rtol=1e-4, atol=1e-4)
        assert reading.generate(rows, (question,), 12) == oracle.generate(prompts, 12)


def test_questions_leave_what_was_read_as_it_was(make_oracle: MakeOracle) -> None:
    oracle = make_oracle()
    reading = Reading(oracle, make_diffs(oracle))
    first = reading.generate([1, 2], (QUESTIONS[0],), 12)
    reading.generate([4], (QUESTIONS[1],), 5)
    assert reading.generate([1, 2], (QUESTIONS[0],), 12) == first


def test_threads_inject_each_their_own_diffs(make_oracle: MakeOracle, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = make_oracle()
    diffs = make_diffs(oracle)
    halves = [diffs[:2], diffs[2:]]  # of other widths, too
    directions, both = oracle.injector.directions, threading.Barrier(2)

    def ask(half: list[Diff]) -> list[list[float]]:
        return Reading(oracle, half).choice_log_probs(range(len(half)), ("Why?",), CHOICES).tolist()

    alone = [ask(half) for half in halves]

    def wait_for_the_other(vectors: torch.Tensor) -> torch.Tensor:
        both.wait(timeout=20)  # both are injecting now
        return directions(vectors)

    monkeypatch.setattr(oracle.injector, "directions", wait_for_the_other)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(ask, halves))
    assert together == alone and alone[0] != alone[1][:2]
