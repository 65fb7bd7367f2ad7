"""Dividing clips into those to train on and those to evaluate on."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

Split = tuple[list[int], list[int]]  # indices to train on, indices to evaluate on


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
    members_of: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        members_of.setdefault(label, []).append(index)
    for label, indices in sorted(members_of.items()):
        members = generator.permutation(indices).tolist()
        num_eval = min(round(eval_fraction * len(members)), len(members) - 1)
        if num_eval == 0:
            undivided.append(label)
        evaluation += members[:num_eval]
        train += members[num_eval:]
    return (sorted(train), sorted(evaluation)), undivided


def group_split(groups: Sequence[str], eval_fraction: float, seed: int) -> Split:
    """No group on both sides; whole groups in random order fill the evaluation while they fit."""
    generator = np.random.default_rng(seed)
    sizes = Counter(groups)
    room = eval_fraction * len(groups)
    chosen: set[str] = set()
    for group in generator.permutation(sorted(sizes)).tolist():
        if sizes[group] <= room:
            chosen.add(group)
            room -= sizes[group]
    if not chosen:  # every group is larger than the part asked for: the smallest one is nearest to it
        chosen.add(min(sorted(sizes), key=lambda group: sizes[group]))
    train = [i for i, group in enumerate(groups) if group not in chosen]
    return train, [i for i, group in enumerate(groups) if group in chosen]


def fingerprint(train: Sequence[str], evaluation: Sequence[str], test: Sequence[str] = ()) -> str:
    """Names one division of named clips: equal only where every part holds the same clips in order."""
    text = "\0\0".join("\0".join(part) for part in (train, evaluation, test))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
