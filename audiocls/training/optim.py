"""Parameter groups, AdamW, and the learning rate as a function of the steps taken."""

import math

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW, Optimizer


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> AdamW:
    """AdamW over what is trained; biases and norms (everything of one dimension) do not decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=learning_rate, fused=True)


def scheduled_learning_rate(
    steps_taken: int, total_steps: int, warmup_ratio: float, peak: float, schedule: str
) -> float:
    """The learning rate of the next optimizer step, after `steps_taken` of `total_steps`.

    It rises linearly from 0 over the first `warmup_ratio` of the steps (rounded up), then falls to 0 linearly
    or along half a cosine, or stays: the Trainer's `linear`, `cosine` and `constant_with_warmup`. It depends
    on the steps *taken*, so it waits where fp16's scaler skips one.
    """
    warmup_steps = math.ceil(warmup_ratio * total_steps)
    if steps_taken < warmup_steps:
        return peak * steps_taken / warmup_steps
    progress = (steps_taken - warmup_steps) / max(1, total_steps - warmup_steps)
    match schedule:
        case "linear":
            return peak * max(0.0, 1 - progress)
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        case _:
            return peak


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def seed_everything(seed: int, step: int, micro_batch: int, device: torch.device) -> None:
    """Make dropout and LayerDrop a function of the place in the run, not of its history."""
    mixed = np.random.SeedSequence([seed, step, micro_batch]).generate_state(1)[0]
    np.random.seed(mixed)  # for the masks that transformers draws: over channels, and Whisper's
    # torch.manual_seed would spend a tenth of a millisecond on the backends that nobody uses.
    torch.default_generator.manual_seed(int(mixed))
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(int(mixed))
