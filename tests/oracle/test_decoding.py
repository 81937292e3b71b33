"""Greedy lists name every token once, and nothing else changes."""

import torch
from torch import Tensor

from diff_oracle.oracle.decoding import DistinctLines

NEWLINE, MINUS = 0, 1
PROMPT = [7, NEWLINE, 5, NEWLINE]
NONE: set[int] = set()


def banned(answer: list[int]) -> set[int]:
    """The tokens that may not follow the prompt and this much of an answer."""
    processor = DistinctLines(NEWLINE, MINUS, prompt_length=len(PROMPT))
    scores: Tensor = processor(torch.tensor([PROMPT + answer]), torch.zeros(1, 10))
    return set(scores[0].isinf().nonzero().flatten().tolist())


def test_a_line_begins_with_a_token_that_no_earlier_line_begins_with() -> None:
    assert banned([]) == NONE  # the prompt's own lines do not count
    assert banned([3, NEWLINE]) == {3}
    assert banned([3, NEWLINE, 4, NEWLINE]) == {3, 4}
    assert banned([5, 6, NEWLINE]) == {5}  # 6 stood inside a line


def test_within_a_line_everything_may_come() -> None:
    assert banned([3]) == NONE
    assert banned([3, NEWLINE, 4]) == NONE
    assert banned([3, NEWLINE, 4, 3]) == NONE


def test_behind_a_minus_that_begins_a_line_counts_the_token_that_follows() -> None:
    assert banned([MINUS]) == NONE
    assert banned([MINUS, 3, NEWLINE]) == NONE  # another minus may come
    assert banned([MINUS, 3, NEWLINE, MINUS]) == {3}
    assert banned([MINUS, 3, NEWLINE, MINUS, 4]) == NONE
    assert banned([MINUS, 3, NEWLINE, MINUS, 4, NEWLINE, MINUS]) == {3, 4}
    assert banned([5, NEWLINE, 6, MINUS]) == NONE  # this one stands inside a line


def test_a_minus_may_be_named_itself() -> None:
    assert banned([MINUS, NEWLINE]) == {MINUS}  # in a list without marks
    assert banned([MINUS, NEWLINE, 3, NEWLINE]) == {MINUS, 3}
    assert banned([MINUS, MINUS, NEWLINE]) == NONE  # behind its mark, where other marks must follow
    assert banned([MINUS, MINUS, NEWLINE, MINUS]) == {MINUS}
    assert banned([MINUS, 3, NEWLINE, MINUS, MINUS, NEWLINE, MINUS]) == {MINUS, 3}


def test_rows_do_not_know_of_each_other() -> None:
    processor = DistinctLines(NEWLINE, MINUS, prompt_length=1)
    rows = [[9, 3, 4, 5, NEWLINE], [9, 3, 4, 5, 6], [9, MINUS, 5, NEWLINE, MINUS], [9, 5, NEWLINE, 6, NEWLINE]]
    infinite = processor(torch.tensor(rows), torch.zeros(4, 10)).isinf()
    assert [row.nonzero().flatten().tolist() for row in infinite] == [[3], [], [5], [5, 6]]
