"""Counts -> scores, in plain NumPy."""

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
