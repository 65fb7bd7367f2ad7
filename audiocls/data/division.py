"""Ways to divide the clips to train on: which ones are held out of them, to evaluate on."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from audiocls.config import TrainConfig, fold_meant
from audiocls.data.clips import Audio, Clip, Segment, recording_of
from audiocls.errors import UserError, named

TOGETHER = "segments of one recording stay together: it is trained on, or held out, as a whole"

Split = tuple[list[int], list[int]]  # indices to train on, indices to evaluate on


def divide(
    config: TrainConfig,
    clips: list[Clip],
    rows: np.ndarray,
    sound_of: Callable[[int], Hashable],
    notes: list[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Those of `rows` to train on and to evaluate on, as --split-by says; `clips` are their clips.

    `sound_of` a row is equal for rows of the same sound, which are in the same fold. Segments of one
    recording are on one side, unless the division is by groups. Raises UserError.
    """
    labels = [clip.label for clip in clips]
    fold = fold_meant(config.split_by)
    is_by_group = config.split_by == "group" or (fold and config.group_column)
    groups = groups_of(config, clips) if is_by_group else []
    if config.split_by == "nothing":
        return rows, rows
    recordings = None if groups else shared_recordings(clips)
    if recordings:
        check_several(recordings, is_fold=bool(fold))
        notes.append(TOGETHER)
    if fold:
        number, num_folds = fold
        units: Sequence[Hashable] = groups or [sound_of(row) for row in rows.tolist()]
        if recordings:
            sizes = Counter(recordings)
            units = [
                ("recording", recording) if sizes[recording] > 1 else sound
                for recording, sound in zip(recordings, units, strict=True)
            ]
        if num_folds > (num_units := len(set(units))):
            what = "different recordings" if recordings else "different clips"
            what = f"groups in the column {config.group_column}" if groups else what
            raise UserError(f"{num_folds} folds of {num_units} {what}: give {num_units} at most.")
        is_held_out = folds(labels, units, num_folds, config.seed) == number - 1
        train, evaluation = np.flatnonzero(~is_held_out).tolist(), np.flatnonzero(is_held_out).tolist()
    elif config.split_by == "stratified" and recordings:
        train, evaluation = stratified_unit_split(labels, recordings, config.eval_fraction, config.seed)
    elif config.split_by == "stratified":
        (train, evaluation), undivided = stratified_split(labels, config.eval_fraction, config.seed)
        if undivided:
            notes.append(f"too few clips to divide, all to train on: {named(undivided)}")
    elif groups:
        train, evaluation = group_split(groups, config.eval_fraction, config.seed)
    elif recordings:
        train, evaluation = group_split(recordings, config.eval_fraction, config.seed)
    else:
        train, evaluation = random_split(len(clips), config.eval_fraction, config.seed)
    if groups:
        held_out = sorted({groups[index] for index in evaluation})
        notes.append(f"held out by {config.group_column}: {named(held_out)}")
    return rows[train], rows[evaluation]


def groups_of(config: TrainConfig, clips: list[Clip]) -> list[str]:
    """Each clip's group. Raises UserError where some have none, or all the same."""
    groups = [clip.group for clip in clips if clip.group is not None]
    if len(groups) < len(clips):
        raise UserError(f"{len(clips) - len(groups)} clips have nothing in the column {config.group_column}.")
    if len(set(groups)) < 2:
        raise UserError(
            f"--group-column {config.group_column} holds one group: there is nothing to divide by."
        )
    return groups


def shared_recordings(clips: Sequence[Clip]) -> list[int] | None:
    """For each clip the number of its recording; None where no segment shares its recording with a clip."""
    if not any(isinstance(clip.audio, Segment) for clip in clips):
        return None
    key_of: dict[Audio, Hashable] = {}  # a recording's file is looked up once
    number_of_key: dict[Hashable, int] = {}
    numbers = []
    for clip in clips:
        recording = recording_of(clip)
        if recording not in key_of:
            key_of[recording] = recording.same_file_key()
        numbers.append(number_of_key.setdefault(key_of[recording], len(number_of_key)))
    return numbers if len(number_of_key) < len(clips) else None


class OneRecording(UserError):
    """All clips are segments of one recording: nothing can be held out of it."""


def check_several(recordings: Sequence[int], *, is_fold: bool) -> None:
    """Raises OneRecording where all clips are segments of one."""
    if len(set(recordings)) > 1:
        return
    if is_fold:
        remedy = "name another column to divide them by with --group-column."
    else:
        remedy = (
            "say which to evaluate on in a split column or with --eval-dataset, divide by another column "
            "with --split-by group --group-column NAME, or hold out nothing with --split-by nothing."
        )
    raise OneRecording(
        f"All {len(recordings)} clips are segments of one recording, which stay together: {remedy}"
    )


def by_length(rows: np.ndarray, num_samples: np.ndarray) -> np.ndarray:
    """Rows in the order in which clips are scored: of their lengths, so that a batch needs little padding."""
    return rows[np.argsort(num_samples[rows], kind="stable")]


