"""Scores from counts, against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from audiocls.metrics import (
    accuracy,
    calibration,
    confusion_matrix,
    macro_f1,
    per_class,
    wilson_interval,
)


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
    theirs = sklearn_metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(num_labels), zero_division=0
    )
    np.testing.assert_allclose(per_class(confusion), theirs, atol=1e-12)


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


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3: the score interval by Wilson.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(hits: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(hits, count) == pytest.approx((low, high), abs=5e-5)
    # All the same for misses.
    assert wilson_interval(count - hits, count) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_calibration_error_by_hand() -> None:
    # Two clips at 0.95, one of them wrong; two at 0.65, both right; one at exactly 0.6, in the bin it ends.
    confidence = np.array([0.95, 0.95, 0.65, 0.65, 0.6])
    found = calibration(np.stack([confidence, 1 - confidence], axis=1), np.array([0, 1, 0, 0, 1]))
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 1, 2, 0, 0, 2]
    assert found.accuracy[[5, 6, 9]].tolist() == [0, 1, 0.5]
    assert found.confidence[[5, 6, 9]] == pytest.approx([0.6, 0.65, 0.95])
    assert np.isnan(found.accuracy[0])
    # A bin's end is in it, whatever floating point makes of 10 * 0.7.
    ends = np.arange(6, 11) / 10
    assert calibration(np.stack([ends, 1 - ends], axis=1), np.zeros(5)).counts.tolist() == [0] * 5 + [1] * 5
    assert found.error == pytest.approx((1 * 0.6 + 2 * 0.35 + 2 * 0.45) / 5)
