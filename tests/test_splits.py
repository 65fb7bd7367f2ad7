"""Dividing clips: against datasets' own split, and what each way of dividing promises."""

from collections import Counter

import numpy as np
import pytest

from audiocls.data.splits import fingerprint, group_split, random_split, stratified_split


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


def test_a_fingerprint_names_a_division() -> None:
    base = fingerprint(["a", "b"], ["c"])
    assert fingerprint(["a", "b"], ["c"]) == base
    others = [
        fingerprint(["a"], ["b", "c"]),
        fingerprint(["b", "a"], ["c"]),
        fingerprint(["a", "b"], [], ["c"]),
        fingerprint(["a", "b"], ["c"], ["d"]),
        fingerprint(["ab"], ["c"]),
        fingerprint(["a", "b", "c"], []),
    ]
    assert len({base, *others}) == 1 + len(others)
    assert fingerprint(["caf\udce9.wav"], ["b"]) != fingerprint(["cafe.wav"], ["b"])  # a name beyond Unicode
