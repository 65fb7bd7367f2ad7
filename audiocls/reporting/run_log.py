"""What a run says while it runs: one line and one JSON record an event."""

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

from audiocls.errors import one_line
from audiocls.reporting.profiling import BESIDE_STEPS, Phases, StepFacts, StepProfiler, shares
from audiocls.storage import failing_as

if TYPE_CHECKING:
    from audiocls.reporting.trackers import Trackers

# What the terminal calls the longest keys of metrics.jsonl.
SHORT = {
    "learning_rate": "lr",
    "samples_per_second": "clips/s",
    "audio_seconds_per_second": "audio_s/s",
    "data_wait_seconds": "wait_s",
    "padding_share": "padding",
    "wall_seconds": "wall_s",
}


def say(text: str) -> None:
    """A line on standard output, above the progress bar where there is one."""
    tqdm.write(one_line(text), file=sys.stdout)
    sys.stdout.flush()


# Asked after each evaluation, with the share of the steps gone through, the epochs and the scores, whether
# there is something to say.
Alarm = Callable[[float, float, dict[str, float]], str | None]


@dataclass
class Window:
    """What has happened since the last train line."""

    loss_sum: float = 0.0  # over clips
    clips: int = 0
    audio_seconds: float = 0.0
    padding_seconds: float = 0.0
    data_wait_seconds: float = 0.0
    seconds: float = 0.0  # in optimizer steps; evaluations and saves are not counted

    def add(self, step: StepFacts) -> None:
        self.loss_sum += step.loss_sum
        self.clips += step.clips
        self.audio_seconds += step.audio_seconds
        self.padding_seconds += step.padding_seconds
        self.data_wait_seconds += step.seconds.get("data wait", 0.0)
        self.seconds += sum(step.seconds.values())


class RunLog:
    """metrics.jsonl, the lines on the terminal, the bar, the trackers, and where the time goes."""

    def __init__(
        self,
        run_folder: Path,
        profiler: StepProfiler | None = None,
        alarm: Alarm | None = None,
        trackers: "Trackers | None" = None,
    ) -> None:
        self.path = run_folder / "metrics.jsonl"
        self.trackers = trackers
        self.bar: tqdm | None = None
        self.phase = profiler.phase if profiler else Phases()
        self.profiler = profiler
        self.alarm = alarm
        self.total_steps = 0
        self.seconds: dict[str, float] = {}  # of each phase, since this process began to train

    def start(self, total_steps: int, step: int, log_bytes: int) -> None:
        """Begin, or go on, at `step`: what was written after the checkpoint is written again."""
        with failing_as(self.path), self.path.open("ab") as file:
            file.truncate(log_bytes)
        self.total_steps = total_steps
        if self.trackers:
            self.trackers.start(step)
        self.bar = tqdm(total=total_steps, initial=step, desc="training", unit="step", disable=None)

    def advance(self, step: StepFacts, window: Window, learning_rate: float) -> None:
        """One optimizer step is done: its figures go to the window, the bar and the profiler."""
        spent = self.take_seconds()
        step.seconds = {name: spent[name] for name in spent if name not in BESIDE_STEPS}
        window.add(step)
        if self.bar is not None:
            self.bar.set_postfix_str(
                f"loss {step.loss_sum / step.clips:.4f}, lr {learning_rate:.2g}, "
                f"{window.clips / window.seconds:.3g} clips/s, "
                f"{window.data_wait_seconds / window.seconds:.0%} waiting for data",
                refresh=False,
            )
            self.bar.update()
        if self.profiler is not None:
            self.show(self.profiler.step(step))

    def take_seconds(self) -> dict[str, float]:
        """The seconds of each phase since they were last asked for."""
        spent = self.phase.take()
        for name, seconds in spent.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        return spent

    def train(self, step: int, epoch: float, window: Window, learning_rate: float, grad_norm: float) -> int:
        """What happened since the last such line."""
        return self.record(
            "train",
            step=step,
            epoch=epoch,
            loss=window.loss_sum / window.clips,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            samples_per_second=window.clips / window.seconds,
            audio_seconds_per_second=window.audio_seconds / window.seconds,
            data_wait_seconds=window.data_wait_seconds,
            padding_share=window.padding_seconds / (window.audio_seconds + window.padding_seconds),
        )

    def evaluation(
        self,
        step: int,
        epoch: float,
        scores: dict[str, float],
        metric: str,
        best: float | None,
        is_best: bool,
    ) -> int:
        """What an evaluation found, and how the best so far compares."""
        note = "a new best" if is_best else f"the best {metric} is still {readable(best)}"
        length = self.record("eval", note, step=step, epoch=epoch, **scores, is_best=is_best)
        if self.alarm is not None and (advice := self.alarm(step / self.total_steps, epoch, scores)):
            say(advice)
        return length

    def record(self, kind: str, note: str = "", **values: Any) -> int:
        """Write one record and, with a `note`, its line; returns the length of metrics.jsonl in bytes."""
        finite = {key: number_or_null(value) for key, value in values.items()}
        with failing_as(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **finite}) + "\n")
            file.flush()
            os.fsync(file.fileno())
            length = file.tell()
        if self.trackers:
            self.trackers.record(kind, values)
        shown = [f"{SHORT.get(key, key)} {readable(values[key])}" for key in values if key != "is_best"]
        say("  ".join([f"{kind:5}", *shown, note]).rstrip())
        return length

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.trackers:
            self.trackers.close()
        if self.profiler is not None:
            self.show(self.profiler.finish())
            self.take_seconds()
            self.show(f"of all the time: {shares(self.seconds)}")

    def show(self, text: str | None) -> None:
        for line in (text or "").splitlines():
            tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def number_or_null(value: Any) -> Any:
    """JSON has no word for NaN and infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def readable(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
