"""What distances answer, by hand and by trying all."""

import numpy as np
import pytest

from diff_oracle.tasks.recency import Recency, distances
from diff_oracle.tasks.usual import overlap

NONE = np.empty(0, dtype=np.int64)


def test_tokens_come_nearest_first_and_a_repeated_one_counts_where_it_is_nearest() -> None:
    assert list(distances([1, 7, 5, 7, 9]).items()) == [(9, 0), (7, 1), (5, 2), (1, 4)]


@pytest.mark.parametrize("seed", range(10))
def test_no_other_distance_and_no_other_number_answers_the_training_rows_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    attended, ignored = rng.integers(0, 12, 30), rng.integers(3, 20, 80)
    nearest = [rng.choice(9, 4, replace=False).tolist() for _ in range(30)]
    answers = [rng.choice(tokens, rng.integers(0, 4), replace=False).tolist() for tokens in nearest]
    recency = Recency.fit(attended, ignored, nearest, answers)

    def asked_as_often(within: int) -> float:
        return float(np.mean(attended <= within) + np.mean(ignored > within))

    def named(number: int) -> float:
        return sum(overlap(tokens[:number], answer) for tokens, answer in zip(nearest, answers, strict=True))

    assert asked_as_often(recency.within) == pytest.approx(max(map(asked_as_often, range(25))))
    assert named(recency.number) == pytest.approx(max(map(named, range(1, 5))))


def test_a_site_that_only_ever_reads_the_sink_still_has_an_answer() -> None:
    assert Recency.fit(NONE, NONE, [], []) == Recency(within=0, number=1)
