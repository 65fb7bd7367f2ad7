"""Paired tests: against scipy's binomial test, and whether intervals hold what they should."""

import numpy as np
import pytest
from scipy.stats import binomtest

from audiocls.metrics import SCORES
from audiocls.reporting.paired import Judged, differences, mcnemar

ACCURACY = {"accuracy": SCORES["accuracy"].of}


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (3, 9), (9, 3), (12, 12), (400, 300), (3000, 3300)])
def test_mcnemars_p_is_scipys_exact_binomial_test(counts: tuple[int, int]) -> None:
    only_first, only_second = counts
    first = np.array([True] * only_first + [False] * only_second + [True] * 5 + [False] * 2)
    second = np.array([False] * only_first + [True] * only_second + [True] * 5 + [False] * 2)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == counts
    expected = binomtest(only_first, sum(counts), 0.5).pvalue if sum(counts) else 1.0
    assert found.p == pytest.approx(expected, rel=1e-9)


def judged(first: np.ndarray, second: np.ndarray, clips: np.ndarray | None = None) -> Judged:
    """Two models of two labels, whose clips are all of label 0, from whether they are right."""
    labels = np.zeros(len(first), int)
    of = [np.stack([right, ~right], axis=1).astype(float) for right in (first, second)]
    return Judged(np.arange(len(first)) if clips is None else clips, (labels, labels), (of[0], of[1]))


def test_a_model_does_not_differ_from_itself() -> None:
    right = np.random.default_rng(0).random(50) < 0.8
    (found,) = differences([judged(right, right)] * 3, ACCURACY, 200).values()
    assert found == (0, 0, 0)
    assert not found.is_clear


def test_a_large_difference_is_clear_and_points_the_right_way() -> None:
    generator = np.random.default_rng(1)
    seeds = [judged(generator.random(200) < 0.6, generator.random(200) < 0.9) for _ in range(4)]
    found = differences(seeds, {name: score.of for name, score in SCORES.items()}, 300)
    assert set(found) == set(SCORES)
    assert found["accuracy"].is_clear
    assert found["accuracy"].low < 0.3 < found["accuracy"].high
    assert found["accuracy"].mean == pytest.approx(
        np.mean([(one.probabilities[1][:, 0] - one.probabilities[0][:, 0]).mean() for one in seeds])
    )


def test_runs_that_judged_other_clips_with_each_seed_are_compared() -> None:
    generator = np.random.default_rng(2)
    seeds = [
        judged(
            generator.random(30) < 0.7, generator.random(30) < 0.7, generator.choice(100, 30, replace=False)
        )
        for _ in range(3)
    ]
    (found,) = differences(seeds, ACCURACY, 200).values()
    assert found.low < found.mean < found.high


@pytest.mark.parametrize(
    ("num_seeds", "of_seed"), [(1, 0.0), (2, 0.5), (2, 1.5), (3, 0.0), (3, 0.5), (6, 0.5), (15, 1.5)]
)
def test_the_interval_of_settings_that_do_not_differ_holds_0_in_95_of_100(
    num_seeds: int, of_seed: float
) -> None:
    """Clips are of different difficulty, and each run is better or worse than its setting by chance."""
    generator = np.random.default_rng(num_seeds)
    held = 0
    trials, num_clips = 100, 150
    for _ in range(trials):
        difficulty = generator.normal(2, 1.5, num_clips)

        def run(difficulty: np.ndarray = difficulty) -> np.ndarray:
            logits = difficulty + generator.normal(0, of_seed)
            return generator.random(num_clips) < 1 / (1 + np.exp(-logits))

        (found,) = differences([judged(run(), run()) for _ in range(num_seeds)], ACCURACY, 200).values()
        held += found.low <= 0 <= found.high
    assert held >= 90  # of 95 on average at least; its standard deviation is 2.2
