"""Where a step's time goes: the loop names what it does, `--profile` records and prints it."""

import json
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from audiocls.data.quiet import quiet_stderr
from audiocls.devices import DTYPES, device_name, synchronize
from audiocls.errors import InputOutputFailed
from audiocls.storage import write_text

WARM_UP_STEPS, TRACED_STEPS, TIMED_STEPS = 2, 3, 5
# The phases of a step, in the loop's order, and those that are no part of one.
STEP = (
    *("data wait", "host to device", "forward", "backward"),
    *("clipping", "device wait", "optimizer", "logging"),
)
BESIDE_STEPS = ("evaluation", "save")


@dataclass
class StepFacts:
    """What happened in an optimizer step."""

    loss_sum: float  # over its clips
    clips: int
    audio_seconds: float
    padding_seconds: float
    seconds: dict[str, float] = field(default_factory=dict)  # of each phase


class Phases:
    """What the loop is doing: `phase("forward")` ends what was before and begins that.

    Adds up each phase's seconds; in a profiler's trace the phases are ranges of the same names.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.before_change: Callable[[], None] | None = None  # for exact times, a wait for the device
        self.is_traced = False
        self.name: str | None = None
        self.began = 0.0
        self.range: AbstractContextManager | None = None

    def __call__(self, name: str | None) -> None:
        """Begin a phase; None: only end the one that is going on."""
        if self.before_change is not None:
            self.before_change()
        now = time.perf_counter()
        if self.name is not None:
            self.seconds[self.name] = self.seconds.get(self.name, 0.0) + now - self.began
        if self.range is not None:
            self.range.__exit__(None, None, None)
            self.range = None
        self.name, self.began = name, now
        if self.is_traced and name is not None:
            self.range = record_function(name)
            self.range.__enter__()

    def take(self) -> dict[str, float]:
        """The seconds of each phase since this was last asked for; the one going on ends."""
        self(None)
        seconds, self.seconds = self.seconds, {}
        return seconds


@dataclass
class PartTime:
    """What a part of the model took in the traced steps; on a GPU the time of its kernels."""

    forward_seconds: float = 0.0
    backward_seconds: float = 0.0


def part_times(events: Iterable[Any], *, on_gpu: bool) -> dict[str, PartTime]:
    """For each range that a model opened in its forward pass, in order, its time and its backward pass's.

    autograd numbers operations: a function of the backward pass has the number of the operation that it
    differentiates, and so belongs to the part in whose range that was.
    """
    events = list(events)
    parts: dict[str, PartTime] = {}
    part_of: dict[int, str] = {}  # by an operation's number

    def seconds(event: Any) -> float:
        return (event.device_time_total if on_gpu else event.cpu_time_total) / 1e6

    for event in events:
        if not (event.is_user_annotation and event.cpu_parent and event.cpu_parent.name == "forward"):
            continue
        parts.setdefault(event.name, PartTime()).forward_seconds += seconds(event)
        inside = [event]
        while inside:
            operation = inside.pop()
            part_of[operation.sequence_nr] = event.name
            inside += operation.cpu_children
    for event in events:
        is_backward = event.name.startswith("autograd::engine::evaluate_function")
        if is_backward and event.sequence_nr in part_of:
            parts[part_of[event.sequence_nr]].backward_seconds += seconds(event)
    return parts


class StepProfiler:
    """`--profile`: after some steps to warm up, a few with torch's profiler, then a few timed one by one.

    Writes `profile/trace.json.gz` (for https://ui.perfetto.dev or chrome://tracing) and `profile/steps.json`.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        precision: str,
        flops_of: Callable[[float], float],
    ) -> None:
        """`flops_of`: what training on a clip of so many seconds costs; 0 where that is not known."""
        self.folder = folder
        self.phase = Phases()
        self.device = device
        self.precision = precision
        self.flops_of = flops_of
        self.steps_seen = 0
        self.timed: list[StepFacts] = []
        self.profile: profile | None = None
        self.parts: dict[str, PartTime] = {}

    def step(self, step: StepFacts) -> str | None:
        """A step is over; after the last that is timed, the table."""
        self.steps_seen += 1
        timed_from = WARM_UP_STEPS + TRACED_STEPS
        if timed_from < self.steps_seen <= timed_from + TIMED_STEPS:
            self.timed.append(step)
        if self.steps_seen == WARM_UP_STEPS:
            activities = [ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self.profile = profile(activities=activities, acc_events=True)
            with quiet_stderr:  # its own words, of no use here
                self.profile.start()
            self.phase.is_traced = True
        elif self.steps_seen == timed_from:
            self.stop_tracing()
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            if self.device.type != "cpu":
                self.phase.before_change = partial(synchronize, self.device)
        elif self.steps_seen == timed_from + TIMED_STEPS:
            return self.finish()
        return None

    def stop_tracing(self) -> None:
        if self.profile is None:
            return
        self.phase.is_traced = False
        with quiet_stderr:
            self.profile.stop()
        self.parts = part_times(self.profile.events() or [], on_gpu=self.device.type == "cuda")
        try:
            self.folder.mkdir(exist_ok=True)
            self.profile.export_chrome_trace(str(self.folder / "trace.json.gz"))
        except (OSError, RuntimeError) as error:
            raise InputOutputFailed(f"{self.folder} cannot be written: {error}") from None
        self.profile = None

    def finish(self) -> str | None:
        """End early, or at the end; returns the table, if a step was timed."""
        self.stop_tracing()
        self.phase.before_change = None
        if not self.timed:
            fewest = WARM_UP_STEPS + TRACED_STEPS + 1
            return f"note: --profile needs {fewest} steps for its table" if self.steps_seen < fewest else None
        steps, self.timed = self.timed, []
        flops = sum(step.clips * self.flops_of(step.audio_seconds / step.clips) for step in steps)
        figures = summarize(steps, flops, self.device, self.precision)
        parts = {name: asdict(part) for name, part in self.parts.items()}
        content = {"figures": figures, "parts": parts, "steps": [asdict(step) for step in steps]}
        write_text(self.folder / "steps.json", json.dumps(content, indent=2))
        return as_table(figures, self.parts, len(steps), self.folder)


def summarize(steps: list[StepFacts], flops: float, device: torch.device, precision: str) -> dict[str, Any]:
    """Figures of some steps that took `flops` in all: medians for the phases, totals for the rates."""
    medians = {name: statistics.median(step.seconds.get(name, 0.0) for step in steps) for name in STEP}
    total = sum(sum(step.seconds.values()) for step in steps)
    heard, padding = sum(step.audio_seconds for step in steps), sum(step.padding_seconds for step in steps)
    figures = {
        "phase_milliseconds": {name: 1000 * seconds for name, seconds in medians.items()},
        "clips_per_second": sum(step.clips for step in steps) / total,
        "audio_seconds_per_second": heard / total,
        "padding_share": padding / (heard + padding),
        "peak_memory_gigabytes": peak_memory_bytes(device) / 1e9,
        "device": device_name(device),
        "precision": precision,
    }
    if flops:
        peak = matmul_flops_per_second(device, DTYPES[precision])
        figures |= {
            "flops_per_second": flops / total,
            "peak_flops_per_second": peak,
            "share_of_peak": flops / total / peak,
        }
    return figures


def as_table(figures: dict[str, Any], parts: dict[str, PartTime], num_steps: int, folder: Path) -> str:
    phases = figures["phase_milliseconds"]
    total = sum(phases.values())
    lines = [f"profile of {num_steps} steps on {figures['device']} in {figures['precision']}:"]
    lines += [f"  {name:16}{ms:10.1f} ms {ms / total:7.1%}" for name, ms in phases.items()]
    lines += [
        f"  {'a step':16}{total:10.1f} ms",
        f"  {figures['clips_per_second']:.4g} clips/s, {figures['audio_seconds_per_second']:.4g} audio s/s, "
        f"{figures['padding_share']:.1%} padding, {figures['peak_memory_gigabytes']:.2f} GB at most",
    ]
    if "share_of_peak" in figures:
        lines.append(
            f"  {figures['flops_per_second'] / 1e12:.3g} TFLOP/s, {figures['share_of_peak']:.1%} of the "
            f"{figures['peak_flops_per_second'] / 1e12:.3g} of a large matrix product"
        )
    both = sum(part.forward_seconds + part.backward_seconds for part in parts.values())
    if both:
        lines.append("  parts of the model:      forward backward")
    for name, part in parts.items() if both else ():
        lines.append(f"    {name:22}{part.forward_seconds / both:8.1%} {part.backward_seconds / both:8.1%}")
    return "\n".join(
        [*lines, f"  the trace is {folder / 'trace.json.gz'}: open it at https://ui.perfetto.dev"]
    )


def shares(seconds: dict[str, float]) -> str:
    """The phases by their share, largest first."""
    total = sum(seconds.values())
    largest = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {spent / total:.1%}" for name, spent in largest)


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """The best that a large matrix product reaches on this device now."""
    width = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        synchronize(device)
        began = time.perf_counter()
        left @ right
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * width**3 / min(seconds)


def peak_memory_bytes(device: torch.device) -> int:
    """Of the GPU since the timed steps began; on a CPU of the whole process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
