"""A data set in numbers: lengths, formats, silence, clipping, copies, balance, what was left out."""

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from audiocls.config import TrainConfig
from audiocls.data.cache import Waveforms
from audiocls.data.loader import ClipDataset
from audiocls.data.prepare import RunData, prepare_data
from audiocls.errors import InputOutputFailed
from audiocls.model.backbone import open_backbone
from audiocls.reporting.audit_text import full_lines, summary_lines
from audiocls.reporting.run_log import say
from audiocls.storage import failing_as, write_json, write_text
from audiocls.training.run_folder import last_part

Audit = dict[str, Any]  # plain JSON: kept in the run folder as audit.json

MOST_NAMED = 20  # clips named of each kind; all are counted
MOSTLY_SILENT = 0.5
MANY_SILENT = 0.1  # of the clips: then it is probably not they that are wrong
QUANTILES = {"shortest": 0.0, "median": 0.5, "longest": 1.0}


def audit_only(config: TrainConfig) -> None:
    """What `--audit` does: prepare the data, say everything about it, write that as a page.

    Of the model only the sampling rate and the shortest clip count; where it is out of reach, tiny's do.
    """
    from audiocls.reporting.pages import audit_page  # matplotlib

    try:
        backbone = open_backbone(config.model, config.model_revision)
    except InputOutputFailed as error:
        say(f"note: {error} The audit hears at 16 kHz.")
        backbone = open_backbone("tiny")
    lenient = dataclasses.replace(config, max_bad_clips=1.0)
    rate, shortest, window = backbone.sampling_rate, backbone.min_samples, backbone.max_samples
    data = prepare_data(lenient, rate, shortest, window)
    found = audit(config.dataset, data)
    for line in full_lines(found):
        say(line)
    folder = Path(os.path.expanduser(config.output_dir or "runs"))
    path = folder / f"audit-{last_part(config.dataset)}.html"
    with failing_as(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(path, audit_page(found))
    say(f"the same as a page: {path}")


def keep_audit(run_folder: Path, name: str, data: RunData) -> None:
    """Write audit.json, for the report, and say it in two lines."""
    found = audit(name, data)
    write_json(run_folder / "audit.json", found)
    for line in summary_lines(found):
        say(line)
    num_clips = sum(part["clips"] for part in found["parts"].values())
    is_cut = found["seconds"]["heard"] < found["seconds"]["total"]
    if is_cut and (silent := found["silent"]["count"]) > MANY_SILENT * num_clips:
        say(f"note: {silent} of {num_clips} clips are silent as far as they are heard: see --max-seconds")


def audit(name: str, data: RunData) -> Audit:
    """The audit of the data set `name`. Every clip was measured when it was decoded: nothing is read here."""
    parts = {"train": data.train, "evaluation": data.evaluation} | ({"test": data.test} if data.test else {})
    waveforms: Waveforms = data.train.decoded
    part_of = {int(row): part for part, clips in parts.items() for row in clips.rows}
    rows = np.array(sorted(part_of))
    seconds = waveforms.seconds[rows]
    heard_seconds = waveforms.num_samples[rows] / waveforms.sampling_rate
    measured = [measures for row in rows if (measures := waveforms.measured[row]) is not None]
    counts, edges = np.histogram(seconds, bins=min(40, max(5, len(rows) // 5)))
    train_sizes = class_sizes(data.train, data.labels)

    def found(these: Iterable[bool]) -> dict[str, Any]:
        return named([waveforms.clips[row].path for row, is_so in zip(rows, these, strict=True) if is_so])

    left_out = [
        f"{clip.path} {waveforms.errors.get(row, 'is too short')}"
        for row, clip in enumerate(waveforms.clips)
        if row not in part_of
    ]
    return {
        "dataset": name,
        "parts": {part: part_summary(clips, waveforms) for part, clips in parts.items()},
        "seconds": {
            "total": float(seconds.sum()),
            "heard": float(heard_seconds.sum()),
            **{name: float(np.quantile(seconds, q)) for name, q in QUANTILES.items()},
            "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        },
        "heard_at_hz": waveforms.sampling_rate,
        "rates": dict(Counter(str(one.rate) for one in measured).most_common()),
        "channels": dict(Counter(str(one.channels) for one in measured).most_common()),
        "silent": found(one.silent_share == 1 for one in measured),
        "mostly_silent": found(MOSTLY_SILENT < one.silent_share < 1 for one in measured),
        "clipped": found(one.is_clipped for one in measured),
        "copies": copies(rows.tolist(), part_of, waveforms),
        "left_out": named(left_out),
        "classes": {part: class_sizes(clips, data.labels) for part, clips in parts.items()},
        # What a model scores that always answers with the commonest class.
        "largest_class_share": max(train_sizes.values()) / len(data.train),
    }


def part_summary(clips: ClipDataset, waveforms: Waveforms) -> dict[str, Any]:
    return {"clips": len(clips), "seconds": float(waveforms.seconds[clips.rows].sum())}


def class_sizes(clips: ClipDataset, labels: list[str]) -> dict[str, int]:
    counts = np.bincount(clips.labels, minlength=len(labels)).tolist()
    return dict(zip(labels, counts, strict=True))


def named(names: list[str]) -> dict[str, Any]:
    return {"count": len(names), "names": names[:MOST_NAMED]}


def copies(rows: list[int], part_of: dict[int, str], waveforms: Waveforms) -> dict[str, Any]:
    """Clips of the same sound and whole length; wholly silent ones are not compared.

    `across` counts the clips of the evaluation and the test set whose sound is trained on too,
    `contradicting` the sounds that bear more than one label.
    """
    groups: dict[tuple, list[int]] = defaultdict(list)
    for row in rows:
        measures = waveforms.measured[row]
        if measures is not None and measures.silent_share < 1:
            groups[measures.digest, round(float(waveforms.seconds[row]), 3)].append(row)
    twins = [group for group in groups.values() if len(group) > 1]
    across = {part: 0 for part in ("evaluation", "test") if part in part_of.values()}
    for group in twins:
        if "train" in (parts := [part_of[row] for row in group]):
            for part in across:
                across[part] += parts.count(part)

    def labels(group: list[int]) -> set[str]:
        return {waveforms.clips[row].label for row in group}

    twins.sort(key=lambda group: -len(labels(group)))
    return {
        "count": sum(len(group) - 1 for group in twins),
        "across": across,
        "contradicting": sum(len(labels(group)) > 1 for group in twins),
        "groups": [
            [
                f"{waveforms.clips[row].path} ({part_of[row]}, {waveforms.clips[row].label})"
                for row in group[:5]
            ]
            for group in twins[:MOST_NAMED]
        ],
    }
