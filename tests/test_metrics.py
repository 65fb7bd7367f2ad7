"""Scores from labels and probabilities, against scikit-learn."""

from functools import partial

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from audiocls.metrics import all_scores, calibration, confusion_matrix, per_class, wilson_interval

THEIRS = {
    "accuracy": sklearn_metrics.accuracy_score,
    "macro_f1": partial(sklearn_metrics.f1_score, average="macro", zero_division=0),
    "balanced_accuracy": sklearn_metrics.balanced_accuracy_score,
}


def certain(predictions: list[int], num_labels: int) -> np.ndarray:
    """float64 [clips, labels]: each clip is surely what it is taken for."""
    return np.eye(num_labels)[predictions]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")
@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
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
    probabilities = generator.random((len(labels), num_labels))
    probabilities[np.arange(len(labels)), predictions] += 1
    probabilities /= probabilities.sum(axis=1, keepdims=True)

    confusion = confusion_matrix(labels, probabilities)
    np.testing.assert_array_equal(
        confusion, sklearn_metrics.confusion_matrix(labels, predictions, labels=range(num_labels))
    )
    expected = {name: score(labels, predictions) for name, score in THEIRS.items()}
    assert all_scores(labels, probabilities) == pytest.approx(expected)
    theirs = sklearn_metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(num_labels), zero_division=0
    )
    np.testing.assert_allclose(per_class(confusion), theirs, atol=1e-12)


def test_scores_by_hand() -> None:
    # Two of three zeros found, the one taken for a 1; the only 1 found; label 2 plays no part.
    labels, probabilities = np.array([0, 0, 0, 1]), certain([0, 0, 1, 1], 3)
    assert confusion_matrix(labels, probabilities).tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert all_scores(labels, probabilities) == pytest.approx(
        {"accuracy": 3 / 4, "macro_f1": (4 / 5 + 2 / 3) / 2, "balanced_accuracy": (2 / 3 + 1) / 2}
    )


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
