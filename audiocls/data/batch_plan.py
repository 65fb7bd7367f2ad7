"""Which clips make which optimizer step: a pure function of lengths, seed, epoch and step size.

The position in a run is then a handful of integers: workers and interruptions cannot change what is trained
on. Micro-batches only divide a step, and ranks only divide its micro-batches.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Clips sorted by length at a time, in whole steps: enough that a batch is alike, few enough that an epoch is
# still in random order.
POOL_CLIPS = 256


@dataclass(frozen=True)
class Step:
    """The clips of one optimizer step."""

    epoch: int
    step_in_epoch: int  # from 0
    micro_batches: list[list[int]]  # of draws: epoch * num_clips + the clip's index, see `draw`

    @property
    def num_clips(self) -> int:
        return sum(map(len, self.micro_batches))

    def dealt(self, world_size: int, lengths: np.ndarray) -> list[list[int]]:
        """The numbers of the micro-batches that each rank computes, alike in seconds, padding included.

        `lengths`, int64 [clips], are in samples. Where there are enough, each rank has one at least.
        """
        work = [self.padded_samples(number, lengths) for number in range(len(self.micro_batches))]
        most = -(-len(work) // world_size)
        dealt: list[list[int]] = [[] for _ in range(world_size)]
        for number in sorted(range(len(work)), key=lambda number: -work[number]):  # the largest first
            free = [rank for rank in range(world_size) if len(dealt[rank]) < most]
            dealt[min(free, key=lambda rank: sum(work[one] for one in dealt[rank]))].append(number)
        return [sorted(numbers) for numbers in dealt]

    def share_of(self, rank: int, world_size: int, lengths: np.ndarray) -> tuple[list[int], bool]:
        """The numbers of a rank's micro-batches, and whether they count.

        A rank for which there is none repeats the smallest, which then does not.
        """
        if own := self.dealt(world_size, lengths)[rank]:
            return own, True
        numbers = range(len(self.micro_batches))
        return [min(numbers, key=lambda number: self.padded_samples(number, lengths))], False

    def padded_samples(self, number: int, lengths: np.ndarray) -> int:
        """A micro-batch's clips times its longest."""
        draws = np.array(self.micro_batches[number])
        return len(draws) * int(lengths[draws % len(lengths)].max())


@dataclass(frozen=True)
class BatchPlan:
    """The order of a whole run. An epoch holds every clip once; its last step may be short.

    With `balanced_labels` an epoch is as long, and holds as many clips of each class: of a large one some,
    other ones each time, of a small one all, several times.
    """

    num_clips: int
    batch_size: int  # clips in a micro-batch
    clips_per_step: int
    seed: int
    epochs: int
    max_steps: int | None = None  # overrides epochs
    lengths: np.ndarray | None = None  # int64 [clips]; where given, clips of like length share a step
    max_batch_samples: int | None = None  # a micro-batch's clips times its longest; needs lengths
    balanced_labels: np.ndarray | None = None  # int64 [clips], the classes of which each is drawn alike often

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_clips // self.clips_per_step)

    @property
    def total_steps(self) -> int:
        return self.max_steps or self.epochs * self.steps_per_epoch

    @property
    def num_epochs(self) -> int:
        """Epochs begun, the last one maybe not finished."""
        return -(-self.total_steps // self.steps_per_epoch)

    def steps_from(self, epoch: int, step_in_epoch: int) -> Iterator[Step]:
        """Every optimizer step from a place in the run to its end."""
        for later in range(epoch, self.num_epochs):
            times: Counter[int] = Counter()  # that a clip has been drawn in this epoch
            for number, micro_batches in enumerate(self.steps(later)):
                draws = [[self.draw(later, clip, times) for clip in clips] for clips in micro_batches]
                if later > epoch or number >= step_in_epoch:
                    yield Step(later, number, draws)

    def draw(self, epoch: int, clip: int, times: Counter[int]) -> int:
        """A number of its own for each use of a clip, whose remainder by `num_clips` is the clip's index."""
        again = times[clip] << 32  # more than there are epochs
        times[clip] += 1
        return (again + epoch) * self.num_clips + clip

    def steps(self, epoch: int) -> list[list[list[int]]]:
        """The clips of each micro-batch of each optimizer step of one epoch; the last may be cut short."""
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(self.num_clips)
        if self.balanced_labels is not None:
            order = balanced(order, self.balanced_labels, generator)
        if self.lengths is not None:
            order = bucketed(order, self.lengths, self.clips_per_step, generator)
        steps = in_batches(order.tolist(), self.clips_per_step)
        return [self.divide(clips) for clips in steps[: self.total_steps - epoch * self.steps_per_epoch]]

    def divide(self, clips: list[int]) -> list[list[int]]:
        """The micro-batches of a step: `batch_size` clips each, fewer where that is too much audio."""
        return in_batches(clips, self.batch_size, self.lengths, self.max_batch_samples)

    def passes(self, epoch: int, step_in_epoch: int) -> float:
        """Epochs gone through at a place in the run, the one begun as a fraction."""
        return epoch + step_in_epoch / self.steps_per_epoch


def bucketed(
    order: np.ndarray, lengths: np.ndarray, clips_per_step: int, generator: np.random.Generator
) -> np.ndarray:
    """`order` with clips of like length brought together: sorted in pools, whose steps are then shuffled.

    The clips left over for a short last step are drawn before anything is sorted, so they are as long as any.
    """
    whole = len(order) // clips_per_step * clips_per_step
    pool = max(1, POOL_CLIPS // clips_per_step) * clips_per_step
    pools = [order[start : min(start + pool, whole)] for start in range(0, whole, pool)]
    by_length = [clips[np.argsort(lengths[clips], kind="stable")] for clips in (*pools, order[whole:])]
    steps = np.concatenate(by_length[:-1] or [order[:0]]).reshape(-1, clips_per_step)
    return np.concatenate([generator.permutation(steps).reshape(-1), by_length[-1]])


def balanced(order: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many of the clips in `order` as there are, of each class alike many (or one more), shuffled."""
    classes = np.unique(labels[order])
    share, rest = divmod(len(order), len(classes))
    more = set(generator.permutation(len(classes))[:rest].tolist())
    chosen = [
        np.resize(order[labels[order] == label], share + (number in more))  # from the beginning again
        for number, label in enumerate(classes)
    ]
    return generator.permutation(np.concatenate(chosen))


def in_batches(
    clips: list[int],
    batch_size: int,
    lengths: Sequence[int] | np.ndarray | None = None,
    max_samples: int | None = None,
) -> list[list[int]]:
    """`clips` in runs of `batch_size`, the last one maybe short.

    Where `lengths` and `max_samples` are given, a run also ends before its clips times its longest exceed
    `max_samples`; a clip that alone is longer is a run.
    """
    if lengths is None or max_samples is None:
        return [clips[start : start + batch_size] for start in range(0, len(clips), batch_size)]
    batches: list[list[int]] = []
    longest = 0
    for clip in clips:
        longest = max(longest, int(lengths[clip]))
        size = len(batches[-1]) + 1 if batches else 1
        if not batches or size > batch_size or size * longest > max_samples:
            batches.append([])
            longest = int(lengths[clip])
        batches[-1].append(clip)
    return batches
