"""Parameter groups, AdamW, and the learning rate as a function of the steps taken."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW, Optimizer


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> AdamW:
    """AdamW over what is trained; biases and norms (everything of one dimension) do not decay.

    Whoever adds a group with an `lr` of its own gives it a `name`: the log shows its rate as
    `learning_rate_<name>`.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=learning_rate, fused=True)
    for group in optimizer.param_groups:
        if group["lr"] != learning_rate and "name" not in group:
            raise ValueError("A group of parameters with a learning rate of its own needs a name.")
        group["initial_lr"] = group["lr"]  # as torch's own schedulers name it
    return optimizer


def learning_rate_factor(steps_taken: int, total_steps: int, warmup_ratio: float, schedule: str) -> float:
    """What the peak learning rate is multiplied by in the next optimizer step, after `steps_taken`.

    It rises linearly from 0 over the first `warmup_ratio` of the steps (rounded up), then falls to 0 linearly
    or along half a cosine, or stays: the Trainer's `linear`, `cosine` and `constant_with_warmup`. It depends
    on the steps *taken*, so it waits where fp16's scaler skips one.
    """
    warmup_steps = math.ceil(warmup_ratio * total_steps)
    if steps_taken < warmup_steps:
        return steps_taken / warmup_steps
    progress = (steps_taken - warmup_steps) / max(1, total_steps - warmup_steps)
    match schedule:
        case "linear":
            return max(0.0, 1 - progress)
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        case "constant":
            return 1.0
    raise ValueError(f"There is no schedule {schedule!r}.")


def set_learning_rates(optimizer: Optimizer, factor: float) -> dict[str, float]:
    """Set each group's learning rate to `factor` of its peak; returns them, named as they are logged."""
    learning_rates = {}
    for group in optimizer.param_groups:
        group["lr"] = factor * group["initial_lr"]
        learning_rates[f"learning_rate_{group['name']}" if "name" in group else "learning_rate"] = group["lr"]
    return learning_rates


def seed_everything(seed: int, step: int, micro_batch: int, device: torch.device) -> None:
    """Make dropout and LayerDrop a function of the place in the run, not of its history."""
    mixed = np.random.SeedSequence([seed, step, micro_batch]).generate_state(1)[0]
    np.random.seed(mixed)  # for the masks that transformers draws: over channels, and Whisper's
    # torch.manual_seed would spend a tenth of a millisecond on the backends that nobody uses.
    torch.default_generator.manual_seed(int(mixed))
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(int(mixed))
