"""Whether one model, or one way of making models, is better than another, judged on the same clips."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

MOST_RESAMPLES, FEWEST_RESAMPLES = 2_000, 400
MOST_PROBABILITIES = 4e9  # looked at in all: of many clips and labels fewer resamples, half a minute or more


class McNemar(NamedTuple):
    """McNemar's exact test for two models."""

    only_first: int  # clips that the first alone judged right
    only_second: int
    p: float  # how often a fair coin for each of them would fall as unevenly, or more


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """The test for two models, from whether each was right, bool [clips] (McNemar 1947, with exact p)."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    count, fewer = only_first + only_second, min(only_first, only_second)
    p = sum(math.exp(log_ways(count, k) - count * math.log(2)) for k in range(fewer + 1))
    return McNemar(only_first, only_second, min(1.0, 2 * p))


def log_ways(count: int, k: int) -> float:
    """The logarithm of the number of ways to choose k of `count`."""
    return math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)


class Judged(NamedTuple):
    """Some clips as two models judged them, which were made with one seed."""

    clips: np.ndarray  # int64 [clips], which clip each is: the same number for the same one with another seed
    labels: tuple[np.ndarray, np.ndarray]  # int64 [clips] each, in the numbers of either model
    probabilities: tuple[np.ndarray, np.ndarray]  # float64 [clips, labels] each


class Difference(NamedTuple):
    """The second's score less the first's: the mean over seeds, and its 95% interval."""

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval is on one side of 0."""
        return self.low > 0 or self.high < 0


Score = Callable[[np.ndarray, np.ndarray], float]  # of labels and probabilities


def differences(
    seeds: Sequence[Judged], scores: dict[str, Score], resamples: int | None = None
) -> dict[str, Difference]:
    """The difference in each score, with an interval from a bootstrap over clips and over seeds.

    Each resample draws as many clips as there are, with replacement, the same ones for both models and all
    seeds. Seeds are too few to be drawn so: what other seeds would have given is drawn from Student's t, with
    the observed differences' own spread (a parametric bootstrap). Of one seed, the interval is of these two
    models: it says nothing of others that are made in the same way.
    """
    generator = np.random.default_rng(0)
    num_clips = 1 + max(int(one.clips.max()) for one in seeds)
    if resamples is None:
        of_one = sum(probabilities.size for one in seeds for probabilities in one.probabilities)
        resamples = int(np.clip(MOST_PROBABILITIES / of_one, FEWEST_RESAMPLES, MOST_RESAMPLES))
    observed = np.stack([second_less_first(one, scores) for one in seeds])  # [seeds, scores]
    means = np.empty((resamples, len(scores)))
    for number in range(resamples):
        times = np.bincount(generator.integers(num_clips, size=num_clips), minlength=num_clips)
        means[number] = np.mean([second_less_first(one, scores, times) for one in seeds], axis=0)
    if len(seeds) > 1:
        error = observed.std(axis=0, ddof=1) / math.sqrt(len(seeds))
        means += generator.standard_t(len(seeds) - 1, (resamples, 1)) * error
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    columns = zip(observed.mean(axis=0).tolist(), low.tolist(), high.tolist(), strict=True)
    return {name: Difference(*column) for name, column in zip(scores, columns, strict=True)}


def second_less_first(
    judged: Judged, scores: dict[str, Score], times: np.ndarray | None = None
) -> np.ndarray:
    """float64 [scores], where each clip counts so many `times`; None: once."""
    once = np.arange(len(judged.clips))
    rows = once if times is None else np.repeat(once, times[judged.clips])
    if len(rows) == 0:  # none of these few clips was drawn
        rows = once
    first, second = (
        np.array([score(labels[rows], probabilities[rows]) for score in scores.values()])
        for labels, probabilities in zip(judged.labels, judged.probabilities, strict=True)
    )
    return second - first
