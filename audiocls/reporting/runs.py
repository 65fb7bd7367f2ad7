"""Finished runs, and the clips that two of them judged."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audiocls.errors import UserError
from audiocls.reporting.results import SPLITS, Predictions, RunResults, begun_with, read_predictions, read_run


@dataclass
class Run:
    """A finished run."""

    folder: Path

    @cached_property
    def results(self) -> RunResults:
        return read_run(self.folder)

    @property
    def seed(self) -> int:
        return self.results.config["seed"]

    @property
    def minutes(self) -> float:
        """Of the whole process where compare.py or folds.py began it, else of training alone."""
        own = begun_with(self.folder).get("seconds") or sum(fold["seconds"] for fold in self.results.folds)
        return max(own, self.results.last("end").get("wall_seconds", 0.0)) / 60

    @cached_property
    def predictions(self) -> dict[str, Predictions]:
        """By their split."""
        path, labels = self.folder / "predictions.jsonl", self.results.labels
        found = {split: read_predictions(path, labels, split) for split in SPLITS}
        return {split: predictions for split, predictions in found.items() if predictions}


@dataclass
class Setting:
    """Runs of the same settings but for the seed."""

    name: str  # A, B, ...
    title: str
    runs: list[Run]


class Key(NamedTuple):
    """What a clip is known by in two runs: of several of one path and label, their number, too."""

    path: str
    label: str
    number: int


class Pair(NamedTuple):
    """The clips that two runs judged; arrays are one for each run."""

    keys: list[Key]
    labels: tuple[np.ndarray, np.ndarray]  # int64 [clips], in the run's own numbers
    probabilities: tuple[np.ndarray, np.ndarray]  # float64 [clips, labels]
    alone: int  # clips of only one of them
    contradicting: int  # clips of another label in the other

    @property
    def right(self) -> tuple[np.ndarray, np.ndarray]:
        """bool [clips], whether each was right."""
        first, second = (
            probabilities.argmax(axis=1) == labels
            for labels, probabilities in zip(self.labels, self.probabilities, strict=True)
        )
        return first, second


def pair_up(run: Run, other: Run, split: str) -> Pair:
    """The clips that both runs judged, under one label. Raises UserError where there are none."""
    both = [(one.predictions[split], keyed(one, split)) for one in (run, other)]
    rows, other_rows = both[0][1], both[1][1]
    keys = [key for key in rows if key in other_rows]
    if not keys:
        raise UserError(f"{run.folder} and {other.folder} have judged no clips in common.")
    labels, probabilities = (
        tuple(getattr(predictions, name)[[place[key] for key in keys]] for predictions, place in both)
        for name in ("labels", "probabilities")
    )
    left = Counter(key.path for key in rows if key not in other_rows)
    other_left = Counter(key.path for key in other_rows if key not in rows)
    contradicting = (left & other_left).total()
    alone = left.total() + other_left.total() - 2 * contradicting
    return Pair(keys, labels, probabilities, alone, contradicting)


def keyed(run: Run, split: str) -> dict[Key, int]:
    """The row of each clip in a run's predictions."""
    predictions, names = run.predictions[split], run.results.labels
    seen: Counter[tuple[str, str]] = Counter()
    rows = {}
    for row, (path, label) in enumerate(zip(predictions.paths, predictions.labels.tolist(), strict=True)):
        rows[Key(path, names[label], seen[path, names[label]])] = row
        seen[path, names[label]] += 1
    return rows
