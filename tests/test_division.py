"""Dividing clips: against datasets' own split, and what each way of dividing promises."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_helpers import file_clips

from audiocls.config import TrainConfig
from audiocls.data.division import divide, folds, group_split, random_split, stratified_split
from audiocls.errors import UserError


@pytest.mark.parametrize("num_clips", [5, 42, 100, 563])
@pytest.mark.parametrize("eval_fraction", [0.1, 0.2, 0.33])
@pytest.mark.parametrize("seed", [0, 42])
def test_random_split_is_the_one_datasets_makes(num_clips: int, eval_fraction: float, seed: int) -> None:
    import datasets

    table = datasets.Dataset.from_dict({"row": list(range(num_clips))})
    parts = table.train_test_split(test_size=eval_fraction, seed=seed)
    expected = parts["train"]["row"][:], parts["test"]["row"][:]
    assert random_split(num_clips, eval_fraction, seed) == expected


def test_every_way_of_dividing_keeps_each_clip_once_and_repeats() -> None:
    generator = np.random.default_rng(0)
    for seed in range(50):
        count = int(generator.integers(2, 60))
        fraction = float(generator.uniform(0.05, 0.9))
        names = [str(name) for name in generator.integers(0, 6, count)]
        divisions = [
            [
                random_split(count, fraction, seed),
                stratified_split(names, fraction, seed)[0],
                group_split(names, fraction, seed),
            ]
            for _ in range(2)
        ]
        assert divisions[0] == divisions[1]
        for train, evaluation in divisions[0]:
            assert sorted([*train, *evaluation]) == list(range(count))


def test_another_seed_divides_otherwise() -> None:
    labels = [str(index % 20) for index in range(100)]
    assert random_split(100, 0.2, 1) != random_split(100, 0.2, 2)
    assert stratified_split(labels, 0.2, 1) != stratified_split(labels, 0.2, 2)
    assert group_split(labels, 0.2, 1) != group_split(labels, 0.2, 2)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5, 0.8, 0.9])
def test_stratified_split_comes_within_half_a_clip_of_the_fraction_and_leaves_train_every_class(
    fraction: float,
) -> None:
    generator = np.random.default_rng(1)
    for seed in range(50):
        labels = [str(label) for label in generator.integers(0, 12, 40 if seed % 2 else 100)]
        (train, evaluation), _ = stratified_split(labels, fraction, seed)
        assert {labels[index] for index in train} == set(labels)
        held_out = Counter(labels[index] for index in evaluation)
        for label, count in Counter(labels).items():
            assert abs(held_out[label] - min(fraction * count, count - 1)) <= 0.5


def test_a_class_with_too_few_clips_stays_whole_in_train_and_is_named() -> None:
    labels = ["many"] * 20 + ["few"] * 2 + ["one"]
    (train, _), undivided = stratified_split(labels, 0.2, seed=0)
    assert undivided == ["few", "one"]
    assert {20, 21, 22} <= set(train)


def test_no_group_is_ever_on_both_sides() -> None:
    generator = np.random.default_rng(3)
    for seed in range(200):
        num_groups = int(generator.integers(2, 20))
        # Sizes from one clip to most of them.
        weights = generator.dirichlet(np.full(num_groups, 0.5))
        num_clips = int(generator.integers(2, 200))
        groups = [str(group) for group in generator.choice(num_groups, num_clips, p=weights)]
        if len(set(groups)) < 2:
            continue
        fraction = float(generator.uniform(0.05, 0.9))
        train, evaluation = group_split(groups, fraction, seed)
        assert {groups[i] for i in train}.isdisjoint(groups[i] for i in evaluation)
        assert train
        assert evaluation
        fits = len(evaluation) <= fraction * len(groups)
        assert fits or len({groups[i] for i in evaluation}) == 1


def test_group_split_fills_what_was_asked_for_where_groups_are_small() -> None:
    groups = [str(index % 50) for index in range(500)]
    for seed in range(10):
        _, evaluation = group_split(groups, 0.2, seed)
        assert len(evaluation) == 100


# Folds


def test_folds_of_single_clips_differ_by_at_most_one_clip_of_each_class() -> None:
    generator = np.random.default_rng(4)
    for seed in range(50):
        num_folds = int(generator.integers(2, 8))
        labels = [str(label) for label in generator.choice(6, 80, p=generator.dirichlet(np.ones(6)))]
        of_fold = folds(labels, range(80), num_folds, seed)
        sizes = np.bincount(of_fold, minlength=num_folds)
        assert sizes.max() - sizes.min() <= 6  # one for each class
        for label in set(labels):
            counts = np.bincount(of_fold[np.array(labels) == label], minlength=num_folds)
            assert counts.max() - counts.min() <= 1


def test_folds_of_groups_are_as_even_as_scikit_learns() -> None:
    from sklearn.model_selection import StratifiedGroupKFold

    generator = np.random.default_rng(5)
    ours, theirs = [], []
    for seed in range(20):
        labels = generator.integers(0, 4, 300)
        groups = generator.choice(25, 300, p=generator.dirichlet(np.ones(25)))
        of_fold = folds(labels.astype(str).tolist(), groups.tolist(), 5, seed)
        assert len(set(zip(groups, of_fold, strict=True))) == len(set(groups))  # each in one fold
        assert len(set(of_fold)) == 5
        peer = np.zeros(300, int)
        divisions = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, groups)
        for number, (_, held_out) in enumerate(divisions):
            peer[held_out] = number
        for found, division in ((ours, of_fold), (theirs, peer)):
            counts = np.array([np.bincount(labels[division == fold], minlength=4) for fold in range(5)])
            found.append(counts.std(axis=0).mean())
    assert np.mean(ours) <= 1.05 * np.mean(theirs)


def test_as_many_folds_as_groups_hold_out_each_group_once() -> None:
    # The classes of groups overlap not at all: nothing but the folds' sizes keeps them apart.
    groups = ["anna"] * 10 + ["ben"] * 3 + ["cleo"] * 7 + ["dan"]
    of_fold = folds(groups, groups, 4, 42)
    assert len(set(zip(groups, of_fold, strict=True))) == 4


def test_folds_are_the_same_again_and_others_with_another_seed() -> None:
    labels = [str(index % 3) for index in range(60)]
    first = folds(labels, range(60), 5, 1)
    assert (folds(labels, range(60), 5, 1) == first).all()
    assert (folds(labels, range(60), 5, 2) != first).any()


def divided(split_by: str, groups: str | None = None) -> tuple[list[int], list[int], list[str]]:
    """What `divide` makes of twelve clips of two labels, and its notes; every third one sounds alike."""
    count = 12
    clips = file_clips([Path(f"{index}.wav") for index in range(count)])
    clips = [replace(clip, label="ab"[index % 2]) for index, clip in enumerate(clips)]
    if groups:
        clips = [replace(clip, group=group) for clip, group in zip(clips, groups, strict=True)]
    config = TrainConfig(split_by=split_by, group_column="speaker" if groups else None)
    notes: list[str] = []
    rows = 100 + np.arange(count)  # of a larger set
    train, evaluation = divide(config, clips, rows, lambda row: 0 if row % 3 == 1 else row, notes)
    return train.tolist(), evaluation.tolist(), notes


def test_every_fold_is_held_out_once_and_equal_sounds_are_in_one() -> None:
    held_out = []
    for number in (1, 2, 3):
        train, evaluation, _ = divided(f"{number}/3")
        assert sorted([*train, *evaluation]) == list(range(100, 112))
        held_out += evaluation
        copies = {row for row in range(100, 112) if row % 3 == 1}
        assert copies <= set(train) or copies <= set(evaluation)
    assert sorted(held_out) == list(range(100, 112))


def test_folds_follow_the_groups_where_a_column_names_them() -> None:
    _, evaluation, notes = divided("2/3", groups="xxxxyyyyzzzz")
    assert len(evaluation) == 4
    assert len({("xyz")[(row - 100) // 4] for row in evaluation}) == 1
    assert notes[0].startswith("held out by speaker: ")


def test_nothing_held_out_trains_and_evaluates_on_all() -> None:
    train, evaluation, _ = divided("nothing")
    assert train == evaluation == list(range(100, 112))


def test_more_folds_than_there_are_groups_or_clips_are_refused() -> None:
    with pytest.raises(UserError, match="4 folds of 3 groups in the column speaker: give 3 at most"):
        divided("1/4", groups="xxxxyyyyzzzz")
    with pytest.raises(UserError, match="10 folds of 9 different clips"):
        divided("1/10")
