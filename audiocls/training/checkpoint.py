"""Save and load the whole state of a run; keep the best and the last apart.

checkpoints/step-00000040/    a model that loads anywhere, and what training needs to go on:
    config.json, model.safetensors, preprocessor_config.json
    optimizer.safetensors, training_state.json
    predictions.jsonl         where this step was the best so far
    manifest.json             every file's size and sha256, written last
best/                         the model files of the best one
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from audiocls.config import seconds_of
from audiocls.errors import InputOutputFailed
from audiocls.model.files import save_model
from audiocls.model.loaded import LoadedModel
from audiocls.reporting.run_log import Window, say
from audiocls.storage import (
    ODD,
    complete_folder,
    damage,
    failing_as,
    finish_swap,
    manifest_of,
    remove_folder,
    write_text,
)
from audiocls.training.verified import check_weights, checked, read_checkpoint

WEIGHTS = "model.safetensors"
TRAINING_FILES = ("optimizer.safetensors", "training_state.json", "predictions.jsonl", "manifest.json")


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
    window: Window = dataclasses.field(default_factory=Window)


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
    if predictions is None and about.items() <= manifest_of(folder).items() and damage(folder) is None:
        return  # nothing has happened since it was saved
    with complete_folder(folder, **about) as unfinished:
        save_model(loaded, unfinished)
        save_file(optimizer_tensors(loaded.model, optimizer), unfinished / "optimizer.safetensors")
        training_state = {"state": dataclasses.asdict(state), "scaler": scaler.state_dict()}
        (unfinished / "training_state.json").write_text(json.dumps(training_state, indent=2))
        if predictions is not None:
            (unfinished / "predictions.jsonl").write_text(predictions, encoding="utf-8")
    folders = step_folders(run_folder)
    # Each of those that stay may be resumed from, and then needs the one that was best up to there.
    best_steps = {manifest_of(folder).get("best_step") for folder in folders[-keep:]}
    for old in folders[:-keep]:
        if manifest_of(old).get("step") not in best_steps:
            remove_folder(old)


def is_every(every: int | str | None, step: int, seconds: float) -> bool:
    """Whether `every`, so many steps or so much time (10m), has come with `step` or is over by `seconds`."""
    if every is None:
        return False
    return step % every == 0 if isinstance(every, int) else seconds >= seconds_of(every)


def export_best(run_folder: Path, step: int) -> None:
    """Make `best/` and `predictions.jsonl` those of the checkpoint at `step`, unless they are."""
    best, folder = run_folder / "best", step_folder(run_folder, step)
    finish_swap(best)
    if damage(best) is not None or not same_model(best, folder):
        with complete_folder(best, step=step) as unfinished:
            for name in manifest_of(folder)["files"]:
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
    folders = step_folders(run_folder)
    for folder in reversed(folders):
        try:
            saved = read_checkpoint(folder, model, scaler.state_dict())
            state = checked(TrainState, saved.state)
            check_position(state)
            check_best(run_folder, state.best_step, model)
        except ValueError as error:
            say(f"note: {folder} is passed over: {error}")
            continue
        model.load_state_dict(saved.weights)
        load_optimizer_tensors(model, optimizer, saved.optimizer)
        scaler.load_state_dict(saved.scaler)
        for later in folders[folders.index(folder) + 1 :]:  # its steps will be taken again
            remove_folder(later)
        # The run may have ended between the save and the export.
        best = state.best_step
        if best is not None and holds_model(step_folder(run_folder, best), best, model):
            export_best(run_folder, best)
        state.log_bytes = whole_records(run_folder / "metrics.jsonl", state.log_bytes)
        return state
    if folders:
        raise InputOutputFailed(
            f"None of the checkpoints in {run_folder} is whole: there is nothing to resume."
        )
    say(f"{run_folder} holds no checkpoint yet: starting at step 0")
    return TrainState()


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
    finish_swap(run_folder / "best")
    folders = (run_folder / "best", step_folder(run_folder, step or 0))
    if step is not None and not any(holds_model(folder, step, model) for folder in folders):
        raise ValueError(f"the best so far, {step_folder(run_folder, step).name}, is damaged or gone")


def same_model(best: Path, folder: Path) -> bool:
    """Whether best/ was made of this checkpoint: another one of the same step may have been damaged."""
    of_best, of_folder = manifest_of(best), manifest_of(folder)
    same_step = of_best.get("step") == of_folder["step"]
    return same_step and of_best["files"].get(WEIGHTS) == of_folder["files"][WEIGHTS]


def is_whole(folder: Path, step: int) -> bool:
    """Whether a folder is what its manifest says, of that step, its weights among it."""
    manifest = manifest_of(folder)
    return manifest.get("step") == step and damage(folder) is None and WEIGHTS in manifest["files"]


def holds_model(folder: Path, step: int, model: nn.Module) -> bool:
    """Whether a folder is whole, and holds finite weights of such a model."""
    try:
        check_weights(load_file(folder / WEIGHTS), model)
    except ODD:
        return False
    return is_whole(folder, step)


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


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state as named tensors: `<parameter>/<exp_avg, exp_avg_sq or step>`."""
    return {
        f"{name}/{key}": value.contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(model: nn.Module, optimizer: Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    state: dict[nn.Parameter, dict[str, Any]] = {}
    for key, value in tensors.items():
        name, _, part = key.rpartition("/")
        # Adam's step count stays on the CPU or the GPU as the optimizer wants it: load_state_dict knows.
        state.setdefault(parameters[name], {})[part] = value
    numbers = {p: i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    optimizer.load_state_dict(
        {
            "state": {numbers[parameter]: parts for parameter, parts in state.items()},
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )
