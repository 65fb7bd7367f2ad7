"""Where a training step's time goes on a GPU, and what the model and the card would allow."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import LABELS, SAMPLING_RATE


def milliseconds(work: Callable[[], Any], device: Any, *, repeats: int = 10) -> float:
    """Median time of `work`, on the device, after three runs that are not counted."""
    import torch

    from audiocls.devices import synchronize

    times = []
    for number in range(-3, repeats):
        synchronize(device)
        if device.type == "cuda":
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            work()
            ended.record()
            synchronize(device)
            elapsed = began.elapsed_time(ended)
        else:
            began_at = time.perf_counter()
            work()
            elapsed = 1000 * (time.perf_counter() - began_at)
        if number >= 0:
            times.append(elapsed)
    return statistics.median(times)


def where_a_step_goes(backbone: Path, batch_size: int, device: Any, *, is_compiled: bool) -> dict[str, float]:
    """Milliseconds of a step, of its parts by themselves and of the host's wait; and how many kernels."""
    import numpy as np
    import torch
    from audiocls.model.fast import make_fast
    from torch.nn import functional as F

    from audiocls.data.loader import Example
    from audiocls.devices import synchronize
    from audiocls.model.backbone import load_for_training, open_backbone
    from audiocls.training.optim import make_optimizer

    loaded = load_for_training(open_backbone(str(backbone)), LABELS, seed=0)
    make_fast(loaded.model, device)
    model = loaded.model.to(device).train()
    optimizer = make_optimizer(model, 3e-5, 0.0)
    noise = np.random.default_rng(0).standard_normal((batch_size, SAMPLING_RATE), np.float32)
    batch = loaded.training_collator(0)([Example(waveform) for waveform in noise]).to(device)
    autocast = torch.autocast(device.type, torch.bfloat16)
    if is_compiled:
        model.compile()

    def step() -> torch.Tensor:
        """A micro-batch that is a whole step, as the loop has it."""
        with autocast:
            logits = model(**batch.inputs).logits
        loss = F.cross_entropy(logits.float(), batch.labels)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack([loss.detach(), norm])

    figures = {"whole step": milliseconds(step, device)}
    synchronize(device)
    began = time.perf_counter()
    result = step()
    queued = time.perf_counter()
    result.tolist()
    figures["of it the host waits"] = 1000 * (time.perf_counter() - queued)
    figures["of it the host queues"] = 1000 * (queued - began)
    figures["kernels"] = kernels(step)
    if not is_compiled:
        figures |= parts(model, batch.inputs["input_values"], autocast, device)
        step()  # fills the gradients again
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        figures["optimizer"] = milliseconds(optimizer.step, device)
    return figures


def parts(model: Any, input_values: Any, autocast: Any, device: Any) -> dict[str, float]:
    """Milliseconds of forward and backward through each part, by itself on inputs of its shape."""
    import torch

    encoder = model.wav2vec2.encoder
    first, *others = model.wav2vec2.feature_extractor.conv_layers

    def through(modules: list[Any]) -> Callable[[Any], Any]:
        def call(hidden_states: Any) -> Any:
            for module in modules:
                hidden_states = module(hidden_states)
            return hidden_states

        return call

    def both_ways(part: Callable[[Any], Any], shaped_like: Any, *, needs_grad: bool = True) -> float:
        inputs = shaped_like.detach().clone().requires_grad_(needs_grad)
        with autocast:
            gradient = torch.randn_like(part(inputs))

        def work() -> None:
            with autocast:
                output = part(inputs)
            output.backward(gradient)

        return milliseconds(work, device)

    with autocast, torch.no_grad():
        after_first = first(input_values[:, None])
        features = through(others)(after_first).transpose(1, 2)
        hidden_states = model.wav2vec2.feature_projection(features)[0]
    return {
        "first convolution": both_ways(first, input_values[:, None], needs_grad=False),
        "other convolutions": both_ways(through(others), after_first),
        "positional convolution": both_ways(encoder.pos_conv_embed, hidden_states),
        "layers": both_ways(through(list(encoder.layers)), hidden_states),
    }


def kernels(step: Callable[[], Any]) -> int:
    """Kernels that a step launches on the GPU, copies and fills not counted."""
    import torch
    from torch.autograd import DeviceType

    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return sum(
        event.device_type == DeviceType.CUDA
        and not event.is_user_annotation
        and not event.name.startswith(("Memcpy", "Memset"))
        for event in profile.events()
    )
