"""What a run says while it runs: one line and one JSON record an event."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from tqdm import tqdm

from audiocls.log.advice import SpeedNote, beside_steps
from audiocls.log.chance_alarm import ChanceAlarm
from audiocls.log.estimate import TimeEstimate
from audiocls.log.phases import BESIDE_STEPS, Phases, StepFacts, shares
from audiocls.log.profiling import StepProfiler
from audiocls.log.trackers import Trackers
from audiocls.storage import failing_as
from audiocls.streams import say

BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


@dataclass
class SinceLastLog:
    """What has happened since the last train line."""

    loss_sum: float = 0.0  # over clips
    num_clips: int = 0
    audio_seconds: float = 0.0
    padding_seconds: float = 0.0
    data_wait_seconds: float = 0.0
    seconds: float = 0.0  # in optimizer steps; evaluations and saves are not counted

    def add(self, step: StepFacts) -> None:
        self.loss_sum += step.loss_sum
        self.num_clips += step.num_clips
        self.audio_seconds += step.audio_seconds
        self.padding_seconds += step.padding_seconds
        self.data_wait_seconds += step.seconds.get("data wait", 0.0)
        self.seconds += sum(step.seconds.values())


@dataclass
class RunLog:
    """metrics.jsonl, the lines on the terminal, the bar, the trackers, and where the time goes."""

    run_folder: Path | None  # None: nothing is written or said, as on all ranks but the first
    profiler: StepProfiler | None = None
    alarm: ChanceAlarm | None = None  # asked after each evaluation whether there is something to say
    estimate: TimeEstimate | None = None  # asked after each step, as is the next
    speed_note: SpeedNote | None = None
    trackers: Trackers = field(default_factory=Trackers)
    bar: tqdm | None = None
    best: float | None = None  # score so far, for the bar
    total_steps: int = 0
    steps_to_go: int = 0
    num_bytes: int = 0  # of metrics.jsonl
    seconds: dict[str, float] = field(default_factory=dict)  # of each phase, in this process

    def __post_init__(self) -> None:
        self.path = self.run_folder / "metrics.jsonl" if self.run_folder else None
        self.phase = self.profiler.phase if self.profiler else Phases()

    def start(self, total_steps: int, step: int, log_bytes: int) -> None:
        """Begin at `step`, with metrics.jsonl cut to `log_bytes`, its length when that step was saved."""
        if self.path is None:
            return
        with failing_as(self.path), self.path.open("ab") as file:
            file.truncate(log_bytes)
        self.total_steps, self.num_bytes = total_steps, log_bytes
        self.steps_to_go = total_steps - step
        self.trackers.start(step)
        self.bar = tqdm(
            total=total_steps,
            initial=step,
            desc="training",
            bar_format=BAR,
            disable=None,
            leave=False,
            dynamic_ncols=True,
        )

    def advance(self, step: StepFacts) -> None:
        """Show on the bar, and to the profiler, that an optimizer step is done."""
        if self.bar is not None:
            best = f", best {self.best:.4f}" if self.best is not None else ""
            self.bar.set_postfix_str(f"loss {step.loss_sum / step.num_clips:.3f}{best}", refresh=False)
            self.bar.update()
        self.steps_to_go -= 1
        if self.estimate is not None and (line := self.estimate(step, self.steps_to_go)):
            say(line)
        if self.speed_note is not None and (line := self.speed_note(step)):
            say(line)
        if self.profiler is not None:
            say_lines(self.profiler.step(step))

    def take_step_seconds(self) -> dict[str, float]:
        """The seconds of each phase since they were last asked for; evaluations and saves are left out."""
        spent = self.phase.take()
        for name, seconds in spent.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        return {name: seconds for name, seconds in spent.items() if name not in BESIDE_STEPS}

    def train(
        self, step: int, epoch: float, since: SinceLastLog, learning_rates: dict[str, float], grad_norm: float
    ) -> None:
        """Record the training since the last such record, and say what of it tells how training goes."""
        loss, speed = since.loss_sum / since.num_clips, since.num_clips / since.seconds
        self.record(
            "train",
            step=step,
            epoch=epoch,
            loss=loss,
            **dict[str, Any](learning_rates),
            grad_norm=grad_norm,
            clips_per_second=speed,
            audio_seconds_per_second=since.audio_seconds / since.seconds,
            data_wait_seconds=since.data_wait_seconds,
            padding_share=since.padding_seconds / (since.audio_seconds + since.padding_seconds),
        )
        rates = "/".join(f"{rate:.2g}" for rate in learning_rates.values())
        self.say_step(
            *("train", step, f"epoch {epoch:.1f}", f"loss {loss:.3f}", f"lr {rates}"),
            f"{speed:.0f} clips/s" if speed >= 100 else f"{speed:.3g} clips/s",
            f"wait {since.data_wait_seconds / since.seconds:.0%}",
        )

    def evaluation(
        self,
        step: int,
        epoch: float,
        scores: dict[str, float],
        metric: str,
        best: float | None,
        is_best: bool,
    ) -> None:
        """Record an evaluation's scores, and say how good it is, and whether it is the best so far."""
        seconds = time.perf_counter() - self.phase.began  # of the evaluation
        self.record("eval", step=step, epoch=epoch, **scores, is_best=is_best, seconds=seconds)
        self.best = best
        names = [name for name in dict.fromkeys(("accuracy", metric)) if name != "loss"]
        shown = [f"{name} {scores[name]:.4f}" for name in names]
        self.say_step("eval", step, f"loss {scores['loss']:.3f}", *shown, "new best" if is_best else "")
        if self.alarm is not None and (advice := self.alarm(step / self.total_steps, epoch, scores)):
            say(advice)

    def say_step(self, kind: str, step: int, *facts: str) -> None:
        """One line, which fits 80 columns; metrics.jsonl has everything, and all digits."""
        if self.path is not None:
            say("  ".join([f"{kind:5} step {step}/{self.total_steps}", *facts]).rstrip())

    def record(self, kind: str, **values: Any) -> None:
        """Write one record to metrics.jsonl, and pass it on to the trackers."""
        if self.path is None:
            return
        # JSON has no word for NaN and infinity.
        broken = [
            key for key, value in values.items() if isinstance(value, float) and not math.isfinite(value)
        ]
        written = {"kind": kind, **values, **dict.fromkeys(broken)}
        with failing_as(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(written) + "\n")
            file.flush()
            os.fsync(file.fileno())
            self.num_bytes = file.tell()
        self.trackers.record(kind, values)

    @property
    def show_image(self) -> Callable[[str, np.ndarray, int], None] | None:
        """How to log an image, see Trackers.image; None where nothing shows one."""
        return self.trackers.image if self.trackers.open else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()
        self.trackers.close()
        if self.profiler is not None:
            say_lines(self.profiler.finish())
            self.take_step_seconds()  # also what came after the last step belongs to it
            say(f"the loop's time: {shares(self.seconds)}")
            for line in beside_steps(self.seconds, self.profiler.config):
                say(line)


def say_lines(text: str | None) -> None:
    for line in (text or "").splitlines():
        say(line)
