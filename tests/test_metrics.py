"""Scores from counts, against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from audiocls.metrics import accuracy, confusion_matrix, macro_f1


@pytest.mark.parametrize("seed", range(40))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    num_labels = int(generator.integers(2, 30))
    # Some labels have no clip, some are never predicted, some are neither.
    present = generator.choice(num_labels, size=int(generator.integers(1, num_labels + 1)), replace=False)
    guessed = generator.choice(num_labels, size=int(generator.integers(1, num_labels + 1)), replace=False)
    labels = generator.choice(present, size=int(generator.integers(1, 200)))
    predictions = np.where(
        generator.random(len(labels)) < 0.5, labels, generator.choice(guessed, len(labels))
    )

    confusion = confusion_matrix(labels, predictions, num_labels)
    np.testing.assert_array_equal(
        confusion, sklearn_metrics.confusion_matrix(labels, predictions, labels=range(num_labels))
    )
    assert accuracy(confusion) == pytest.approx(sklearn_metrics.accuracy_score(labels, predictions))
    assert macro_f1(confusion) == pytest.approx(
        sklearn_metrics.f1_score(labels, predictions, average="macro", zero_division=0)
    )


def test_scores_by_hand() -> None:
    # Two of three zeros found, the one taken for a 1; the only 1 found; label 2 plays no part.
    confusion = confusion_matrix(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 3)
    assert confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert accuracy(confusion) == 3 / 4
    assert macro_f1(confusion) == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_a_label_that_is_only_predicted_counts_as_zero() -> None:
    assert macro_f1(confusion_matrix(np.array([0, 0]), np.array([0, 1]), 2)) == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize(("predicted", "score"), [(0, 1.0), (1, 0.0)])
def test_all_right_is_one_and_all_wrong_is_zero(predicted: int, score: float) -> None:
    confusion = confusion_matrix(np.zeros(5, int), np.full(5, predicted), 2)
    assert (accuracy(confusion), macro_f1(confusion)) == (score, score)
