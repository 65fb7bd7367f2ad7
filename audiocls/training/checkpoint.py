"""Save and load the whole state of a run; keep the best and the last apart.

checkpoints/step-00000040/    a model that loads anywhere, and what training needs to go on:
    config.json, model.safetensors, preprocessor_config.json
    optimizer.safetensors, training_state.json
    predictions.jsonl         where this step was the best so far
    checksums.json             every file's size and sha256, written last
best/                         the model files of the best one
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from audiocls.distributed import Ranks
from audiocls.errors import InputOutputFailed, reason
from audiocls.log.run_log import SinceLastLog
from audiocls.model.backbone import LoadedModel
from audiocls.model.files import save_model
from audiocls.storage import (
    CHECKSUMS,
    READ_ERRORS,
    checksums_of,
    complete_folder,
    damage,
    failing_as,
    remove_folder,
    write_text,
)
from audiocls.streams import say

WEIGHTS = "model.safetensors"
Dataclass = TypeVar("Dataclass")
MOST = 2**53  # no count, no time is larger; up to here a float is exact
TRAINING_FILES = ("optimizer.safetensors", "training_state.json", "predictions.jsonl", CHECKSUMS)
ADAM_PARTS = ("exp_avg", "exp_avg_sq", "step")  # what AdamW keeps of a parameter


@dataclasses.dataclass
class TrainState:
    """Where a run stands: with the weights, the optimizer and the scaler, all that training goes on from."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0  # optimizer steps planned and gone through
    steps_taken: int = 0  # of those, the ones that changed the weights
    non_finite_in_a_row: int = 0
    best_score: float | None = None
    best_step: int | None = None
    best_epoch: float | None = None
    evaluation_is_due: bool = False  # after this step, and a signal came before its scores were there
    log_bytes: int = 0  # length of metrics.jsonl, to which it is cut on resume
    total_steps: int | None = None  # of the plan, which a resumed run may lengthen
    wall_seconds: float = 0.0  # training, evaluating and saving
    since_last_log: SinceLastLog = dataclasses.field(default_factory=SinceLastLog)


def step_folder(run_folder: Path, step: int) -> Path:
    return run_folder / "checkpoints" / f"step-{step:08d}"


