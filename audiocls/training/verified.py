"""A checkpoint, read and checked whole before any of it touches the run.

A manifest says that files are as they were written, not that what was written fits this run: a checkpoint
may come from another model, or have been edited with its manifest. What is odd is a ValueError that says so.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from audiocls.errors import reason
from audiocls.storage import ODD, damage, manifest_of

Dataclass = TypeVar("Dataclass")

ADAM = {"exp_avg", "exp_avg_sq", "step"}
MOST = 2**53  # no count, no time is larger; up to here a float is exact


@dataclasses.dataclass
class Checkpoint:
    """What a folder holds, fit for the model at hand."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # `<parameter>/<exp_avg, exp_avg_sq or step>`
    scaler: dict[str, Any]
    state: dict[str, Any]  # of a TrainState


def read_checkpoint(folder: Path, model: nn.Module, scaler: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint in `folder`, with tensors and a scaler such as this run has. Raises ValueError."""
    if why := damage(folder):
        raise ValueError(why)
    try:
        manifest = manifest_of(folder)
        for name in ("config.json", "model.safetensors", "optimizer.safetensors", "training_state.json"):
            if name not in manifest["files"]:
                raise ValueError(f"its manifest lacks {name}")
        saved = json.loads((folder / "training_state.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
        optimizer = load_file(folder / "optimizer.safetensors")
        check_weights(weights, model)
        check_optimizer(optimizer, model)
        check_like(saved["scaler"], scaler)
        step = saved["state"]["step"]
        if not step == manifest["step"] == int(folder.name.rpartition("-")[2]):
            raise ValueError(f"it says that it is of step {step}")
        return Checkpoint(weights, optimizer, saved["scaler"], saved["state"])
    except ODD as error:
        raise ValueError(reason(error)) from None


def check_weights(weights: dict[str, Tensor], model: nn.Module) -> None:
    expected = model.state_dict()
    if odd := sorted(set(weights) ^ set(expected)):
        raise ValueError(f"model.safetensors does not fit the model: {odd[0]} is missing or left over")
    for name, tensor in weights.items():
        check_tensor(f"model.safetensors: {name}", tensor, expected[name])


def check_optimizer(tensors: dict[str, Tensor], model: nn.Module) -> None:
    """AdamW's state of a parameter is whole or absent: one that never had a gradient has none."""
    parameters = dict(model.named_parameters())
    parts: dict[str, set[str]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("/")
        if name not in parameters or part not in ADAM:
            raise ValueError(f"optimizer.safetensors does not fit the model: {key} is left over")
        parts.setdefault(name, set()).add(part)
        like = torch.zeros(()) if part == "step" else parameters[name]
        check_tensor(f"optimizer.safetensors: {key}", tensor, like)
        if part != "exp_avg" and tensor.min() < 0:
            raise ValueError(f"optimizer.safetensors: {key} is negative")
    for name, there in parts.items():
        if there != ADAM:
            raise ValueError(f"optimizer.safetensors lacks {name}/{min(ADAM - there)}")


def check_tensor(what: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.shape != like.shape or tensor.dtype != like.dtype:
        raise ValueError(
            f"{what} is {tensor.dtype} {list(tensor.shape)}, not {like.dtype} {list(like.shape)}"
        )
    if tensor.numel() and not all(torch.isfinite(bound) for bound in tensor.aminmax()):
        raise ValueError(f"{what} is not finite")


def check_like(scaler: Any, like: Mapping[str, Any]) -> None:
    """A GradScaler's numbers: positive, and those that this run's has."""
    if not isinstance(scaler, dict) or set(scaler) != set(like):
        raise ValueError("training_state.json holds no scaler like this run's")
    for name, value in scaler.items():
        if type(value) not in (int, float) or not 0 <= value < MOST or (name == "scale" and value == 0):
            raise ValueError(f"training_state.json: the scaler's {name} is {value!r}")


def checked(kind: type[Dataclass], values: Any) -> Dataclass:
    """The dataclass of these values: every field there, of its type, no number negative or absurd.

    A sum of losses may be NaN: that is how a run remembers a loss that was. Raises ValueError.
    """
    types: dict[str, Any] = get_type_hints(kind)
    if not isinstance(values, dict) or set(values) != set(types):
        raise ValueError(f"training_state.json does not hold a {kind.__name__}")
    made = {}
    for name, value in values.items():
        allowed = get_args(types[name]) or (types[name],)
        if dataclasses.is_dataclass(allowed[0]):
            made[name] = checked(types[name], value)
            continue
        if type(value) is int and float in allowed:
            value = float(value)
        in_range = not isinstance(value, int | float) or 0 <= value < MOST or name == "loss_sum"
        if type(value) not in allowed or not in_range:
            raise ValueError(f"training_state.json: {name} is {value!r}")
        made[name] = value
    return kind(**made)
