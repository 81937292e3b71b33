import numpy as np
import pytest

from diff_oracle.evaluation.bootstrap import DocumentBootstrap


def test_interval_covers_the_true_mean_as_often_as_it_says_when_rows_of_a_document_agree() -> None:
    rng = np.random.default_rng(0)
    covered_by_documents, covered_by_rows = 0, 0
    for _ in range(200):
        documents = rng.normal(size=40)
        values = np.repeat(documents, 10) + 0.1 * rng.normal(size=400)
        doc_ids = np.repeat([f"doc{i}" for i in range(40)], 10)
        by_document = DocumentBootstrap(doc_ids, 400, rng).estimate(values)
        by_row = DocumentBootstrap([str(i) for i in range(400)], 400, rng).estimate(values)
        covered_by_documents += by_document.ci_low <= 0 <= by_document.ci_high
        covered_by_rows += by_row.ci_low <= 0 <= by_row.ci_high
    assert covered_by_documents >= 180
    assert covered_by_rows <= 120  # what ignoring the documents would have claimed


def test_mean_of_a_resample_weighs_documents_by_their_rows() -> None:
    class Fixed(np.random.Generator):
        def multinomial(self, n: int, p: np.ndarray, size: int) -> np.ndarray:
            return np.array([[2, 0], [1, 1]])

    bootstrap = DocumentBootstrap(["a", "b", "b", "b"], 2, Fixed(np.random.PCG64()))
    estimate = bootstrap.estimate(np.array([1.0, 0.0, 0.0, 0.0]))
    assert estimate.value == pytest.approx(0.25)
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx(np.quantile([1.0, 0.25], (0.025, 0.975)))
    assert (estimate.n, estimate.n_docs) == (4, 2)


def test_equal_scores_have_a_paired_difference_of_exactly_zero() -> None:
    values = np.random.default_rng(0).random(50)
    bootstrap = DocumentBootstrap([f"d{i // 5}" for i in range(50)], 100, np.random.default_rng(1))
    difference = bootstrap.estimate(values - values)
    assert difference.ci_low == difference.ci_high == 0


def test_there_is_no_share_of_what_a_draw_finds_not_to_be_there() -> None:
    doc_ids, rng = [f"d{i // 5}" for i in range(100)], np.random.default_rng(0)
    whole = np.ones(100)
    bootstrap = DocumentBootstrap(doc_ids, 200, np.random.default_rng(1))
    part = rng.random(100)
    assert bootstrap.share(part, whole) == bootstrap.estimate(part)
    rare = np.zeros(100)
    rare[:5] = 1.0  # a third of all draws are without this document
    assert bootstrap.share(part, rare) is None
    assert bootstrap.share(part, whole - 1.5) is None
