"""Counts -> scores, in plain NumPy."""

import math
from typing import NamedTuple

import numpy as np


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_labels: int) -> np.ndarray:
    """int64 [num_labels, num_labels]: row = the true label, column = the predicted one."""
    cells = np.bincount(labels * num_labels + predictions, minlength=num_labels**2)
    return cells.reshape(num_labels, num_labels)


def accuracy(confusion: np.ndarray) -> float:
    """Part of the clips whose label was predicted."""
    return float(np.trace(confusion) / confusion.sum())


def macro_f1(confusion: np.ndarray) -> float:
    """Mean over labels of F1 = 2 TP / (2 TP + FP + FN), labels neither present nor predicted left out.

    That is scikit-learn's `f1_score(average="macro")`.
    """
    hits = np.diag(confusion)
    total = confusion.sum(axis=0) + confusion.sum(axis=1)  # 2 TP + FP + FN
    there = total > 0
    return float(np.mean(2 * hits[there] / total[there]))


class ClassScores(NamedTuple):
    """One float64 [labels] each; 0 where there is nothing to divide by, as scikit-learn has it."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray  # int64, clips of the label


def per_class(confusion: np.ndarray) -> ClassScores:
    """scikit-learn's `precision_recall_fscore_support`."""
    hits, support, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)

    return ClassScores(
        share(hits, predicted), share(hits, support), share(2 * hits, support + predicted), support
    )


def wilson_interval(hits: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval that holds a share seen as `hits` of `count`; 95% for this `z` (Wilson, 1927)."""
    share = hits / count
    middle = share + z**2 / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = ((middle + sign * spread) / (1 + z**2 / count) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


class Calibration(NamedTuple):
    """How far confidence can be believed; one float64 [bins] each, NaN where a bin is empty."""

    confidence: np.ndarray  # mean of the best label's probability
    accuracy: np.ndarray
    counts: np.ndarray  # int64, clips
    error: float  # expected calibration error: the mean gap, weighted by the clips (Guo et al., 2017)


def calibration(probabilities: np.ndarray, labels: np.ndarray, bins: int = 10) -> Calibration:
    """Clips binned by the probability of their predicted label: (0, 0.1], ..., (0.9, 1]."""
    confidence, hits = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    which = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    counts = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(which, confidence, bins) / counts
        mean_accuracy = np.bincount(which, hits, bins) / counts
    gaps = np.nan_to_num(np.abs(mean_accuracy - mean_confidence))
    return Calibration(mean_confidence, mean_accuracy, counts, float((gaps * counts).sum() / counts.sum()))
