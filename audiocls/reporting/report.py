"""A run folder -> report.html, one file that opens offline: `python -m audiocls.reporting.report RUN`.

It needs neither torch nor a model: everything in it is in the run folder.
"""

import base64
import dataclasses
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from audiocls.config import TrainConfig
from audiocls.errors import OK, UserError, exit_code_of
from audiocls.flags import flag_name
from audiocls.reporting import figures
from audiocls.reporting.pages import audit_parts, duration, percent, render, svg
from audiocls.reporting.results import (
    MOST_ERRORS,
    MOST_SECONDS,
    Predictions,
    RunResults,
    Scores,
    read_run,
    read_worst_errors,
)
from audiocls.storage import write_text

POINTS = 240  # of a waveform's outline


def write_report(run_folder: Path) -> Path:
    """Write report.html and return its path. Raises InputOutputFailed where the folder cannot be read."""
    path = run_folder / "report.html"
    write_text(path, report(run_folder))
    return path


def report(run_folder: Path) -> str:
    """The page, a pure function of the run folder."""
    results = read_run(run_folder)
    predictions, scores = results.predictions, results.scores
    end, judged = results.last("end"), results.last("test")
    if not judged and results.best_step is not None:
        judged = next(record for record in results.of_kind("eval") if record["step"] == results.best_step)
    return render(
        "report.html",
        title=run_folder.resolve().name,
        results=results,
        config=results.config,
        labels=results.labels,
        scores=scores,
        predictions=predictions,
        loss=judged.get("loss"),
        chance_loss=math.log(len(results.labels)),
        last_step=max((record["step"] for record in results.records), default=0),
        wall_seconds=end.get("wall_seconds"),
        charts=charts(results),
        most_named=figures.MOST_NAMED_CLASSES,
        settings=settings(results.config),
        facts=facts(results.run),
        speed=speed(results, end.get("wall_seconds")),
        speed_charts=speed_charts(results),
        **(scored_parts(predictions, scores) if predictions and scores else {}),
        **(worst_errors(predictions, run_folder) if predictions else {}),
        **(audit_parts(results.audit) if results.audit else {"audit": None}),
    )


def charts(results: RunResults) -> dict[str, Any]:
    """The curves of training, by title; of what was never logged, none."""
    train_loss, eval_loss = results.series("train", "loss"), results.series("eval", "loss")
    metric = results.config["best_metric"]
    shown = "accuracy" if metric == "loss" else metric
    other = "macro_f1" if shown == "accuracy" else "accuracy"
    best = results.best_step
    drawn = {}
    if len(eval_loss[0]):
        drawn["Loss"] = figures.curves({"training": train_loss, "evaluation": eval_loss}, best)
        lines = {other: results.series("eval", other), shown: results.series("eval", shown)}
        drawn["Evaluation"] = figures.curves(lines, best)
    elif len(train_loss[0]):
        drawn["Loss"] = figures.curves({"training": train_loss})
    if len(train_loss[0]):
        norms = results.series("train", "grad_norm")
        rates = results.series("train", "learning_rate")
        drawn["Learning rate"] = figures.curves({"": rates}, from_zero=True)
        if np.isfinite(norms[1]).any():
            drawn["Gradient norm"] = figures.curves({"": norms}, log=spans_orders(norms[1]))
    return {title: svg(drawing, title, f"{title} over optimizer steps") for title, drawing in drawn.items()}


