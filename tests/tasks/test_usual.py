from hypothesis import given
from hypothesis import strategies as st

from diff_oracle.tasks.usual import best_constant, overlap

LISTS = st.lists(st.lists(st.integers(0, 6), unique=True, max_size=5), min_size=1, max_size=8)


@given(LISTS, st.integers(0, 6))
def test_no_list_of_the_commonest_tokens_scores_better_than_the_best_constant(
    answers: list[list[int]], most: int
) -> None:
    counts = {token: sum(token in answer for answer in answers) for token in range(7)}
    named = best_constant(answers, most)
    scores = [sum(overlap(named[:length], answer) for answer in answers) for length in range(len(named) + 1)]
    assert len(named) <= most
    assert [counts[token] for token in named] == sorted(counts.values(), reverse=True)[: len(named)]
    assert max(scores) <= scores[-1] + 1e-9
    longer = [token for token in sorted(counts, key=lambda token: -counts[token]) if token not in named]
    ties = len({counts[token] for token in longer if counts[token]}) < sum(bool(counts[token]) for token in longer)
    if not ties:  # then the order of what follows is known
        for length in range(1, min(most, len(counts)) - len(named) + 1):
            wider = [*named, *(token for token in longer[:length] if counts[token])]
            assert sum(overlap(wider, answer) for answer in answers) <= scores[-1] + 1e-9
