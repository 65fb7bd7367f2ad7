"""Runs beside each other: means, spreads and paired tests over the same clips, as JSON."""

import json
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from audiocls.errors import UserError, number_of
from audiocls.flags import NOT_REPEATED, flag_name
from audiocls.metrics import SCORES
from audiocls.reporting.paired import Judged, Score, differences, mcnemar
from audiocls.reporting.results import SPLITS
from audiocls.reporting.runs import Key, Setting, pair_up

# Parts of run.json that should be equal, and what they are.
MADE_WITH = {
    "versions": "state of the code and what it stands on",
    "device": "device",
    "precision": "precision",
}
FEWEST_CLIPS = 20  # of fewer nothing is said to be clear
ENOUGH_PAIRS = 6  # to say nothing about more of them
LEAST_P = 0.05
MOST_CLIPS = 20  # named, of those that one setting gets right and the other wrong


def cross_entropy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean of minus the logarithm of the true label's probability, at least float32's smallest."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, np.finfo(np.float32).tiny)).mean())


MEASURES: dict[str, Score] = {**{name: score.of for name, score in SCORES.items()}, "loss": cross_entropy}
TITLES = {**{name: score.title for name, score in SCORES.items()}, "loss": "loss"}


def compare(settings: Sequence[Setting]) -> dict[str, Any]:
    """Everything a comparison says, as JSON: each setting, and how each later one differs from the first.

    Runs are paired in the order of their seeds, over the clips that both of a pair judged. Raises UserError
    where they have none in common.
    """
    split = common_split(settings)
    metric = settings[0].runs[0].results.config["best_metric"]
    notes = notes_about(settings, split)
    first, *others = settings
    return {
        "split": split,
        "metric": metric,
        "settings": [described(setting, split) for setting in settings],
        "flags": different_flags(settings),
        "differences": [difference(first, other, split, metric, notes) for other in others],
        "notes": notes,
    }


def check_comparable(settings: Sequence[Setting]) -> None:
    """Raises UserError where `compare` would: sooner, before all runs are made."""
    split = common_split(settings)
    for other in settings[1:]:
        pair_up(settings[0].runs[0], other.runs[0], split)


def notes_about(settings: Sequence[Setting], split: str) -> list[str]:
    """What makes a comparison say less than it seems to."""
    notes = []
    if split == "evaluation" and any(
        len(run.results.of_kind("eval")) > 1 for setting in settings for run in setting.runs
    ):
        notes.append(
            "these are the clips by which each run chose its best checkpoint, so all scores flatter; a test "
            "set, or folds, would not"
        )
    if len(settings) > 2:
        notes.append(f"{len(settings) - 1} comparisons: of 20 where nothing differs, one seems to")
    for name, what in MADE_WITH.items():
        if len({json.dumps(run.results.run[name]) for setting in settings for run in setting.runs}) > 1:
            notes.append(f"the runs are not all of one {what}")
    for setting in settings:
        sizes = sorted({sum(run.results.run["clips"].values()) for run in setting.runs})
        if len(sizes) > 1:
            some = " and ".join(map(str, sizes))
            notes.append(f"the runs of {setting.name} had {some} clips: the data has changed between them")
    trained_on = {one.name: one.runs[0].results.run["clips"]["train"] for one in settings}
    if len(set(trained_on.values())) > 1:
        notes.append(
            f"trained on {', '.join(f'{count} clips ({name})' for name, count in trained_on.items())}"
        )
    for setting in settings[1:]:
        if not different_flags([settings[0], setting]):
            notes.append(f"{setting.name} is set as {settings[0].name} is")
    return notes


def common_split(settings: Sequence[Setting]) -> str:
    """The split that all runs are judged by: a test set, folds, or else the evaluation."""
    runs = [run for setting in settings for run in setting.runs]
    for split in SPLITS:
        if all(split in run.predictions for run in runs):
            break
    else:
        raise UserError(
            "The runs have no predictions of a split in common: are they finished, and of the same data?"
        )
    for run in runs:
        if split == "evaluation" and run.results.config["split_by"] == "nothing":
            raise UserError(f"{run.folder} was evaluated on what it was trained on: give all a test set.")
    return split


def described(setting: Setting, split: str) -> dict[str, Any]:
    """A setting's runs with their scores, and over them the mean and the standard deviation."""
    runs: list[dict[str, Any]] = []
    for run in setting.runs:
        predictions = run.predictions[split]
        scores = {name: of(predictions.labels, predictions.probabilities) for name, of in MEASURES.items()}
        about = {"folder": str(run.folder), "seed": run.seed, "clips": len(predictions.labels)}
        runs.append({**about, "scores": scores, "minutes": run.minutes, "best_step": run.results.best_step})
    of_runs = {name: [run["scores"][name] for run in runs] for name in MEASURES}
    return {
        "name": setting.name,
        "title": setting.title,
        "runs": runs,
        "mean": {name: statistics.mean(values) for name, values in of_runs.items()},
        "deviation": {name: statistics.stdev(values) for name, values in of_runs.items() if len(values) > 1},
        "minutes": statistics.median(run["minutes"] for run in runs),  # the first may fill a cache for all
    }


