"""A run folder -> report.html, one file that opens offline: `python -m audiocls.reporting.report FOLDER`.

It needs neither torch nor a model: everything in it is in the run folder. A folder of several runs gets an
index.html.
"""

import dataclasses
import math
import os
import re
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from audiocls.commands import to_type
from audiocls.config import TrainConfig
from audiocls.errors import OK, UserError, exit_code_of
from audiocls.flags import flag_name
from audiocls.metrics import SCORES
from audiocls.reporting import figures
from audiocls.reporting.doubts import doubted, is_guess
from audiocls.reporting.pages import duration, percent, render
from audiocls.reporting.results import MOST_ERRORS, MOST_SECONDS, RunResults, read_run, read_worst_errors
from audiocls.reporting.run_index import update_index, write_index
from audiocls.reporting.waveforms import drawing_of
from audiocls.storage import write_text

# What a run folder holds besides this page, and what it is; a folder's name ends in /.
FILES = {
    "run.json": "settings, labels and versions",
    "metrics.jsonl": "every number that was logged",
    "predictions.jsonl": "what the model made of each clip",
    "best/": "the best model",
    "errors/": "the sound of the worst errors",
    "doubted.csv": "the labels that are doubted",
    "audit.json": "what is in the data set",
    "profile/": "where the time of a step goes",
    "log.txt": "what the run said",
}
HUB = "https://huggingface.co"


def write_report(run_folder: Path) -> Path:
    """Write report.html and return its path. Raises InputOutputFailed where the folder cannot be read."""
    path = run_folder / "report.html"
    write_text(path, report(run_folder))
    return path


def report(run_folder: Path) -> str:
    """The page, a pure function of the run folder."""
    results = read_run(run_folder)
    end, judged = results.last("end"), results.last("test")
    is_by_folds = results.predictions is not None and results.predictions.split == "folds"
    if not judged and not is_by_folds and results.best_step is not None:
        judged = next(record for record in results.of_kind("eval") if record["step"] == results.best_step)
    return render(
        "report.html",
        title=run_folder.resolve().name,
        results=results,
        metrics=SCORES,
        loss=judged.get("loss"),
        chance_loss=math.log(len(results.labels)),
        last_step=max((record["step"] for record in results.records), default=0),
        wall_seconds=end.get("wall_seconds"),
        charts=charts(results),
        most_named=figures.MOST_NAMED_CLASSES,
        settings=settings(results.config),
        again=to_type("train", "--config", "run.json", folder=""),
        flags={flag_name(name) for name in results.config},
        facts=facts(results.run),
        files=[(name, what) for name, what in FILES.items() if (run_folder / name).exists()],
        model_url=hub_url(results.run, "model"),
        dataset_url=hub_url(results.run, "dataset"),
        pushed_url=pushed_url(results.config),
        speed=speed(results, end.get("wall_seconds")),
        speed_charts=speed_charts(results),
        **scored_parts(results, run_folder),
    )


def charts(results: RunResults) -> dict[str, Markup]:
    """The curves of training, by title; of what was never logged, none."""
    train_loss, eval_loss = results.series("train", "loss"), results.series("eval", "loss")
    best, metric = results.best_step, results.config["best_metric"]
    drawn = {}
    if len(eval_loss[0]):
        drawn["Loss"] = figures.curves({"training": train_loss, "evaluation": eval_loss}, best)
        logged = [name for name in SCORES if name in results.last("eval")]
        # The one that the best was chosen by comes last, where the best step is marked.
        logged.sort(key=lambda name: name == ("accuracy" if metric == "loss" else metric))
        drawn["Evaluation"] = figures.curves({name: results.series("eval", name) for name in logged}, best)
    elif len(train_loss[0]):
        drawn["Loss"] = figures.curves({"training": train_loss})
    if len(train_loss[0]):
        norms = results.series("train", "grad_norm")
        # One for each group of parameters that has its own.
        rates = [name for name in results.last("train") if name.startswith("learning_rate")]
        lines = {name: results.series("train", name) for name in reversed(rates)}
        drawn["Learning rate"] = figures.curves(lines, from_zero=True)
        if np.isfinite(norms[1]).any():
            drawn["Gradient norm"] = figures.curves({"": norms}, log=spans_orders(norms[1]))
    return {
        title: figures.to_svg(drawing, title, f"{title} over optimizer steps")
        for title, drawing in drawn.items()
    }