def spans_orders(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return len(finite) > 0 and finite.min() > 0 and finite.max() > 30 * finite.min()


def scored_parts(predictions: Predictions, scores: Scores) -> dict[str, Any]:
    """Everything about how good the model is, but for its worst errors."""
    columns = scores.classes._asdict()
    classes = [
        {"name": predictions.names[id]} | {key: column[id].item() for key, column in columns.items()}
        for id in np.argsort(scores.classes.f1, kind="stable")
    ]
    bins = scores.calibration
    matrix = figures.confusion(scores.confusion, predictions.names)
    reliability = figures.reliability(bins.confidence, bins.accuracy, bins.counts)
    return {
        "classes": classes,
        "confused": scores.most_confused(12),
        "matrix": svg(matrix, "matrix", "confusion matrix"),
        "matrix_width": round(matrix.get_figwidth() * 112),
        "reliability": svg(reliability, "reliability", "accuracy over confidence"),
        "bins": [
            {
                "range": f"{10 * bin} to {10 * bin + 10}%",
                "count": int(bins.counts[bin]),
                "confidence": float(bins.confidence[bin]),
                "accuracy": float(bins.accuracy[bin]),
            }
            for bin in range(len(bins.counts))
            if bins.counts[bin]
        ],
    }


def worst_errors(predictions: Predictions, run_folder: Path) -> dict[str, Any]:
    heard = read_worst_errors(run_folder)
    errors: list[dict[str, Any]] = []
    for place, index in enumerate(predictions.worst(MOST_ERRORS), start=1):
        sound = heard.get(place)
        true, taken = int(predictions.labels[index]), int(predictions.predicted[index])
        errors.append(
            {
                "true": predictions.names[true],
                "taken": predictions.names[taken],
                "true_probability": float(predictions.probabilities[index, true]),
                "taken_probability": float(predictions.probabilities[index, taken]),
                "path": predictions.paths[index],
                # Markup: ours, and longer than a line of anybody's.
                "audio": Markup(base64.b64encode(sound.flac).decode()) if sound else None,
                "outline": Markup(outline(sound.waveform)) if sound else None,
                "points": POINTS,
                "seconds": len(sound.waveform) / sound.sampling_rate if sound else None,
            }
        )
    longest = max((error["seconds"] or 0 for error in errors), default=0)
    return {
        "errors": errors,
        "num_errors": int((predictions.predicted != predictions.labels).sum()),
        "audio_limit": MOST_SECONDS if longest >= MOST_SECONDS else None,
    }


def outline(waveform: np.ndarray) -> str:
    """An SVG path around a waveform, POINTS wide and 1 to each side of 0, its peak at 0.95."""
    stretches = np.array_split(waveform, min(POINTS, len(waveform)))
    scale = 0.95 / max(float(np.abs(waveform).max()), 1e-9)
    width = POINTS / len(stretches)
    top = [f"{i * width:.2f} {-scale * float(s.max()) - 0.01:.3f}" for i, s in enumerate(stretches)]
    bottom = [f"{i * width:.2f} {-scale * float(s.min()) + 0.01:.3f}" for i, s in enumerate(stretches)]
    return f"M{'L'.join(top + bottom[::-1])}Z"


def speed(results: RunResults, wall_seconds: float | None) -> list[dict[str, str]]:
    """What a train line knows of speed, over the whole run."""
    train = results.of_kind("train")
    if not train:
        return []

    def median(name: str) -> float:
        return float(np.median([record[name] for record in train]))

    waited = sum(record["data_wait_seconds"] for record in train)
    share = f"{percent(waited / wall_seconds)} of the run" if wall_seconds else ""
    found = [
        ("clips a second", f"{median('samples_per_second'):.3g}", "median, training"),
        ("audio a second", f"{median('audio_seconds_per_second'):.3g} s", "median, training"),
        ("waited for data", f"{waited:.1f} s", share),
        ("padding", percent(median("padding_share")), "of what is computed; median"),
    ]
    if wall_seconds:
        found.append(("took in all", duration(wall_seconds), "training, evaluating, saving"))
    return [dict(zip(("name", "value", "below"), one, strict=True)) for one in found]


def speed_charts(results: RunResults) -> dict[str, Any]:
    titles = {
        "samples_per_second": "Clips a second",
        "data_wait_seconds": "Seconds waited for data, in each line of the log",
    }
    return {
        title: svg(
            figures.curves({"": results.series("train", key)}, from_zero=True),
            key,
            f"{title}, over optimizer steps",
        )
        for key, title in titles.items()
    }


def settings(config: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Flag, value, and whether it differs from the default."""
    defaults = dataclasses.asdict(TrainConfig())
    return [
        (flag_name(name), "none" if value is None else str(value), value != defaults.get(name, value))
        for name, value in config.items()
    ]


def facts(run: dict[str, Any]) -> list[tuple[str, str]]:
    commits = [(f"{name} at", commit) for name, commit in run["hub_commits"].items()]
    found = [("device", run["device"]), ("precision", run["precision"])]
    found += [("evaluation", run["evaluation_is"]), ("split", run["split_fingerprint"])]
    return [*found, *commits, *run["versions"].items()]


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise UserError("Give one run folder: python -m audiocls.reporting.report RUN.")
    print(write_report(Path(os.path.expanduser(sys.argv[1]))))
    return OK


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
