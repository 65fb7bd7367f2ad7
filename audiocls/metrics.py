"""Labels and probabilities -> scores, in plain NumPy."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Score(NamedTuple):
    """A number that says how good predictions are; the larger, the better."""

    title: str  # in the report and the model card
    # Takes labels, int64 [clips], and probabilities, float [clips, labels]; gives a finite number.
    of: Callable[[np.ndarray, np.ndarray], float]
    about: str = ""  # what stands below the number in the report
    hub_name: str | None = None  # of the metric on the Hub; None: as in SCORES


def confusion_matrix(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """int64 [labels, labels]: row = the true label, column = the likeliest one."""
    num_labels = probabilities.shape[1]
    cells = np.bincount(labels * num_labels + probabilities.argmax(axis=1), minlength=num_labels**2)
    return cells.reshape(num_labels, num_labels)


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Part of the clips whose label was predicted."""
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def macro_f1(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over labels of F1 = 2 TP / (2 TP + FP + FN), labels neither present nor predicted left out.

    That is scikit-learn's `f1_score(average="macro")`.
    """
    confusion = confusion_matrix(labels, probabilities)
    there = confusion.sum(axis=0) + confusion.sum(axis=1) > 0
    return float(np.mean(per_class(confusion).f1[there]))


def balanced_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean recall of the labels that have clips: scikit-learn's `balanced_accuracy_score`."""
    classes = per_class(confusion_matrix(labels, probabilities))
    return float(np.mean(classes.recall[classes.support > 0]))


# To add a metric, add an entry: it is then logged at each evaluation, can be the --best-metric, and stands in
# the report, in the model card and in what `infer.py --dataset` says.
SCORES: dict[str, Score] = {
    "accuracy": Score("accuracy", accuracy),
    "macro_f1": Score("macro F1", macro_f1, "mean over the classes", hub_name="f1"),
    "balanced_accuracy": Score("balanced accuracy", balanced_accuracy, "mean recall of the classes"),
}


def all_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The value of each of SCORES, by name."""
    return {name: score.of(labels, probabilities) for name, score in SCORES.items()}


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


def guessing_accuracy(chance: float, count: float) -> float:
    """The accuracy on `count` clips up to which a model may only be guessing.

    That is two standard deviations above `chance`, the commonest label's share, which always naming it gets.
    """
    return chance + 2 * math.sqrt(chance * (1 - chance) / count)


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
