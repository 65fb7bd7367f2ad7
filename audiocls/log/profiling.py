"""Where a step's time goes: the loop names what it does, `--profile` records and prints it."""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from audiocls.devices import DTYPES, device_name, synchronize
from audiocls.errors import InputOutputFailed
from audiocls.storage import write_text
from audiocls.streams import quiet_stderr

WARM_UP_STEPS, TRACED_STEPS, TIMED_STEPS = 2, 3, 5
# The phases of a step, in the loop's order, and those that are no part of one.
STEP = (
    *("data wait", "host to device", "forward", "backward"),
    *("clipping", "device wait", "optimizer", "between steps"),
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


@dataclass
class StepProfiler:
    """`--profile`: after some steps to warm up, a few with torch's profiler, then a few timed one by one.

    Writes `profile/trace.json.gz` (for https://ui.perfetto.dev or chrome://tracing) and `profile/steps.json`.
    """

    folder: Path
    device: torch.device
    precision: str
    flops_of: Callable[[float], float]  # what training on a clip of so many seconds costs; 0: not known
    phase: Phases = field(default_factory=Phases)
    steps_seen: int = 0
    timed: list[StepFacts] = field(default_factory=list)
    tracer: profile | None = None  # while it records
    parts: dict[str, PartTime] = field(default_factory=dict)

    def step(self, step: StepFacts) -> str | None:
        """A step is over; after the last that is timed, the table."""
        self.steps_seen += 1
        timed_from = WARM_UP_STEPS + TRACED_STEPS
        if timed_from < self.steps_seen <= timed_from + TIMED_STEPS:
            self.timed.append(step)
        if self.steps_seen == WARM_UP_STEPS:
            on_gpu = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
            self.tracer = profile(activities=[ProfilerActivity.CPU, *on_gpu], acc_events=True)
            with quiet_stderr():  # its own words, of no use here
                self.tracer.start()
            self.phase.is_traced = True
        elif self.steps_seen == timed_from:
            self.stop_tracing()
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            self.phase.waits_for = self.device
        elif self.steps_seen == timed_from + TIMED_STEPS:
            return self.finish()
        return None

    def stop_tracing(self) -> None:
        if self.tracer is None:
            return
        self.phase.is_traced = False
        with quiet_stderr():
            self.tracer.stop()
        self.parts = part_times(self.tracer.events() or [], on_gpu=self.device.type == "cuda")
        try:
            self.folder.mkdir(exist_ok=True)
            self.tracer.export_chrome_trace(str(self.folder / "trace.json.gz"))
        except (OSError, RuntimeError) as error:
            raise InputOutputFailed(f"{self.folder} cannot be written: {error}") from None
        self.tracer = None

    def finish(self) -> str | None:
        """End early, or at the end; returns the table, if a step was timed."""
        self.stop_tracing()
        self.phase.waits_for = None
        if not self.timed:
            fewest = WARM_UP_STEPS + TRACED_STEPS + 1
            return f"note: --profile needs {fewest} steps for its table" if self.steps_seen < fewest else None
        steps, self.timed = self.timed, []
        flops = sum(step.num_clips * self.flops_of(step.audio_seconds / step.num_clips) for step in steps)
        figures = summarize(steps, flops, self.device, self.precision)
        parts = {name: asdict(part) for name, part in self.parts.items()}
        content = {"figures": figures, "parts": parts, "steps": [asdict(step) for step in steps]}
        write_text(self.folder / "steps.json", json.dumps(content, indent=2))
        return as_table(figures, self.parts, len(steps), self.folder)


def summarize(steps: list[StepFacts], flops: float, device: torch.device, precision: str) -> dict[str, Any]:
    """Figures of some steps that took `flops` in all: medians for the phases, totals for the rates."""
    medians = {name: statistics.median(step.seconds.get(name, 0.0) for step in steps) for name in STEP}
    total = sum(sum(step.seconds.values()) for step in steps)
    audio, padding = sum(step.audio_seconds for step in steps), sum(step.padding_seconds for step in steps)
    figures = {
        "phase_milliseconds": {name: 1000 * seconds for name, seconds in medians.items()},
        "clips_per_second": sum(step.num_clips for step in steps) / total,
        "audio_seconds_per_second": audio / total,
        "padding_share": padding / (audio + padding),
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
        for name, part in parts.items():
            forward, backward = part.forward_seconds / both, part.backward_seconds / both
            lines.append(f"    {name:22}{forward:8.1%} {backward:8.1%}")
    lines.append(f"  the trace is {folder / 'trace.json.gz'}: open it at https://ui.perfetto.dev")
    return "\n".join(lines)


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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
