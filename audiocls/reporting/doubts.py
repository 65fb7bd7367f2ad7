"""The labels that models doubt which never heard their clips: confident learning, and doubted.csv."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audiocls.metrics import accuracy, guessing_accuracy
from audiocls.reporting.results import Predictions, RunResults
from audiocls.storage import complete_file
from audiocls.tables import no_formula

DOUBTED = "doubted.csv"
COLUMNS = ("path", "label", "suggested_label", "confidence", "label_confidence")


class Doubt(NamedTuple):
    """A clip whose label is probably wrong."""

    clip: int  # its place in the predictions
    suggested: int  # the likeliest label
    confidence: float  # its probability
    label_confidence: float  # that of the label it has


def is_guess(predictions: Predictions) -> bool:
    """Whether the models that made these may only be guessing."""
    labels = predictions.labels
    chance = np.bincount(labels).max() / len(labels)
    return accuracy(labels, predictions.probabilities) <= guessing_accuracy(chance, len(labels))


def doubted(results: RunResults) -> list[Doubt]:
    """The clips whose label is probably wrong, by the pooled predictions of folds, the most doubted first.

    These are the clips off the diagonal of the confident joint, without those whose own label is the
    likeliest, in order of the probability of their own label (self-confidence): Northcutt et al. 2021,
    https://arxiv.org/abs/1911.00068, as cleanlab's find_label_issues(filter_by="confident_learning",
    return_indices_ranked_by="self_confidence") has it. Left out are labels of which one fold has all clips:
    the model that scored these does not know it. Of a run that is no pool of folds there are none, nor of
    models that guess.
    """
    predictions = results.predictions
    if predictions is None or predictions.split != "folds" or is_guess(predictions):
        return []
    labels, probabilities, likeliest = predictions.labels, predictions.probabilities, predictions.predicted
    own = probabilities[np.arange(len(labels)), labels]
    # A label is confidently that of a clip whose probability of it is as high as that of clips that bear it.
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    thresholds = np.bincount(labels, own, len(counts)) / np.maximum(counts, 1)
    thresholds[counts == 0] = np.inf
    is_confident = probabilities >= thresholds - 1e-6
    # Of several such labels the likeliest.
    confident = np.where(is_confident.sum(axis=1) > 1, likeliest, is_confident.argmax(axis=1))
    is_off = is_confident.any(axis=1) & (confident != labels) & (likeliest != labels)
    is_known = ~np.isin(labels, [results.labels.index(label) for label in results.run["untrained"]])
    found = np.flatnonzero(is_off & is_known)
    return [
        Doubt(clip, int(likeliest[clip]), float(probabilities[clip].max()), float(own[clip]))
        for clip in found[np.argsort(own[found], kind="stable")].tolist()
    ]


def write_doubted(run_folder: Path, results: RunResults) -> None:
    """Write doubted.csv, which train.py's --drop and --relabel take.

    A clip whose name is no text (a file's name may be any bytes) is not in the file.
    """
    predictions, names = results.predictions, results.labels
    assert predictions
    with complete_file(run_folder / DOUBTED) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for doubt in doubted(results):
            label, suggested = names[predictions.labels[doubt.clip]], names[doubt.suggested]
            cells = [predictions.paths[doubt.clip], label, suggested]
            numbers = [f"{doubt.confidence:.4g}", f"{doubt.label_confidence:.4g}"]
            if not any("\ud800" <= c <= "\udfff" for c in cells[0]):
                table.writerow([*map(no_formula, cells), *numbers])
