"""What a run says while it runs: one line and one JSON record an event."""

import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

from audiocls.errors import one_line
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


@dataclass
class Window:
    """What has happened since the last train line."""

    loss_sum: float = 0.0  # over clips
    clips: int = 0
    audio_seconds: float = 0.0
    padding_seconds: float = 0.0
    data_wait_seconds: float = 0.0
    seconds: float = 0.0  # in optimizer steps; evaluations and saves are not counted


class RunLog:
    """metrics.jsonl, the lines on the terminal, the bar, and the trackers that were asked for."""

    def __init__(self, run_folder: Path, trackers: "Trackers | None" = None) -> None:
        self.path = run_folder / "metrics.jsonl"
        self.trackers = trackers
        self.bar: tqdm | None = None

    def start(self, total_steps: int, step: int, log_bytes: int) -> None:
        """Begin, or go on, at `step`: what was written after the checkpoint is written again."""
        with failing_as(self.path), self.path.open("ab") as file:
            file.truncate(log_bytes)
        if self.trackers:
            self.trackers.start(step)
        self.bar = tqdm(
            total=total_steps, initial=step, desc="training", unit="step", disable=not sys.stderr.isatty()
        )

    def advance(self, loss: float) -> None:
        """One optimizer step is done."""
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            self.bar.update()

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

    def record(self, kind: str, **values: Any) -> int:
        """Write one record and its line; returns the length of metrics.jsonl in bytes."""
        finite = {key: number_or_null(value) for key, value in values.items()}
        with failing_as(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **finite}) + "\n")
            file.flush()
            os.fsync(file.fileno())
            length = file.tell()
        if self.trackers:
            self.trackers.record(kind, values)
        say(
            f"{kind:5} "
            + "  ".join(f"{SHORT.get(key, key)} {readable(value)}" for key, value in values.items())
        )
        return length

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.trackers:
            self.trackers.close()


def number_or_null(value: Any) -> Any:
    """JSON has no word for NaN and infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def readable(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
