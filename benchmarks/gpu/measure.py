"""What the GPU benchmarks share: exact times, kernels by name, and a line a result."""

import collections
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from audiocls.devices import synchronize


@dataclass
class Bench:
    """A device, and where results go. On a CPU sizes are small: only to see that everything runs."""

    device: torch.device
    model: str  # the folder of a backbone
    log: TextIO  # a JSON object a result
    seconds: float  # after which no section begins
    peak: float = 1.0  # FLOP/s of a large bf16 matrix product
    began: float = field(default_factory=time.perf_counter)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_over(self) -> bool:
        return time.perf_counter() - self.began > self.seconds - 5

    def say(self, section: str, **figures: Any) -> None:
        """Print a result as soon as it is there, and keep it."""
        rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures.items()}
        seconds = time.perf_counter() - self.began
        print(f"{seconds:6.1f}s {section}: {', '.join(f'{k} {v}' for k, v in rounded.items())}", flush=True)
        self.log.write(json.dumps({"section": section} | rounded) + "\n")
        self.log.flush()

    @contextmanager
    def failing(self, section: str, **about: Any) -> Iterator[None]:
        """What fails is a result, too."""
        try:
            yield
        except Exception as error:
            self.say(section, **about, failed=f"{type(error).__name__}: {error}"[:300])

    def milliseconds(self, work: Callable[[], Any], most: int = 10) -> float:
        """Median time of `work` on the device, after a few runs that are not counted."""
        repeats, warm_up = (most, 3) if self.on_gpu else (2, 1)
        times = []
        for number in range(-warm_up, repeats):
            synchronize(self.device)
            if self.on_gpu:
                began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                began.record()
                work()
                ended.record()
                synchronize(self.device)
                elapsed = began.elapsed_time(ended)
            else:
                began_at = time.perf_counter()
                work()
                elapsed = 1000 * (time.perf_counter() - began_at)
            if number >= 0:
                times.append(elapsed)
        return statistics.median(times)

    def both_ways(self, function: Callable[..., Tensor], *inputs: Tensor) -> float:
        """Milliseconds of `function` forward and backward, with gradients for all inputs."""
        inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
        upstream = torch.randn_like(function(*inputs))

        def work() -> None:
            for x in inputs:
                x.grad = None
            function(*inputs).backward(upstream)

        return self.milliseconds(work)

    def kernels(self, work: Callable[[], Any]) -> tuple[Counter[str], Counter[str]]:
        """How often `work` launches each kernel on the GPU, and its microseconds there."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.on_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities, acc_events=True) as profile:
            work()
            synchronize(self.device)
        times: Counter[str] = collections.Counter()
        busy: Counter[str] = collections.Counter()
        for event in profile.events() or ():
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
                times[event.name] += 1
                busy[event.name] += event.time_range.elapsed_us()
        return times, busy


def open_log(path: str) -> TextIO:
    return Path(path).open("a", encoding="utf-8")
