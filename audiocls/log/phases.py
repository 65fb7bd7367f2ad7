"""What a step is made of: the loop names what it does, and the seconds of each phase are added up."""

import time
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch.profiler import record_function

from audiocls.devices import synchronize

# The phases of a step, in the loop's order, and those that are no part of one.
STEP = (
    *("data wait", "host to device", "forward", "backward"),
    *("clipping", "optimizer", "device wait", "between steps"),
)
BESIDE_STEPS = ("evaluation", "save")


@dataclass
class StepFacts:
    """What happened in an optimizer step."""

    loss_sum: float  # over its clips
    num_clips: int
    audio_seconds: float
    padding_seconds: float
    seconds: dict[str, float]  # of each phase


class Phases:
    """What the loop is doing: `phase("forward")` ends what was before and begins that.

    Adds up each phase's seconds; in a profiler's trace the phases are ranges of the same names.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.waits_for: torch.device | None = None  # at each change, for exact times
        self.is_traced = False
        self.name: str | None = None
        self.began = 0.0
        self.range = ExitStack()  # holds the profiler's range of the phase

    def __call__(self, name: str | None) -> None:
        """Begin a phase; None: only end the one that is going on."""
        if self.waits_for is not None:
            synchronize(self.waits_for)
        now = time.perf_counter()
        if self.name is not None:
            self.seconds[self.name] = self.seconds.get(self.name, 0.0) + now - self.began
        self.range.close()
        self.name, self.began = name, now
        if self.is_traced and name is not None:
            self.range.enter_context(record_function(name))

    def take(self) -> dict[str, float]:
        """The seconds of each phase since this was last asked for; the one going on ends."""
        self(None)
        seconds, self.seconds = self.seconds, {}
        return seconds


def shares(seconds: dict[str, float]) -> str:
    """The phases by their share, largest first."""
    total = sum(seconds.values())
    largest = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {spent / total:.1%}" for name, spent in largest)