def random_split(num_clips: int, eval_fraction: float, seed: int) -> Split:
    """The guide's split: what `datasets.Dataset.train_test_split(eval_fraction, seed=seed)` selects."""
    num_eval = int(np.ceil(eval_fraction * num_clips))
    order = np.random.default_rng(seed).permutation(num_clips).tolist()
    return order[num_eval:], order[:num_eval]


def stratified_split(labels: Sequence[str], eval_fraction: float, seed: int) -> tuple[Split, list[str]]:
    """Each class divided alike, and the classes with too few clips to divide, which train keeps whole."""
    generator = np.random.default_rng(seed)
    train: list[int] = []
    evaluation: list[int] = []
    undivided = []
    members_of: dict[str, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members_of[label].append(index)
    for label, indices in sorted(members_of.items()):
        members = generator.permutation(indices).tolist()
        num_eval = min(round(eval_fraction * len(members)), len(members) - 1)
        if num_eval == 0:
            undivided.append(label)
        evaluation += members[:num_eval]
        train += members[num_eval:]
    return (sorted(train), sorted(evaluation)), undivided


def stratified_unit_split(
    labels: Sequence[str], units: Sequence[int], eval_fraction: float, seed: int
) -> Split:
    """No unit (a recording) on both sides, and of each class about `eval_fraction` evaluated on.

    Units go, the largest first and else in random order, where they add least to the sum over classes and
    sides of the squared part of the class, divided by the side's share of all: as `folds` does for equal
    shares. One at least is held out, and one trained on.
    """
    label_ids = np.unique(labels, return_inverse=True)[1]
    of_class = np.bincount(label_ids)
    shares = np.array([1 - eval_fraction, eval_fraction])
    parts = np.zeros((2, len(of_class)))  # of each class, on each side
    members_of: dict[int, list[int]] = defaultdict(list)
    for index, unit in enumerate(units):
        members_of[unit].append(index)
    order = np.random.default_rng(seed).permutation(sorted(members_of)).tolist()
    order.sort(key=lambda unit: len(members_of[unit]), reverse=True)
    side_of = {}
    for unit in order:
        brought = np.bincount(label_ids[members_of[unit]], minlength=len(of_class)) / of_class
        added = (2 * parts @ brought + brought @ brought) / shares
        side_of[unit] = side = int(added[1] < added[0])
        parts[side] += brought
    for side in (0, 1):
        if side not in side_of.values():
            side_of[order[-1]] = side
    train = [index for index, unit in enumerate(units) if side_of[unit] == 0]
    return train, [index for index, unit in enumerate(units) if side_of[unit] == 1]


def group_split(groups: Sequence[Any], eval_fraction: float, seed: int) -> Split:
    """No group on both sides; whole groups in random order fill the evaluation while they fit."""
    generator = np.random.default_rng(seed)
    sizes = Counter(groups)
    room = eval_fraction * len(groups)
    chosen: set[Hashable] = set()
    for group in generator.permutation(sorted(sizes)).tolist():
        if sizes[group] <= room:
            chosen.add(group)
            room -= sizes[group]
    if not chosen:  # every group is larger than the part asked for: the smallest one is nearest to it
        chosen.add(min(sorted(sizes), key=lambda group: sizes[group]))
    train = [i for i, group in enumerate(groups) if group not in chosen]
    return train, [i for i, group in enumerate(groups) if group in chosen]


def folds(labels: Sequence[str], units: Sequence[Hashable], num_folds: int, seed: int) -> np.ndarray:
    """int64 [clips], the fold of each clip, from 0: clips of one unit (a speaker, a sound) are in the same.

    Of each class every fold has about as many clips. Units go, the largest first and else in random order, to
    the fold that has least of the classes they bring (which adds least to the sum over folds and classes of
    the squared shares). Where units are single clips, folds differ by at most one clip of each class.
    """
    label_ids = np.unique(labels, return_inverse=True)[1]
    members_of: dict[Hashable, list[int]] = defaultdict(list)
    for index, unit in enumerate(units):
        members_of[unit].append(index)
    all_members = list(members_of.values())
    order = np.random.default_rng(seed).permutation(len(all_members)).tolist()
    order.sort(key=lambda place: len(all_members[place]), reverse=True)  # those of a size stay in that order
    of_class = np.bincount(label_ids)
    counts = np.zeros((num_folds, len(of_class)), np.int64)
    fold_of = np.zeros(len(labels), np.int64)
    for place in order:
        members = all_members[place]
        classes, brought = np.unique(label_ids[members], return_counts=True)
        overlap = counts[:, classes] @ (brought / of_class[classes] ** 2)
        fold = np.lexsort((counts.sum(axis=1), overlap))[0]  # of equal ones the smallest fold
        fold_of[members] = fold
        counts[fold, classes] += brought
    return fold_of
