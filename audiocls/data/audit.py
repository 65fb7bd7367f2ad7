"""A data set in numbers: lengths, formats, what is odd (see audiocls/findings.py), copies, balance."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import numpy as np

from audiocls.config import TrainConfig
from audiocls.data.cache import Waveforms
from audiocls.data.division import OneRecording
from audiocls.data.loader import ClipDataset
from audiocls.data.measures import Measured
from audiocls.data.prepare import RunData, prepare_data
from audiocls.findings import MOST_NAMED

Audit = dict[str, Any]  # plain JSON: kept in the run folder as audit.json, which reporting/ reads

MOSTLY_SILENT = 0.5
QUANTILES = {"shortest": 0.0, "median": 0.5, "longest": 1.0}


def audit(name: str, data: RunData, max_samples: int | None = None) -> Audit:
    """The audit of the data set `name`, of whose clips the model takes `max_samples`; None: all.

    Every clip was measured when it was decoded: nothing is read here.
    """
    parts = data.parts
    if np.isin(data.evaluation.rows, data.train.rows).all():  # --split-by nothing
        del parts["evaluation"]
    waveforms: Waveforms = data.train.decoded
    part_of = {int(row): part for part, clips in parts.items() for row in clips.rows}
    rows = np.array(sorted(part_of))
    seconds = waveforms.seconds[rows]
    used_seconds = np.minimum(waveforms.num_samples[rows], max_samples or np.inf) / waveforms.sampling_rate
    measured = {row: one for row in rows.tolist() if (one := waveforms.measured[row])}  # all of these rows
    counts, edges = np.histogram(seconds, bins=min(40, max(5, len(rows) // 5)))
    classes = {part: class_sizes(clips, data.labels) for part, clips in parts.items()}

    def found(is_so: Callable[[Measured], bool]) -> dict[str, Any]:
        return first_of([waveforms.clips[row].path for row, one in measured.items() if is_so(one)])

    left_out = [
        f"{clip.path} {waveforms.errors.get(row, 'is too short')}"
        for row, clip in enumerate(waveforms.clips)
        if row not in part_of
    ]
    return {
        "dataset": name,
        "accounts": data.accounts,
        "notes": data.notes,
        "parts": {part: part_summary(clips, waveforms) for part, clips in parts.items()},
        "seconds": {
            "total": float(seconds.sum()),
            "used": float(used_seconds.sum()),
            "window": max_samples and max_samples / waveforms.sampling_rate,  # None: the model takes all
            "silent_ends": sum(one.silent_ends_seconds for one in measured.values()),
            "trimmed": waveforms.options.trim_silence,
            **{name: float(np.quantile(seconds, q)) for name, q in QUANTILES.items()},
            "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        },
        "sampling_rate": waveforms.sampling_rate,
        "rates": dict(Counter(str(one.rate) for one in measured.values()).most_common()),
        "channels": dict(Counter(str(one.channels) for one in measured.values()).most_common()),
        "damaged": first_of(
            [
                f"{waveforms.clips[row].path}: {'; '.join(one.notes)}"
                for row, one in measured.items()
                if one.notes
            ]
        ),
        "silent": found(lambda one: one.silent_share == 1),
        "mostly_silent": found(lambda one: MOSTLY_SILENT < one.silent_share < 1),
        "clipped": found(lambda one: one.is_clipped),
        "cancelled": found(lambda one: one.is_cancelled),
        "integer_scale": found(lambda one: one.is_integer_scale),
        "copies": copies(measured, part_of, waveforms),
        "left_out": first_of(left_out),
        "classes": classes,
        # What a model scores that always answers with the commonest class.
        "largest_class_share": max(classes["train"].values()) / len(data.train),
    }


def prepare_for_audit(
    config: TrainConfig, sampling_rate: int, min_samples: int, model_max_samples: int | None
) -> RunData:
    """The clips of a run, however many cannot be used, and also where nothing can be held out of them."""
    allowed, config = config.max_bad_clips, replace(config, max_bad_clips=1.0)
    try:
        data = prepare_data(config, sampling_rate, min_samples, model_max_samples)
    except OneRecording as why:
        config = replace(config, split_by="nothing", eval_fraction=TrainConfig.eval_fraction)
        data = prepare_data(config, sampling_rate, min_samples, model_max_samples)
        data.notes.append(f"training would stop here: {why}")
    num_clips = len(data.train.decoded.clips)
    used = {row for clips in data.parts.values() for row in clips.rows.tolist()}
    if (num_bad := num_clips - len(used)) > allowed * num_clips:
        of_all = f"{num_bad} of {num_clips} clips cannot be used"
        data.notes.append(f"training would stop here: {of_all}, more than --max-bad-clips {allowed:g} allows")
    return data


def part_summary(clips: ClipDataset, waveforms: Waveforms) -> dict[str, Any]:
    return {"clips": len(clips), "seconds": float(waveforms.seconds[clips.rows].sum())}


def class_sizes(clips: ClipDataset, labels: list[str]) -> dict[str, int]:
    counts = np.bincount(clips.labels, minlength=len(labels)).tolist()
    return dict(zip(labels, counts, strict=True))


def first_of(names: list[str]) -> dict[str, Any]:
    return {"count": len(names), "names": names[:MOST_NAMED]}


def copies(measured: dict[int, Measured], part_of: dict[int, str], waveforms: Waveforms) -> dict[str, Any]:
    """Clips of the same sound and whole length; wholly silent ones are not compared.

    `across` counts the clips of the evaluation and the test set whose sound is trained on too,
    `contradicting` the sounds that bear more than one label.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row in measured:
        groups[waveforms.sound_of(row)].append(row)
    twins = [group for group in groups.values() if len(group) > 1]
    parts = [[part_of[row] for row in group] for group in twins]
    trained_on = [part for group in parts if "train" in group for part in group]

    def num_labels(group: list[int]) -> int:
        return len({waveforms.clips[row].label for row in group})

    def described(row: int) -> str:
        return f"{waveforms.clips[row].path} ({part_of[row]}, {waveforms.clips[row].label})"

    twins.sort(key=num_labels, reverse=True)
    return {
        "count": sum(len(group) - 1 for group in twins),
        "across": {p: trained_on.count(p) for p in ("evaluation", "test") if p in part_of.values()},
        "contradicting": sum(num_labels(group) > 1 for group in twins),
        "groups": [[described(row) for row in group[:5]] for group in twins[:MOST_NAMED]],
    }
