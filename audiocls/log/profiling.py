"""`--profile`: how fast steps are, where their time goes, and what to change next."""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from audiocls.config import TrainConfig
from audiocls.devices import DTYPES, device_name, synchronize
from audiocls.errors import InputOutputFailed
from audiocls.log.advice import StepShares, bound_by, next_change
from audiocls.log.phases import STEP, Phases, StepFacts
from audiocls.log.profile_table import as_table
from audiocls.log.trace import DeviceWork, Part, device_work, part_times, with_layers_summed
from audiocls.storage import write_text
from audiocls.streams import quiet_stderr

# Of the steps seen: after two to warm up, those left alone, those traced, and those whose phases are timed.
FREE, TRACED, TIMED = slice(2, 7), slice(7, 10), slice(10, 15)
COMPILING = 30  # steps before these, in which most shapes come for the first and the second time


@dataclass
class StepProfiler:
    """Leaves a few steps alone, which gives the rates; traces a few; and times the phases of a few.

    In the last the host waits for the device at every change of phase: that makes the phases' times exact and
    the steps slower. Writes `profile/trace.json.gz` (for https://ui.perfetto.dev or chrome://tracing) and
    `profile/steps.json`.
    """

    folder: Path
    device: torch.device
    precision: str
    # Operations of training on a clip of so many seconds, by part of the model; empty where not known.
    flops_of: Callable[[float], dict[str, float]]
    config: TrainConfig
    can_capture: bool = True  # whether --cuda-graphs is possible
    phase: Phases = field(default_factory=Phases)
    steps: list[StepFacts] = field(default_factory=list)
    waited_seconds: float = 0.0  # for the device, after the steps that were left alone
    peak_memory_bytes: int = 0  # of these
    tracer: profile | None = None  # while it records
    parts: dict[str, Part] = field(default_factory=dict)
    work: DeviceWork = field(default_factory=DeviceWork)
    is_finished: bool = False
    steps_passed_over: int = 0

    @property
    def compiling_steps(self) -> int:
        """How many steps are passed over before any is looked at."""
        return COMPILING if self.config.compile or self.config.cuda_graphs else 0

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def step(self, step: StepFacts) -> str | None:
        """A step is over; after the last that is timed, the table."""
        if self.is_finished:
            return None
        if self.steps_passed_over < self.compiling_steps:
            self.steps_passed_over += 1
            return None
        self.steps.append(step)
        match len(self.steps):
            case FREE.start:
                synchronize(self.device)
                if self.on_gpu:
                    torch.cuda.reset_peak_memory_stats(self.device)
            case FREE.stop:
                began = time.perf_counter()
                synchronize(self.device)
                self.waited_seconds = time.perf_counter() - began
                self.peak_memory_bytes = peak_memory_bytes(self.device)
                self.start_tracing()
            case TRACED.stop:
                self.stop_tracing()
                self.phase.waits_for = self.device
            case TIMED.stop:
                return self.finish()
        return None

    def start_tracing(self) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_gpu else [])]
        self.tracer = profile(activities=activities, profile_memory=True, acc_events=True)
        allocated_before = torch.empty(1)
        with quiet_stderr():  # its own words, of no use here
            self.tracer.start()
            del allocated_before  # torch says once, so now, that it does not know such blocks' sizes
        self.phase.is_traced = True

    def stop_tracing(self) -> None:
        if self.tracer is None:
            return
        self.phase.is_traced = False
        synchronize(self.device)
        with quiet_stderr():
            self.tracer.stop()
        events = self.tracer.events() or []
        self.parts, self.work = part_times(events, on_gpu=self.on_gpu), device_work(events)
        try:
            self.folder.mkdir(exist_ok=True)
            self.tracer.export_chrome_trace(str(self.folder / "trace.json.gz"))
        except (OSError, RuntimeError) as error:
            raise InputOutputFailed(f"{self.folder} cannot be written: {error}") from None
        self.tracer = None

    def finish(self) -> str | None:
        """End early, or at the end; returns the table, if a step was timed."""
        if self.is_finished:
            return None
        self.is_finished = True
        self.stop_tracing()
        self.phase.waits_for = None
        timed = self.steps[TIMED]
        if not timed:
            return f"note: --profile needs {self.compiling_steps + TIMED.start + 1} steps for its table"
        figures = self.figures()
        content = {
            "figures": figures,
            "parts": {name: asdict(part) for name, part in self.parts.items()},
            "steps_left_alone": [asdict(step) for step in self.steps[FREE]],
            "steps": [asdict(step) for step in timed],
        }
        write_text(self.folder / "steps.json", json.dumps(content, indent=2))
        return as_table(figures, self.parts, self.folder)

    def figures(self) -> dict[str, Any]:
        """Rates and phases of the steps left alone, medians of the phases timed, and what the trace says."""
        free, traced, timed = self.steps[FREE], self.steps[TRACED], self.steps[TIMED]
        seconds = sum(sum(step.seconds.values()) for step in free) + self.waited_seconds
        medians = {name: statistics.median(step.seconds.get(name, 0.0) for step in timed) for name in STEP}
        means = {name: statistics.fmean(step.seconds.get(name, 0.0) for step in free) for name in STEP}
        means["device wait"] += self.waited_seconds / len(free)
        figures: dict[str, Any] = {
            "device": device_name(self.device),
            "precision": self.precision,
            "steps_left_alone": len(free),
            "steps_timed": len(timed),
            "phase_milliseconds": {name: 1000 * median for name, median in medians.items()},
            "host_milliseconds": {name: 1000 * mean for name, mean in means.items()},
            "step_milliseconds": 1000 * seconds / len(free),
            "clips_per_second": sum(step.num_clips for step in free) / seconds,
            "audio_seconds_per_second": sum(step.audio_seconds for step in free) / seconds,
            "peak_memory_gigabytes": self.peak_memory_bytes / 1e9,
            "memory_of": "the GPU" if self.on_gpu else "the process",
        }
        gpu_idle = None
        if self.work.kernels:
            # By the work that was done: the traced steps may have had more of it, or less.
            busy = self.work.busy_seconds * computed_seconds(free) / computed_seconds(traced) / seconds
            gpu_idle = max(0.0, 1 - busy)
            figures |= {
                "gpu_idle_share": gpu_idle,
                "kernels_per_step": self.work.kernels / len(traced),
                "kernels_per_micro_batch": self.work.kernels / max(1, self.work.micro_batches),
            }
        shares = StepShares.of(free, gpu_idle)
        advice = next_change(
            shares,
            self.config,
            precision=self.precision,
            on_gpu=self.on_gpu,
            can_capture=self.can_capture,
        )
        figures |= {
            "padding_share": shares.padding,
            "bound_by": bound_by(shares, on_gpu=self.on_gpu),
            "next_change": advice,
        }
        if flops := sum(self.flops(free).values()):
            peak = matmul_flops_per_second(self.device, DTYPES[self.precision])
            parts = with_layers_summed(self.parts)
            figures |= {
                "flops_per_second": flops / seconds,
                "peak_flops_per_second": peak,
                "share_of_peak": flops / seconds / peak,
                "part_shares_of_peak": {
                    name: flops / parts[name].seconds / peak
                    for name, flops in self.flops(traced).items()
                    if name in parts and parts[name].seconds
                },
            }
        return figures

    def flops(self, steps: list[StepFacts]) -> dict[str, float]:
        """Operations of some steps, by the model's part."""
        total: dict[str, float] = {}
        for step in steps:
            for name, flops in self.flops_of(step.audio_seconds / step.num_clips).items():
                total[name] = total.get(name, 0.0) + step.num_clips * flops
        return total


def computed_seconds(steps: list[StepFacts]) -> float:
    """Of audio, padding included."""
    return sum(step.audio_seconds + step.padding_seconds for step in steps)


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
    """Of the GPU since its count was reset; on a CPU of the whole process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