def spans_orders(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return len(finite) > 0 and finite.min() > 0 and finite.max() > 30 * finite.min()


def scored_parts(results: RunResults, run_folder: Path) -> dict[str, Any]:
    """What the page shows of how good the model is, besides its scores; empty where nothing was judged."""
    predictions, scores = results.predictions, results.scores
    if not predictions or not scores:
        return {}
    bins = scores.calibration
    matrix = figures.confusion(scores.confusion, results.labels)
    reliability = figures.reliability(bins.confidence, bins.accuracy, bins.counts)
    return {
        "weakest_first": np.argsort(scores.classes.f1, kind="stable").tolist(),
        "matrix": figures.to_svg(matrix, "matrix", "confusion matrix"),
        "matrix_width": round(matrix.get_figwidth() * 112),
        "reliability": figures.to_svg(reliability, "reliability", "accuracy over confidence"),
        "num_errors": (predictions.predicted != predictions.labels).sum(),
        "errors": predictions.worst(MOST_ERRORS),
        "sounds": read_worst_errors(run_folder),
        "doubts": doubted(results),
        "is_guess": is_guess(predictions),
        "most_shown": MOST_ERRORS,
        "most_seconds": MOST_SECONDS,
        "base64": lambda flac: Markup(b64encode(flac).decode()),  # ours, and longer than a line of anybody's
        "drawing_of": drawing_of,
    }


def speed(results: RunResults, wall_seconds: float | None) -> list[tuple[str, str, str]]:
    """Speed, waiting and padding over the whole run: a name, a value and what stands below it."""
    train = results.of_kind("train")
    if not train:
        return []

    def median(name: str) -> float:
        return float(np.median([record[name] for record in train]))

    waited = sum(record["data_wait_seconds"] for record in train)
    share = f"{percent(waited / wall_seconds)} of the run" if wall_seconds else ""
    found = [
        ("clips a second", f"{median('clips_per_second'):.3g}", "median, training"),
        ("audio a second", f"{median('audio_seconds_per_second'):.3g} s", "median, training"),
        ("waited for data", f"{waited:.1f} s", share),
        ("padding", percent(median("padding_share")), "of what is computed; median"),
    ]
    if wall_seconds:
        found.append(("took", duration(wall_seconds), "training, evaluating, saving"))
    return found


def speed_charts(results: RunResults) -> dict[str, Markup]:
    titles = {
        "clips_per_second": "Clips a second",
        "data_wait_seconds": "Seconds waited for data, in each line of the log",
    }
    drawn = {}
    for key, title in titles.items():
        figure = figures.curves({"": results.series("train", key)}, from_zero=True)
        drawn[title] = figures.to_svg(figure, key, f"{title}, over optimizer steps")
    return drawn


def settings(config: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Flag, value, and whether it differs from the default."""
    defaults = dataclasses.asdict(TrainConfig())
    return [
        (flag_name(name), "none" if value is None else str(value), value != defaults.get(name, value))
        for name, value in config.items()
    ]


def hub_url(run: dict[str, Any], setting: str) -> str:
    """The page on the Hub of what a setting names; empty where it was not from there, as far as is known."""
    name = run["config"][setting]
    commit = run["hub_commits"].get(name)
    if not (is_on_hub(name) and isinstance(commit, str) and re.fullmatch("[0-9a-f]{7,64}", commit)):
        return ""
    return f"{HUB}/{'' if setting == 'model' else 'datasets/'}{name}/tree/{commit}"


def pushed_url(config: dict[str, Any]) -> str:
    """Where on the Hub --push-to-hub uploads the model; empty without it."""
    name = config["push_to_hub"]
    return f"{HUB}/{name}" if is_on_hub(name) and "/" in name and not config["push_dry_run"] else ""


def is_on_hub(name: Any) -> bool:
    """Whether something may be a name on the Hub, OWNER/NAME or NAME."""
    return isinstance(name, str) and re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", name, re.ASCII) is not None


def facts(run: dict[str, Any]) -> list[tuple[str, str]]:
    commits = [(f"{name} at", commit) for name, commit in run["hub_commits"].items()]
    found = [("device", run["device"]), ("precision", run["precision"])]
    found += [("evaluation", run["evaluation_is"]), ("split", run["split_fingerprint"])]
    return [*found, *commits, *run["versions"].items()]


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise UserError("Give a run's folder, or one of several: python -m audiocls.reporting.report FOLDER.")
    folder = Path(os.path.expanduser(sys.argv[1]))
    if not (folder / "run.json").exists() and (index := write_index(folder)):
        print(index)
        return OK
    print(write_report(folder))
    update_index(folder)
    return OK


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
