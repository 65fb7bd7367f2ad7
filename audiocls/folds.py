"""Cross-validation: every clip scored by a model that never heard it. `python -m audiocls.folds --help`.

The clips to train on are divided into folds (data/division.py): whole groups where --group-column names them,
else alike from each class. For each fold train.py trains on the others. The folder that comes of it reads as
a run's does: run.json, whose `folds` has a dict for each, predictions.jsonl, and the report made of both.
"""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from audiocls.config import FoldsConfig, TrainConfig
from audiocls.data.audit import audit
from audiocls.data.division import TOGETHER, by_length, divide, groups_of
from audiocls.data.prepare import RunData, prepare_data
from audiocls.errors import OK, UserError, exit_code_of, named
from audiocls.flags import as_typed, parse_folds, parse_train
from audiocls.metrics import SCORES, all_scores
from audiocls.model.loading import open_backbone
from audiocls.reporting.audit import keep_audit, say_summary
from audiocls.reporting.doubts import DOUBTED, write_doubted
from audiocls.reporting.results import (
    FOLDS_KEYS,
    Predictions,
    begun_with,
    read_lines,
    read_predictions,
    read_run,
)
from audiocls.reporting.wrap_up import say_folds, say_report, wrap_up
from audiocls.signals import StopSignal
from audiocls.storage import write_json, write_text
from audiocls.streams import say
from audiocls.training.run_folder import holds_run, short_name
from audiocls.trials import Trial, check_shared, is_finished, run_trials

# Evaluated at the end alone, unless asked: no checkpoint is chosen by the clips that it is judged by.
USUAL = {"eval_every": "end", "checkpoint_every": "10m"}
SPLIT_FLAGS = ("split_by", "eval_split", "eval_dataset", "eval_fraction")


@dataclass(frozen=True)
class Fold:
    """Clips that are held out of a run, and that run."""

    number: int  # from 1
    rows: np.ndarray  # int64 [clips], of the decoded clips, in the order in which the run scores them
    groups: list[str]  # theirs, where --group-column names some
    trial: Trial


def main() -> int:
    stop = StopSignal()
    own, shared = parse_folds(sys.argv[1:])
    config = check_shared(parse_train(shared, USUAL), "folds")
    check_flags(own, config)
    name = f"folds-{own.folds}-{short_name(config.dataset)}-{short_name(config.model)}"
    folder = Path(os.path.expanduser(own.output_dir or f"runs/{name}"))
    if holds_run(folder) and not read_run(folder).folds:
        raise UserError(f"{folder} holds a run of train.py: name another --output-dir.")

    data = all_clips(config)
    folds = divide_in_folds(own, config, data, folder)
    everything = replace(config, split_by="nothing", eval_every="end")
    final = Trial("the final model, of all clips", folder / "final", everything)
    # Before anything is run: what is there must be of these settings and clips.
    for trial in [*(fold.trial for fold in folds), *[final] * own.final]:
        trial.check()
    for fold in folds:
        if is_finished(fold.trial.folder):
            predictions_of(fold, data)
    if own.final and is_finished(final.folder):
        check_same(read_run(final.folder).run["split_fingerprint"] == data.fingerprint, final.folder)
    for line in [*(f"note: {note}" for note in data.notes), *(f"data: {line}" for line in data.accounts)]:
        say(line)

    run_trials([fold.trial for fold in folds], stop)
    pool(folder, config, data, folds)
    say_folds(folder)
    if own.final:
        run_trials([final], stop)
        quote_folds(final.folder, folder, data)
        say_report(final.folder)
        say(f"the final model, trained on all clips, is in {final.folder}/best")
    stop.ignore()
    return OK


def check_flags(own: FoldsConfig, config: TrainConfig) -> None:
    """Raises UserError where train.py's flags say themselves what is held out, or name no groups."""
    defaults = TrainConfig()
    if wrong := [name for name in SPLIT_FLAGS if getattr(config, name) != getattr(defaults, name)]:
        flags = named([as_typed(name, getattr(config, name)) for name in wrong])
        raise UserError(f"Each fold is held out in turn: leave out {flags}.")
    if own.count is None and config.group_column is None:
        raise UserError("Folds of speakers need the column that says who speaks: add --group-column NAME.")


def all_clips(config: TrainConfig) -> RunData:
    """Every clip that the folds divide, as what is trained on; decoded here once, for all runs."""
    backbone = open_backbone(config.model, config.model_revision, stock=config.backbone == "transformers")
    config = replace(config, split_by="nothing")
    return prepare_data(config, backbone.sampling_rate, backbone.min_samples, backbone.max_samples)


def divide_in_folds(own: FoldsConfig, config: TrainConfig, data: RunData, folder: Path) -> list[Fold]:
    """The folds, each with the division that its run will make. Raises UserError where there are too many."""
    clips, waveforms = data.train.clips, data.train.decoded
    num_folds = own.count or len(set(groups_of(config, clips)))
    folds = []
    notes: list[str] = []
    for number in range(1, num_folds + 1):
        of_run = replace(config, split_by=f"{number}/{num_folds}")
        rows = by_length(
            divide(of_run, clips, data.train.rows, waveforms.sound_of, notes)[1], waveforms.num_samples
        )
        groups = sorted({waveforms.clips[row].group or "" for row in rows}) if config.group_column else []
        name = f"fold {number} of {num_folds}{f' ({named(groups, 3)})' if groups else ''}"
        folds.append(Fold(number, rows, groups, Trial(name, folder / f"fold-{number}", of_run)))
    data.notes += [TOGETHER] if TOGETHER in notes else []
    return folds