def check_room(run_folder: Path, model: nn.Module) -> None:
    """Raises InputOutputFailed where the disk has no room for one checkpoint and the best model."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    moments = 2 * sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    needed = 2 * weights + moments
    with failing_as(run_folder):
        free = shutil.disk_usage(run_folder).free
    if free < needed:
        raise InputOutputFailed(
            f"{run_folder} has room for {free / 1e6:.0f} MB, and a checkpoint and the best model take "
            f"{needed / 1e6:.0f} MB: make room, or name another --output-dir."
        )


def save_checkpoint(
    run_folder: Path,
    loaded: LoadedModel,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    state: TrainState,
    *,
    keep: int,
    predictions: str | None = None,
) -> None:
    """Save a checkpoint, complete or not at all; then drop all but the newest `keep` and what was best."""
    folder = step_folder(run_folder, state.step)
    about = {"step": state.step, "best_step": state.best_step, "evaluation_is_due": state.evaluation_is_due}
    if predictions is None and about.items() <= checksums_of(folder).items() and damage(folder) is None:
        return  # nothing has happened since it was saved
    with complete_folder(folder, **about) as unfinished:
        save_model(loaded, unfinished)
        save_file(optimizer_tensors(loaded.model, optimizer), unfinished / "optimizer.safetensors")
        training_state = {"state": dataclasses.asdict(state), "scaler": scaler.state_dict()}
        (unfinished / "training_state.json").write_text(json.dumps(training_state, indent=2))
        if predictions is not None:
            (unfinished / "predictions.jsonl").write_text(predictions, encoding="utf-8")
    folders = step_folders(run_folder)
    # Keep every checkpoint that a kept one names as its best: resuming from it needs that model.
    best_steps = {checksums_of(folder).get("best_step") for folder in folders[-keep:]}
    for old in folders[:-keep]:
        if checksums_of(old).get("step") not in best_steps:
            remove_folder(old)


def export_best(run_folder: Path, step: int) -> None:
    """Make `best/` and `predictions.jsonl` those of the checkpoint at `step`, unless they are."""
    best, folder = run_folder / "best", step_folder(run_folder, step)
    files, about_best = checksums_of(folder)["files"], checksums_of(best)
    # Another checkpoint of the same step may have been damaged, and best/ be of that one.
    is_of_step = about_best.get("step") == step and damage(best, WEIGHTS) is None
    if not is_of_step or about_best["files"][WEIGHTS] != files[WEIGHTS]:
        with complete_folder(best, step=step) as unfinished:
            for name in files:
                if name not in TRAINING_FILES:
                    shutil.copy(folder / name, unfinished)
    with failing_as(folder):
        predictions = (folder / "predictions.jsonl").read_text(encoding="utf-8")
    write_text(run_folder / "predictions.jsonl", predictions)


def load_newest(
    run_folder: Path, model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler
) -> TrainState:
    """Put the newest whole checkpoint into model, optimizer and scaler; where there is none, start at step 0.

    Damaged checkpoints are named and passed over. Raises InputOutputFailed where there are only damaged ones.
    """
    folders, reasons = step_folders(run_folder), []
    for folder in reversed(folders):
        try:
            saved = read_checkpoint(folder, model, scaler.state_dict())
            check_best(run_folder, saved.state.best_step, model)
        except READ_ERRORS as error:
            reasons.append(str(error) if type(error) is ValueError else reason(error))
            say(f"note: {folder} is passed over: {reasons[-1]}")
            continue
        state = saved.state
        model.load_state_dict(saved.weights)
        load_optimizer_tensors(model, optimizer, saved.optimizer)
        scaler.load_state_dict(saved.scaler)
        for later in folders[folders.index(folder) + 1 :]:  # its steps will be taken again
            remove_folder(later)
        # The run may have ended between the save and the export.
        if (best := state.best_step) is not None and holds_model(step_folder(run_folder, best), best, model):
            if (run_folder / "best").exists() and (changed := damage(run_folder / "best", WEIGHTS)):
                say(f"note: {run_folder / 'best'} is made anew, as it was at step {best}: {changed}")
            export_best(run_folder, best)
        state.log_bytes = whole_records(run_folder / "metrics.jsonl", state.log_bytes)
        return state
    if folders:
        raise InputOutputFailed(
            f"None of the checkpoints in {run_folder} can be resumed. Of the newest: {reasons[0]}."
        )
    say(f"{run_folder} holds no checkpoint yet: starting at step 0")
    return TrainState()


def share_state(
    ranks: Ranks, model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler, state: TrainState
) -> TrainState:
    """What the first rank has loaded, on all: state, optimizer and scaler. Weights `Ranks.wrapped` shares."""
    if ranks.world_size == 1:
        return state
    state = ranks.decide(lambda: state)
    scaler.load_state_dict(ranks.decide(scaler.state_dict))
    own = optimizer_tensors(model, optimizer)
    devices = {name: parameter.device for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}

    def on_cpu(name: str) -> Tensor:
        return own[name].cpu()

    for name in ranks.decide(lambda: list(own)):  # one by one: all of them may be gigabytes
        tensors[name] = ranks.decide(partial(on_cpu, name)).to(devices[name.rpartition("/")[0]])
    if tensors and not ranks.is_first:
        load_optimizer_tensors(model, optimizer, tensors)
    return state


class Checkpoint(NamedTuple):
    """What a folder holds, fit for the model at hand."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # see optimizer_tensors
    scaler: dict[str, Any]
    state: TrainState


