from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from diff_oracle.tasks.usual import best_constant, overlap

LISTS = st.lists(st.lists(st.integers(0, 6), unique=True, max_size=5), min_size=1, max_size=8)


@given(LISTS, st.integers(0, 6))
def test_the_best_constant_scores_as_the_best_of_all_that_begin_with_the_commonest(
    answers: list[list[int]], most: int
) -> None:
    ranked = [token for token, _ in Counter(token for answer in answers for token in answer).most_common(most)]
    scores = [sum(overlap(ranked[:n], answer) for answer in answers) for n in range(len(ranked) + 1)]
    named = best_constant(answers, most)
    assert list(named) == ranked[: len(named)]
    assert scores[len(named)] >= max(scores) - 1e-9