def predictions_of(fold: Fold, data: RunData) -> Predictions:
    """What a fold's finished run made of the clips held out. Raises UserError where it held out others."""
    folder, clips = fold.trial.folder, data.train.decoded.clips
    labels = read_run(folder).labels
    predictions = read_predictions(folder / "predictions.jsonl", labels, "evaluation")
    paths = predictions.paths if predictions else []
    of_clips = [labels[label] for label in predictions.labels] if predictions else []
    expected = [(clips[row].path, clips[row].label) for row in fold.rows]
    is_same = labels == data.labels and list(zip(paths, of_clips, strict=True)) == expected
    check_same(is_same, folder)
    assert predictions
    return predictions


def check_same(is_same: bool, run_folder: Path) -> None:
    """Raises UserError where a run was of other clips."""
    if not is_same:
        raise UserError(
            f"{run_folder} is of other clips than there are now: the data has changed. Name another "
            f"--output-dir, or remove {run_folder.parent}."
        )


def pool(folder: Path, config: TrainConfig, data: RunData, folds: list[Fold]) -> None:
    """Write the folds' predictions as those of one run, with its report and doubted.csv."""
    clips, sound_of = data.train.decoded.clips, data.train.decoded.sound_of
    lines: dict[int, dict[str, Any]] = {}  # by row
    abouts = []
    folds_of_sound: dict[Hashable, set[int]] = defaultdict(set)
    folds_of_label: dict[str, set[int]] = defaultdict(set)
    for fold in folds:
        predictions = predictions_of(fold, data)
        for row, probabilities in zip(fold.rows.tolist(), predictions.probabilities.tolist(), strict=True):
            clip = {"path": clips[row].path, "label": clips[row].label}
            lines[row] = {"split": "folds", **clip, "fold": fold.number, "probabilities": probabilities}
            folds_of_sound[sound_of(row)].add(fold.number)
            folds_of_label[clips[row].label].add(fold.number)
        test = read_run(fold.trial.folder).last("test")
        about = {
            "fold": fold.number,
            "held_out": fold.groups,
            "clips": len(fold.rows),
            "scores": all_scores(predictions.labels, predictions.probabilities),
            "test_scores": {name: test[name] for name in SCORES} if test else {},
            "seconds": begun_with(fold.trial.folder)["seconds"],
        }
        abouts.append(about)
    notes = []
    if heard := sum(len(folds_of_sound[sound_of(row)]) > 1 for row in lines):
        notes.append(f"{heard} clips sound like clips of other groups: their models had heard these")
    if untrained := sorted(label for label, some in folds_of_label.items() if len(some) == 1):
        notes.append(f"one fold has all clips of {named(untrained)}, and its model does not know them")
    for note in notes:
        say(f"note: {note}")

    run = json.loads((folds[0].trial.folder / "run.json").read_text(encoding="utf-8"))
    run |= {"evaluation_is": f"{len(folds)} folds", "folds": abouts, "untrained": untrained, "heard": heard}
    run["clips"] = {"train": len(lines), "evaluation": 0, "test": run["clips"]["test"]}
    pooled = "".join(json.dumps(lines[row]) + "\n" for row in sorted(lines))
    path = folder / "predictions.jsonl"
    is_new = not path.exists() or path.read_text(encoding="utf-8") != pooled
    write_json(folder / "run.json", run)
    write_text(path, pooled)
    if is_new or not (folder / DOUBTED).exists():  # somebody may have edited it
        write_doubted(folder, read_run(folder))
    found = audit(config.dataset, replace(data, notes=[*data.notes, *notes]))
    keep_audit(folder, found)
    say_summary(found)
    wrap_up(folder, lambda split, index: sound(data, split, index))


def quote_folds(final: Path, folder: Path, data: RunData) -> None:
    """Give the final model's run the folds' predictions, for its report and card, in the place of its own.

    Its own were of the clips that it was trained on; those of a test set it keeps.
    """
    run = json.loads((final / "run.json").read_text(encoding="utf-8"))
    pooled = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    write_json(final / "run.json", run | {name: pooled[name] for name in ("evaluation_is", *FOLDS_KEYS)})
    lines = [line for line in read_lines(final / "predictions.jsonl") if line["split"] == "test"]
    lines += read_lines(folder / "predictions.jsonl")
    write_text(final / "predictions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    wrap_up(final, lambda split, index: sound(data, split, index))


def sound(data: RunData, split: str, index: int) -> tuple[np.ndarray, int, float]:
    """What is used of a clip at a place in the predictions of the folds, or of a test set: see RunData."""
    return data.sound("train" if split == "folds" else split, index)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
