"""Saying early how long a run will take."""

import math
from dataclasses import dataclass

from audiocls.errors import number_of
from audiocls.lines import duration
from audiocls.log.phases import StepFacts

WARM_UP_STEPS = 2  # the first are slower
MEASURED_STEPS = 5
SHORT_SECONDS = 20  # no need to say it
FORWARD_SHARE = 1 / 3  # of a training step's work, which is a forward pass and a backward pass of twice that
TOO_LONG_SECONDS = 3_600  # on a CPU
SHORTER = (
    "on this CPU, --recipe frozen gives a first answer in minutes; less audio (--max-seconds), fewer "
    "--epochs, a smaller --model or a GPU make this shorter"
)


@dataclass
class TimeEstimate:
    """Says once, after a few steps, how long the rest of the run takes, evaluations included."""

    eval_clips: int  # in one evaluation
    steps_between_evaluations: int
    on_cpu: bool
    steps: int = 0  # seen
    clips: int = 0  # in the measured steps
    seconds: float = 0.0  # of the measured steps

    def __call__(self, step: StepFacts, steps_to_go: int) -> str | None:
        self.steps += 1
        if self.steps <= WARM_UP_STEPS:
            return None
        self.clips += step.num_clips
        self.seconds += sum(step.seconds.values())
        if self.steps != WARM_UP_STEPS + MEASURED_STEPS or steps_to_go < MEASURED_STEPS:
            return None
        step_seconds = self.seconds / MEASURED_STEPS
        evaluation_seconds = FORWARD_SHARE * self.eval_clips * self.seconds / self.clips
        evaluations = steps_to_go / self.steps_between_evaluations
        to_go = steps_to_go * step_seconds + evaluations * evaluation_seconds
        if to_go < SHORT_SECONDS:
            return None
        too_long = f"; {SHORTER}" if self.on_cpu and to_go > TOO_LONG_SECONDS else ""
        parts = f"{steps_to_go:,} steps of {step_seconds:.2g} s, "
        parts += number_of(math.ceil(evaluations), "evaluation")
        return f"about {duration(to_go)} to go: {parts}{too_long}"
