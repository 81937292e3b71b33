"""No line of a generated answer says what an earlier one says, and nothing else changes."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diff_oracle.oracle.decoding import DistinctLines

NEWLINE, MINUS = 0, 1
PROMPT = [7, NEWLINE, 5, NEWLINE]
NONE: set[int] = set()


def banned(answer: list[int]) -> set[int]:
    """The tokens that may not follow the prompt and this much of an answer."""
    processor = DistinctLines(NEWLINE, prompt_length=len(PROMPT))
    scores: Tensor = processor(torch.tensor([PROMPT + answer]), torch.zeros(1, 10))
    return set(scores[0].isinf().nonzero().flatten().tolist())


def test_a_token_is_listed_once() -> None:
    assert banned([]) == NONE  # the prompt's own lines do not count
    assert banned([3, NEWLINE]) == {3}
    assert banned([3, NEWLINE, 4, NEWLINE]) == {3, 4}


def test_within_another_line_everything_may_come() -> None:
    assert banned([3]) == NONE
    assert banned([3, NEWLINE, 4]) == NONE
    assert banned([3, NEWLINE, 4, 3]) == NONE
    assert banned([5, 6, NEWLINE]) == NONE


def test_of_a_line_that_repeats_another_the_last_token_may_not_come() -> None:
    assert banned([MINUS, 3, NEWLINE]) == NONE  # another minus may come
    assert banned([MINUS, 3, NEWLINE, MINUS]) == {3}
    assert banned([MINUS, 3, NEWLINE, MINUS, 4, NEWLINE, MINUS]) == {3, 4}
    assert banned([MINUS, 3, NEWLINE, 2]) == NONE  # other words before it
    assert banned([5, 6, 7, NEWLINE, 5, 6]) == {7}
    assert banned([MINUS, NEWLINE]) == {MINUS}


@given(st.lists(st.integers(0, 3), max_size=12), st.data())
def test_as_a_comparison_of_lines_says(answer: list[int], data: st.DataObject) -> None:
    *lines, last = _lines(answer)
    expected = {line[-1] for line in lines if line and line[:-1] == last}
    assert banned(answer) == expected
    token = data.draw(st.integers(1, 3))
    repeats = [*last, token] in lines
    assert (token in expected) == repeats


def _lines(answer: list[int]) -> list[list[int]]:
    lines: list[list[int]] = [[]]
    for token in answer:
        if token == NEWLINE:
            lines.append([])
        else:
            lines[-1].append(token)
    return lines


def test_rows_do_not_know_of_each_other() -> None:
    processor = DistinctLines(NEWLINE, prompt_length=1)
    rows = [[9, 3, NEWLINE, 4, NEWLINE], [9, 3, 4, 5, 6], [9, MINUS, 5, NEWLINE, MINUS], [9, 5, NEWLINE, 6, NEWLINE]]
    infinite = processor(torch.tensor(rows), torch.zeros(4, 10)).isinf()
    assert [row.nonzero().flatten().tolist() for row in infinite] == [[3, 4], [], [5], [5, 6]]
