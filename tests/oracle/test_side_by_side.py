"""Rows in several threads give what they give in one."""

import threading
from collections.abc import Iterator, Sequence

import pytest
import torch

from diff_oracle.oracle.side_by_side import side_by_side

CPU = torch.device("cpu")


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_rows_are_shared_out_and_results_are_in_order(three_threads: None) -> None:
    together = threading.Barrier(3)
    seen: list[tuple[int, int]] = []

    def double(rows: Sequence[int]) -> list[int]:
        together.wait(timeout=20)  # breaks unless three are at work at the same time
        seen.append((len(rows), torch.get_num_threads()))
        return [2 * row for row in rows]

    assert side_by_side(double, range(10), CPU) == [2 * row for row in range(10)]
    assert sorted(seen) == [(3, 1), (3, 1), (4, 1)]
    assert torch.get_num_threads() == 3


def test_one_call_where_there_is_one_row_one_core_or_another_device(three_threads: None) -> None:
    calls: list[Sequence[int]] = []

    def note(rows: Sequence[int]) -> list[int]:
        calls.append(rows)
        return list(rows)

    side_by_side(note, [7], CPU)
    side_by_side(note, [1, 2, 3], torch.device("cuda"))
    side_by_side(note, [], CPU)
    torch.set_num_threads(1)
    side_by_side(note, [4, 5], CPU)
    assert calls == [[7], [1, 2, 3], [], [4, 5]]


def test_an_error_is_raised_and_the_threads_are_as_before(three_threads: None) -> None:
    def fail(rows: Sequence[int]) -> list[int]:
        if 5 in rows:
            raise ValueError("row 5")
        return list(rows)

    with pytest.raises(ValueError, match="row 5"):
        side_by_side(fail, range(6), CPU)
    assert torch.get_num_threads() == 3
