"""Which clips make which optimizer step: a pure function of (number of clips, seed, epoch, step size).

The position in a run is then a handful of integers: workers and interruptions cannot change what is trained
on. Micro-batches only divide a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Step = list[list[int]]  # the micro-batches of an optimizer step, each a list of clips


@dataclass(frozen=True)
class BatchPlan:
    """The order of a whole run. An epoch holds every clip once; its last step may be short."""

    num_clips: int
    batch_size: int
    gradient_accumulation_steps: int
    seed: int
    epochs: int
    max_steps: int | None = None  # overrides epochs

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_clips // (self.batch_size * self.gradient_accumulation_steps))

    @property
    def total_steps(self) -> int:
        return self.max_steps or self.epochs * self.steps_per_epoch

    @property
    def num_epochs(self) -> int:
        """Epochs begun, the last one maybe not finished."""
        return -(-self.total_steps // self.steps_per_epoch)

    def steps(self, epoch: int) -> list[Step]:
        """The optimizer steps of one epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_clips).tolist()
        clips_per_step = self.batch_size * self.gradient_accumulation_steps
        steps = [in_batches(clips, self.batch_size) for clips in in_batches(order, clips_per_step)]
        return steps[: self.total_steps - epoch * self.steps_per_epoch]

    def is_due(self, every: int | str, step: int, step_in_epoch: int) -> bool:
        """Whether something that happens each "epoch", or every so many steps, happens after this step."""
        return step_in_epoch == self.steps_per_epoch if every == "epoch" else step % int(every) == 0

    def micro_batches(self, epoch: int, step_in_epoch: int) -> Iterator[list[int]]:
        """Every micro-batch from a place in the run to its end."""
        for later in range(epoch, self.num_epochs):
            for step in self.steps(later)[step_in_epoch if later == epoch else 0 :]:
                yield from step


def in_batches(clips: list[int], batch_size: int) -> list[list[int]]:
    """`clips` in runs of `batch_size`, the last one maybe short."""
    return [clips[start : start + batch_size] for start in range(0, len(clips), batch_size)]