def read_checkpoint(folder: Path, model: nn.Module, scaler: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint in `folder`, checked whole before any of it is used. Raises one of READ_ERRORS.

    checksums.json says that files are as they were written, not that what was written fits this run: it may
    be of another model, or edited together with its checksums.
    """
    if why := damage(folder, "config.json", WEIGHTS, "optimizer.safetensors", "training_state.json"):
        raise ValueError(why)
    weights = load_file(folder / WEIGHTS)
    check_tensors(WEIGHTS, weights, model.state_dict())
    optimizer = load_file(folder / "optimizer.safetensors")
    check_tensors("optimizer.safetensors", optimizer, optimizer_like(optimizer, model))
    saved = json.loads((folder / "training_state.json").read_text(encoding="utf-8"))
    numbers = saved["scaler"]
    is_like = isinstance(numbers, dict) and numbers.keys() == scaler.keys() and numbers.get("scale") != 0
    if not is_like or not all(type(one) in (int, float) and 0 <= one < MOST for one in numbers.values()):
        raise ValueError("training_state.json holds no scaler like this run's")
    state = checked(TrainState, saved["state"])
    if not state.step == checksums_of(folder)["step"] == int(folder.name.rpartition("-")[2]):
        raise ValueError(f"it says that it is of step {state.step}")
    check_position(state)
    return Checkpoint(weights, optimizer, numbers, state)


def optimizer_like(tensors: Container[str], model: nn.Module) -> dict[str, Tensor]:
    """What AdamW's state must be like: a parameter's is whole, or absent where it never had a gradient."""
    return {
        f"{name}/{part}": torch.zeros(()) if part == "step" else parameter
        for name, parameter in model.named_parameters()
        for part in ADAM_PARTS
        if f"{name}/step" in tensors
    }


def check_tensors(file: str, tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises ValueError where names, shapes or kinds are not those expected, or a value is not finite."""
    if odd := sorted(tensors.keys() ^ expected.keys()):
        raise ValueError(f"{file} does not fit the model: {odd[0]} is missing or left over")
    for name, tensor in tensors.items():
        like = expected[name]
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            is_, should = (f"{one.dtype} {list(one.shape)}" for one in (tensor, like))
            raise ValueError(f"{file}: {name} is {is_}, not {should}")
        if tensor.numel() and not all(torch.isfinite(bound) for bound in tensor.aminmax()):
            raise ValueError(f"{file}: {name} is not finite")
        if name.endswith(("/exp_avg_sq", "/step")) and tensor.min() < 0:  # of an optimizer
            raise ValueError(f"{file}: {name} is negative")


def checked(kind: type[Dataclass], values: Any) -> Dataclass:
    """A `kind` of values read from JSON: every field is there, of its type, no number negative or absurd.

    A sum of losses may be NaN: that is how a run remembers a loss that was; a score may be negative. Raises
    ValueError.
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
        low = -MOST if name == "best_score" else 0
        in_range = not isinstance(value, int | float) or low <= value < MOST or name == "loss_sum"
        if type(value) not in allowed or not in_range:
            raise ValueError(f"training_state.json: {name} is {value!r}")
        made[name] = value
    return kind(**made)


def check_position(state: TrainState) -> None:
    """Raises ValueError where the counts of a state cannot all be true."""
    in_whole_epochs = state.step - state.step_in_epoch
    if state.epoch == 0:
        agree = in_whole_epochs == 0
    else:
        agree = in_whole_epochs % state.epoch == 0 and in_whole_epochs // state.epoch >= state.step_in_epoch
    if not agree or state.steps_taken > state.step or (state.best_step or 0) > state.step:
        raise ValueError("training_state.json: its counts of steps and epochs do not agree")
    if (state.best_step is None) != (state.best_score is None):
        raise ValueError("training_state.json: it has a best step or a best score without the other")


def check_best(run_folder: Path, step: int | None, model: nn.Module) -> None:
    """Raises ValueError where the best model so far, of `step`, is neither in its checkpoint nor in best/."""
    folders = (run_folder / "best", step_folder(run_folder, step or 0))
    if step is not None and not any(holds_model(folder, step, model) for folder in folders):
        why = damage(run_folder / "best", WEIGHTS) or "it is of another step"
        raise ValueError(f"the best so far, {folders[1].name}, is damaged or gone, and not in best/: {why}")


def holds_model(folder: Path, step: int, model: nn.Module) -> bool:
    """Whether a folder is as it was written, of that step, and holds finite weights of such a model."""
    if checksums_of(folder).get("step") != step or damage(folder, WEIGHTS):
        return False
    with contextlib.suppress(*READ_ERRORS):
        check_tensors(WEIGHTS, load_file(folder / WEIGHTS), model.state_dict())
        return True
    return False


def whole_records(log: Path, num_bytes: int) -> int:
    """How much of metrics.jsonl to keep: `num_bytes`, or the whole lines where less of it is left."""
    with failing_as(log):
        content = log.read_bytes() if log.exists() else b""
    if len(content) >= num_bytes:
        return num_bytes
    say(f"note: {log} is shorter than it was: records are lost")
    return content.rfind(b"\n") + 1


def step_folders(run_folder: Path) -> list[Path]:
    """The checkpoints there are, oldest first."""
    return sorted((run_folder / "checkpoints").glob("step-*"))


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """AdamW's state as named tensors: `<parameter>/<one of ADAM_PARTS>`."""
    return {
        f"{name}/{part}": value.contiguous()
        for name, parameter in model.named_parameters()
        for part, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put what `optimizer_tensors` returned, checked against `optimizer_like`, into the optimizer."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    trained = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    # A step count stays on the CPU or the GPU as the optimizer wants it: load_state_dict knows.
    state = {
        number: {part: tensors[f"{name}/{part}"] for part in ADAM_PARTS}
        for number, name in enumerate(trained)
        if f"{name}/step" in tensors
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
