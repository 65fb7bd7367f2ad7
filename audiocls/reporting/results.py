"""What a run folder says of its run, read without torch or a model: for the report and the model card."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from audiocls import metrics
from audiocls.config import TrainConfig
from audiocls.errors import InputOutputFailed
from audiocls.storage import READ_ERRORS, checksums_of, damage

RUN_KEYS = (
    "config label2id split_fingerprint clips evaluation_is hub_commits device precision clips_per_step "
    "versions"
).split()
# Where folds.py pooled several runs: a dict for each, the labels that a fold has all clips of, and the number
# of clips whose sound another fold has, too.
FOLDS_KEYS: dict[str, Any] = {"folds": [], "untrained": [], "heard": 0}
SPLITS = ("test", "folds", "evaluation")  # of predictions.jsonl; a run is judged by the first that it has
MOST_ERRORS, MOST_SECONDS = 24, 15  # kept as sound


@dataclass(frozen=True)
class Predictions:
    """The clips of a split, as the best model judged them; of folds, each by the one that never heard it."""

    split: str  # of SPLITS
    paths: list[str]
    labels: np.ndarray  # int64 [clips]
    probabilities: np.ndarray  # float64 [clips, labels]

    @property
    def predicted(self) -> np.ndarray:
        return self.probabilities.argmax(axis=1)

    def worst(self, most: int) -> list[int]:
        """Indices of misjudged clips, those first whose true label got the lowest probability."""
        own = self.probabilities[np.arange(len(self.labels)), self.labels]
        wrong = np.flatnonzero(self.predicted != self.labels)
        return wrong[np.argsort(own[wrong], kind="stable")][:most].tolist()


@dataclass(frozen=True)
class Scores:
    """How good predictions are."""

    values: dict[str, float]  # of each of SCORES
    interval: tuple[float, float]  # of the accuracy, 95%
    confusion: np.ndarray  # int64 [labels, labels], row = true
    classes: metrics.ClassScores
    calibration: metrics.Calibration

    @classmethod
    def of(cls, predictions: Predictions) -> "Scores":
        labels, probabilities = predictions.labels, predictions.probabilities
        confusion = metrics.confusion_matrix(labels, probabilities)
        return cls(
            metrics.all_scores(labels, probabilities),
            metrics.wilson_interval(int(np.trace(confusion)), len(labels)),
            confusion,
            metrics.per_class(confusion),
            metrics.calibration(probabilities, labels),
        )

    def most_confused(self, most: int) -> list[tuple[int, int, int]]:
        """(true label, taken for, clips), the most frequent first."""
        errors = self.confusion - np.diag(np.diag(self.confusion))
        cells = np.argsort(-errors, axis=None, kind="stable")[:most]
        true, taken = np.unravel_index(cells, errors.shape)
        found = zip(true.tolist(), taken.tolist(), errors.flat[cells].tolist(), strict=True)
        return [(true, taken, count) for true, taken, count in found if count]


@dataclass(frozen=True)
class RunResults:
    """run.json, metrics.jsonl, predictions.jsonl and audit.json; what a run did not come to is empty.

    `folds` has a dict for each fold of a folder that folds.py made, see there.
    """

    run: dict[str, Any]
    labels: list[str]  # by their id
    records: list[Any]  # of metrics.jsonl, a dict each
    predictions: Predictions | None
    scores: Scores | None
    audit: dict[str, Any] | None

    @property
    def folds(self) -> list[dict[str, Any]]:
        return self.run["folds"]

    def over_folds(self, score: str) -> tuple[float, float]:
        """The mean and the standard deviation of a score over folds."""
        values = [fold["scores"][score] for fold in self.folds]
        return float(np.mean(values)), float(np.std(values, ddof=1))

    def of_kind(self, kind: str) -> list[Any]:
        return [record for record in self.records if record["kind"] == kind]

    def last(self, kind: str) -> dict[str, Any]:
        """The last record of a kind; empty where there is none."""
        return next(reversed(self.of_kind(kind)), {})

    def series(self, kind: str, value: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values, float64; NaN where the value was not finite."""
        records = self.of_kind(kind)
        steps = np.array([record["step"] for record in records], float)
        return steps, np.array([record.get(value) for record in records], float)  # of None it makes NaN

    @property
    def config(self) -> dict[str, Any]:
        return self.run["config"]

    @property
    def best_step(self) -> int | None:
        best = [record["step"] for record in self.of_kind("eval") if record.get("is_best")]
        return best[-1] if best else None


