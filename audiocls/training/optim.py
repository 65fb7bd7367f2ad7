"""Parameter groups, AdamW, and the learning rate as a function of the steps taken."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
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


def learning_rate_factor(steps_taken: Tensor, total_steps: int, warmup_ratio: float, schedule: str) -> Tensor:
    """What the peak learning rate is multiplied by in the next optimizer step, after int64 `steps_taken`.

    It rises linearly from 0 over the first `warmup_ratio` of the steps (rounded up), then falls to 0 linearly
    or along half a cosine, or stays: the Trainer's `linear`, `cosine` and `constant_with_warmup`. It depends
    on the steps *taken*, so it waits where one is skipped. The result, on the same device, is as AdamW takes
    it: float64 on a CPU, float32 elsewhere.
    """
    steps = steps_taken.to(torch.float64 if steps_taken.device.type == "cpu" else torch.float32)
    warmup_steps = math.ceil(warmup_ratio * total_steps)
    progress = ((steps - warmup_steps) / max(1, total_steps - warmup_steps)).clamp(max=1)
    match schedule:
        case "linear":
            factor = 1 - progress
        case "cosine":
            factor = 0.5 * (1 + torch.cos(math.pi * progress))
        case "constant":
            factor = torch.ones_like(progress)
        case _:
            raise ValueError(f"There is no schedule {schedule!r}.")
    return torch.where(steps < warmup_steps, steps / max(1, warmup_steps), factor)


def set_learning_rates(optimizer: Optimizer, factor: Tensor) -> None:
    """Set each group's learning rate to `factor`, float [], of its peak."""
    for group in optimizer.param_groups:
        rate = group["initial_lr"] * factor
        group["lr"] = rate if steps_on_device(optimizer) else rate.item()


def learning_rates(optimizer: Optimizer, factor: float) -> dict[str, float]:
    """Each group's learning rate at `factor` of its peak, named as it is logged."""
    return {
        f"learning_rate_{group['name']}" if "name" in group else "learning_rate": group["initial_lr"] * factor
        for group in optimizer.param_groups
    }


def take_step(optimizer: Optimizer, is_finite: Tensor) -> None:
    """Change the weights where `is_finite`, bool [], says so. A GPU decides that itself: nothing waits."""
    if steps_on_device(optimizer):
        optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif is_finite:
        optimizer.step()


def steps_on_device(optimizer: Optimizer) -> bool:
    """Whether it takes its rate as a tensor and heeds `found_inf`: a fused one, but not on Apple's GPUs."""
    groups = [group for group in optimizer.param_groups if group["params"]]
    return all(group.get("fused") and group["params"][0].device.type != "mps" for group in groups)


def seed_everything(seed: int, step: int, micro_batch: int, device: torch.device) -> None:
    """Make dropout and LayerDrop a function of the place in the run, not of its history."""
    mixed = np.random.SeedSequence([seed, step, micro_batch]).generate_state(1)[0]
    np.random.seed(mixed)  # for the masks that transformers draws: over channels, and Whisper's
    # torch.manual_seed would spend a tenth of a millisecond on the backends that nobody uses.
    torch.default_generator.manual_seed(int(mixed))
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(int(mixed))