def different_flags(settings: Sequence[Setting]) -> dict[str, list[str]]:
    """What the settings differ in: a flag, and its value in each of them."""
    configs = [setting.runs[0].results.config for setting in settings]
    unlike = [
        name
        for name in configs[0]
        if name not in NOT_REPEATED | {"seed"}
        and len({json.dumps(config.get(name)) for config in configs}) > 1
    ]
    return {flag_name(name): [str(config.get(name)) for config in configs] for name in unlike}


def difference(first: Setting, second: Setting, split: str, metric: str, notes: list[str]) -> dict[str, Any]:
    """How the second setting differs from the first, over the clips that both judged."""
    what = f"{second.name} - {first.name}"
    pairs = [pair_up(*runs, split) for runs in zip(first.runs, second.runs, strict=True)]
    rows = f" (the scores of {first.name} and {second.name} count them)"
    if alone := sum(pair.alone for pair in pairs):
        notes.append(f"{what} leaves out clips that only one of a pair judged: {alone}{rows}")
    if contradicting := sum(pair.contradicting for pair in pairs):
        notes.append(
            f"{what} leaves out clips that bear another label in {second.name}: {contradicting}{rows}"
        )

    number: dict[Key, int] = {}  # of each clip, the same in all pairs
    right: dict[Key, list[int]] = {}  # how many runs of either setting were right about it
    judged = []
    for pair in pairs:
        clips = [number.setdefault(key, len(number)) for key in pair.keys]
        judged.append(Judged(np.array(clips), pair.labels, pair.probabilities))
        for key, *is_right in zip(pair.keys, *pair.right, strict=True):
            right[key] = [
                count + int(one) for count, one in zip(right.get(key, [0, 0]), is_right, strict=True)
            ]
    unlike = [key for key in right if right[key][0] != right[key][1]]
    unlike.sort(key=lambda key: -abs(right[key][0] - right[key][1]))
    # Over all pairs, whether more of the clips go one way than by chance: of one pair this is McNemar's test.
    net = np.array([two - one for one, two in right.values()])
    is_certain = mcnemar(net < 0, net > 0).p < LEAST_P
    scores = {}
    for name, one in differences(judged, MEASURES).items():
        is_clear = one.is_clear and len(number) >= FEWEST_CLIPS and (is_certain or name == "loss")
        scores[name] = {**one._asdict(), "is_clear": is_clear}
    found = {
        "first": first.name,
        "second": second.name,
        "clips": len(number),
        "pairs": len(pairs),
        "scores": scores,
        "mcnemar": [
            {"seeds": [run.seed, other.seed], **mcnemar(*pair.right)._asdict()}
            for run, other, pair in zip(first.runs, second.runs, pairs, strict=True)
        ],
        "num_unlike": len(unlike),
        "unlike": [
            {"path": key.path, "label": key.label, "right": right[key]} for key in unlike[:MOST_CLIPS]
        ],
    }
    return {**found, "verdict": verdict(found, metric)}


def verdict(found: dict[str, Any], metric: str) -> str:
    """What a pair of settings comes to, in a sentence or two."""
    one, first, second = found["scores"][metric], found["first"], found["second"]
    said = f"no clear difference in {TITLES[metric]} between {second} and {first}"
    if one["is_clear"]:
        is_better = (one["mean"] > 0) != (metric == "loss")
        said = f"{second} is {'better' if is_better else 'worse'} than {first} in {TITLES[metric]}"
    over = f"over {number_of(found['clips'], 'clip')} and {number_of(found['pairs'], 'pair')} of runs"
    mean, low, high = (in_points(one[key], metric) for key in ("mean", "low", "high"))
    unit = "" if metric == "loss" else " points"
    said = f"{said}: {mean}{unit} (95% interval {low} to {high}), {over}"
    if found["clips"] < FEWEST_CLIPS:
        said += ": too few to tell"
    elif not one["is_clear"] and not one["low"] <= 0 <= one["high"]:
        said += ". The clips on which they differ are too few to tell"
    elif found["pairs"] == 1 and found["num_unlike"]:
        said += ". This is of one pair of runs: whether the settings differ, other seeds would tell"
    elif not one["is_clear"] and found["pairs"] < ENOUGH_PAIRS and one["low"] < one["high"]:
        said += ". More --seeds may show one"
    return said


def with_interval(one: dict[str, Any], metric: str) -> str:
    """`+1.3 (+0.8 to +1.9)`: a difference and its 95% interval."""
    mean, low, high = (in_points(one[key], metric) for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def in_points(value: float, metric: str) -> str:
    """A difference: of a share in points (hundredths), of the loss as it is."""
    value, digits = (value, 3) if metric == "loss" else (100 * value, 1)
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # + 0.0: no -0.0