def read_run(folder: Path) -> RunResults:
    """Everything a run folder says. Raises InputOutputFailed where it is not a run's, or damaged."""
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        folds = {key: run.get(key, default) for key, default in FOLDS_KEYS.items()}
        run = {key: run[key] for key in RUN_KEYS} | folds
        run["config"] = dataclasses.asdict(TrainConfig()) | run["config"]  # an older run may lack some
        labels = sorted(run["label2id"], key=run["label2id"].__getitem__)
        path = folder / "metrics.jsonl"
        records = list(read_lines(path))
        path = folder / "predictions.jsonl"
        predictions = read_predictions(path, labels)
        path = folder / "audit.json"
        audit = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except READ_ERRORS as error:
        raise InputOutputFailed(f"{path} cannot be read: {error}. Is {folder} a run's folder?") from None
    scores = Scores.of(predictions) if predictions else None
    return RunResults(run, labels, records, predictions, scores, audit)


def begun_with(run_folder: Path) -> dict[str, Any]:
    """What trial.json says of a run that compare.py or folds.py began: config, files, seconds.

    Of another run its config; empty where there is none.
    """
    for name in ("trial.json", "run.json"):
        try:
            found = json.loads((run_folder / name).read_text(encoding="utf-8"))
            return {"config": dict(found["config"]), **(found if name == "trial.json" else {})}
        except FileNotFoundError:
            continue
        except READ_ERRORS as error:
            raise InputOutputFailed(f"{run_folder / name} cannot be read: {error}.") from None
    return {}


def read_lines(path: Path) -> Iterator[Any]:
    """The objects of a .jsonl file; none where there is no such file."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def read_predictions(path: Path, names: list[str], split: str | None = None) -> Predictions | None:
    """The predictions of a split, or of the first of SPLITS; None where there are none.

    `names` are the labels, by their numbers.
    """
    number = {name: id for id, name in enumerate(names)}
    parts: dict[str, list[tuple[str, int, np.ndarray]]] = {name: [] for name in SPLITS}
    for line in read_lines(path):
        parts[line["split"]].append((line["path"], number[line["label"]], np.array(line["probabilities"])))
    split = split or next((name for name in SPLITS if parts[name]), None)
    if split is None or not parts[split]:
        return None
    paths, labels, rows = zip(*parts[split], strict=True)
    # A model whose numbers broke on some clip has no confidence in it.
    probabilities = np.nan_to_num(np.stack(rows).reshape(len(rows), len(names)))
    return Predictions(split, list(paths), np.array(labels), probabilities)


class Sound(NamedTuple):
    """What the model was given of one clip, up to MOST_SECONDS of it."""

    flac: bytes
    waveform: np.ndarray  # float32 [samples]
    sampling_rate: int
    used_seconds: float  # given to the model
    clip_seconds: float  # of the whole clip

    @property
    def seconds(self) -> float:
        return len(self.waveform) / self.sampling_rate


def read_worst_errors(run_folder: Path) -> dict[int, Sound]:
    """Place (1 is the worst) -> its sound in errors/; none unless they are whole, of these predictions."""
    folder = run_folder / "errors"
    about = checksums_of(folder)
    if damage(folder) or about.get("predictions") != predictions_digest(run_folder):
        return {}
    sounds = {}
    try:
        for file in sorted(folder.glob("[0-9][0-9].flac")):
            place = int(file.stem)
            waveform, rate = soundfile.read(file, dtype="float32")
            used, whole = about["seconds"][str(place)]
            sounds[place] = Sound(file.read_bytes(), waveform, rate, float(used), float(whole))
        return sounds
    except (*READ_ERRORS, soundfile.LibsndfileError) as error:
        raise InputOutputFailed(f"{folder} cannot be read: {error}.") from None


def predictions_digest(run_folder: Path) -> str:
    """A hash of predictions.jsonl, by which errors/ says whose sounds it holds."""
    return hashlib.sha256((run_folder / "predictions.jsonl").read_bytes()).hexdigest()
