"""What torch's profiler recorded: the model's parts, and what the GPU did."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch.autograd import DeviceType

from audiocls.log.phases import BESIDE_STEPS

WRAPPED = "DistributedDataParallel.forward"  # torch's own range around a model's


@dataclass
class Part:
    """What a part of the model took in the traced steps; on a GPU the time of its kernels."""

    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    memory_bytes: int = 0  # that a forward pass leaves allocated for the backward pass, at most; 0: not known

    @property
    def seconds(self) -> float:
        return self.forward_seconds + self.backward_seconds


def part_times(events: Iterable[Any], *, on_gpu: bool) -> dict[str, Part]:
    """For each range that a model opened in its forward pass, in order, its time and its backward pass's.

    autograd numbers operations: a function of the backward pass has the number of the operation that it
    differentiates, and so belongs to the part in whose range that was.
    """
    events = list(events)
    parts: dict[str, Part] = {}
    part_of: dict[int, str] = {}  # by an operation's number

    def seconds(event: Any) -> float:
        return (event.device_time_total if on_gpu else event.cpu_time_total) / 1e6

    for event in events:
        above = event.cpu_parent
        if above and above.name == WRAPPED:  # of several ranks
            above = above.cpu_parent
        if event.name == WRAPPED or not (event.is_user_annotation and above and above.name == "forward"):
            continue
        part = parts.setdefault(event.name, Part())
        part.forward_seconds += seconds(event)
        added = getattr(event, "device_memory_usage" if on_gpu else "cpu_memory_usage", 0)
        part.memory_bytes = max(part.memory_bytes, added)
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


def with_layers_summed(parts: dict[str, Part]) -> dict[str, Part]:
    """The parts with "layer 0", "layer 1", ... as one, named "layers"."""
    summed: dict[str, Part] = {}
    for name, part in parts.items():
        into = summed.setdefault("layers" if re.fullmatch(r"layer \d+", name) else name, Part())
        into.forward_seconds += part.forward_seconds
        into.backward_seconds += part.backward_seconds
        into.memory_bytes += part.memory_bytes
    return summed


@dataclass
class DeviceWork:
    """What a GPU did in the traced steps, without evaluations and saves. No kernels: it was not recorded."""

    micro_batches: int = 0
    kernels: int = 0  # copies and fills, too
    busy_seconds: float = 0.0  # in which at least one of them ran


def device_work(events: Iterable[Any]) -> DeviceWork:
    events = list(events)
    work, beside, kernels = DeviceWork(), [], []
    for event in events:
        on_gpu = event.device_type == DeviceType.CUDA
        span = (event.time_range.start, event.time_range.end)  # microseconds, host and GPU by one clock
        if on_gpu and not event.is_user_annotation:
            kernels.append(span)
        elif not on_gpu and event.is_user_annotation:
            work.micro_batches += event.name == "forward"
            if event.name in BESIDE_STEPS:
                beside.append(span)
    busy, until = 0.0, -math.inf
    for start, end in sorted(kernels):
        if any(began <= start < ended for began, ended in beside):
            continue
        work.kernels += 1
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    work.busy_seconds = busy / 1e6
    return work
