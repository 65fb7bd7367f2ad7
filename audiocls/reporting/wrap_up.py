"""What is made of a run when it has ended: the worst errors' sound, the model's card, the report."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from audiocls.commands import to_type
from audiocls.errors import named, number_of
from audiocls.lines import duration
from audiocls.metrics import SCORES
from audiocls.reporting.doubts import DOUBTED, doubted, is_guess
from audiocls.reporting.results import MOST_ERRORS, MOST_SECONDS, RunResults, predictions_digest, read_run
from audiocls.storage import complete_folder
from audiocls.streams import say

MANY_DOUBTS = 0.2  # of the clips: more are hardly wrong labels
# ("evaluation", "test" or "folds", place of a clip in it) -> what is used of it, float32 [samples], its rate,
# in Hz, and the whole clip's seconds. Raises ValueError where it cannot be read any more.
Sound = Callable[[str, int], tuple[np.ndarray, int, float]]
# Takes a name, pixels, uint8 [height, width, 3], and a step.
ShowImage = Callable[[str, np.ndarray, int], None]


def wrap_up(run_folder: Path, sound: Sound, show_image: ShowImage | None = None) -> None:
    """Write what a person looks at afterwards. The model is saved by now: what fails here is only noted."""
    with noted("the worst errors' sound"):
        keep_worst_errors(run_folder, sound)
    with noted("the model's card"):
        from audiocls.reporting.model_card import write_model_card  # jinja2

        write_model_card(run_folder)
    with noted("report.html"):
        from audiocls.reporting.report import write_report  # matplotlib

        write_report(run_folder)
    with noted("the index of the runs"):
        from audiocls.reporting.run_index import update_index

        update_index(run_folder)
    if show_image:
        with noted("the confusion matrix as an image"):
            show_confusion(run_folder, show_image)


def keep_worst_errors(run_folder: Path, sound: Sound) -> None:
    """Write errors/01.flac and on: the sound of the clips that were judged worst, complete or not at all.

    Of folds these are the clips whose label is doubted.
    """
    results = read_run(run_folder)
    predictions = results.predictions
    if predictions is None:
        return
    worst = predictions.worst(MOST_ERRORS)
    if predictions.split == "folds":
        worst = [doubt.clip for doubt in doubted(results)[:MOST_ERRORS]]
    seconds: dict[str, tuple[float, float]] = {}  # by place: used, and of the whole clip
    about = {"predictions": predictions_digest(run_folder), "seconds": seconds}
    with complete_folder(run_folder / "errors", **about) as unfinished:
        for place, index in enumerate(worst, start=1):
            try:
                waveform, rate, whole = sound(predictions.split, index)
            except ValueError:  # where nothing could be cached, the file may be gone by now
                continue
            seconds[str(place)] = len(waveform) / rate, whole
            soundfile.write(unfinished / f"{place:02d}.flac", waveform[: MOST_SECONDS * rate], rate)


def show_confusion(run_folder: Path, show_image: ShowImage) -> None:
    """Give the trackers the confusion matrix that the report shows."""
    from audiocls.reporting import figures

    results = read_run(run_folder)
    if results.scores and results.best_step is not None:
        matrix = figures.confusion(results.scores.confusion, results.labels)
        show_image("confusion", figures.to_pixels(matrix, "confusion"), results.best_step)


@contextmanager
def noted(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        say(f"note: {what} could not be made: {type(error).__name__}: {error}")


def say_end(run_folder: Path) -> None:
    """How good the best model is, where it lies, and what to type to use it."""
    results = read_run(run_folder)
    end, test = results.last("end"), results.last("test")
    metric, score = end["best_metric"], end["best_score"]
    where = f"at step {end['best_step']} of {end['step']} ({results.run['evaluation_is']})"
    say(f"best: {metric} {score:.4f} {where}, trained in {duration(end['wall_seconds'])}")
    sizes = results.audit["classes"].get("evaluation", {}).values() if results.audit else ()
    if metric == "accuracy" and sizes and score <= (largest := max(sizes) / sum(sizes)):
        say(f"note: that is no better than always naming one label, which is right in {largest:.4f}")
    if test:
        scores = ", ".join(f"{name} {test[name]:.4f}" for name in SCORES if test[name] is not None)
        say(f"test: {scores} on {test['num_clips']} clips")
    say_report(run_folder)
    say(f"the best model is in {run_folder}/best; try:")
    say(f"  {to_type('infer', str(run_folder), an_example(results))}", is_command=True)


def an_example(results: RunResults) -> str:
    """A recording to try the model on, one that is whole; of a data set on the Hub there is no file."""
    damaged = results.audit["damaged"]["names"] if results.audit else []
    paths = results.predictions.paths if results.predictions else []
    whole = (path for path in paths if not any(name.startswith(f"{path}: ") for name in damaged))
    return next(filter(os.path.exists, whole), "FILE.wav")


def say_report(folder: Path) -> None:
    """Where the report lies, if it could be made."""
    if (page := folder / "report.html").exists():
        say(f"report: {page} (open it in a browser)")


def say_folds(folder: Path) -> None:
    """What the folds come to, in a few lines, and what to do about doubted labels."""
    say_report(folder)
    results = read_run(folder)
    predictions, scores, folds = results.predictions, results.scores, results.folds
    assert predictions and scores
    for fold in folds:
        of = f" ({named(fold['held_out'], 3)})" if fold["held_out"] else ""
        say(f"fold {fold['fold']}{of}: {number_of(fold['clips'], 'clip')}, {scores_text(fold['scores'])}")
    for name, value in scores.values.items():
        of_folds = [fold["scores"][name] for fold in folds]
        spread = f"over folds {min(of_folds):.4f} to {max(of_folds):.4f}, "
        spread += f"standard deviation {results.over_folds(name)[1]:.4f}"
        say(f"all clips: {SCORES[name].title} {value:.4f} ({spread})")
    if tests := [fold["test_scores"] for fold in folds if fold["test_scores"]]:
        means = {name: float(np.mean([test[name] for test in tests])) for name in SCORES}
        say(f"the test set, mean over the folds' models: {scores_text(means)}")
    num_doubted, num_clips = len(doubted(results)), len(predictions.labels)
    if is_guess(predictions):
        say("doubted labels: none, because the models guess: train better first")
        return
    say(f"doubted labels: {num_doubted} of {number_of(num_clips, 'clip')}")
    if num_doubted > MANY_DOUBTS * num_clips:
        say("note: that many are mostly the models' own errors: train better first")
    if num_doubted:
        say(
            f"listen to the first in {folder}/report.html, delete the rows of right labels from "
            f"{folder}/{DOUBTED}, and train with --drop {folder}/{DOUBTED} or --relabel {folder}/{DOUBTED}"
        )


def scores_text(scores: dict[str, float]) -> str:
    return ", ".join(f"{SCORES[name].title} {value:.4f}" for name, value in scores.items())
