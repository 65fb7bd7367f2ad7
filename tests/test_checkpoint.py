"""A checkpoint is read and checked whole; the whole of it is in faults/damaged_checkpoints.py."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from audiocls.model.backbone import LoadedModel
from audiocls.training.checkpoint import (
    TrainState,
    check_best,
    check_position,
    checked,
    read_checkpoint,
    save_checkpoint,
    whole_records,
)

STATE = dataclasses.asdict(TrainState(epoch=1, step_in_epoch=2, step=6, steps_taken=5, log_bytes=9))


@pytest.mark.parametrize(
    "changes",
    [
        *({"step": "6"}, {"step": -1}, {"step": True}, {"step": 6.0}, {"step": 10**30}, {"epoch": None}),
        *({"best_score": [1]}, {"best_score": math.inf}, {"wall_seconds": math.nan}),
        *({"since_last_log": None}, {"since_last_log": {}}, {"evil": 1}),
    ],
    ids=str,
)
def test_a_state_of_wrong_types_or_absurd_values_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"training_state\.json"):
        checked(TrainState, STATE | changes)


def test_a_state_comes_back_as_it_was_also_with_a_loss_that_was_not_finite() -> None:
    # Scores like Cohen's kappa may be negative.
    state = TrainState(epoch=1, step_in_epoch=2, step=6, steps_taken=5, best_score=-0.5, best_step=4)
    state.since_last_log.loss_sum = math.nan
    again = checked(TrainState, json.loads(json.dumps(dataclasses.asdict(state))))
    assert math.isnan(again.since_last_log.loss_sum)
    again.since_last_log.loss_sum = state.since_last_log.loss_sum = 0.0
    assert again == state
    check_position(again)


@pytest.mark.parametrize("changes", [{"epoch": 5}, {"epoch": 0}, {"steps_taken": 7}, {"best_step": 7}])
def test_counts_that_cannot_all_be_true_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="do not agree"):
        check_position(TrainState(**(STATE | changes)))


def save(folder: Path, loaded: LoadedModel, step: int) -> dict[str, Any]:
    """A checkpoint of that step; returns its scaler's state."""
    optimizer = torch.optim.AdamW(loaded.model.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    save_checkpoint(folder, loaded, optimizer, scaler, TrainState(step=step, step_in_epoch=step), keep=2)
    return scaler.state_dict()


def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_loaded(
    build_model: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    loaded, other = build_model(), build_model(classifier_proj_size=8)
    scaler = save(tmp_path, loaded, 3)
    folder = tmp_path / "checkpoints" / "step-00000003"
    assert read_checkpoint(folder, loaded.model, scaler).state.step == 3
    before = {name: tensor.clone() for name, tensor in other.model.state_dict().items()}
    with pytest.raises(ValueError, match=r"classifier\.weight"):
        read_checkpoint(folder, other.model, scaler)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.model.state_dict().items())

    # Under another name it is not the checkpoint of that step, nor the best of it.
    folder.rename(folder.with_name("step-00000005"))
    with pytest.raises(ValueError, match="of step 3"):
        read_checkpoint(folder.with_name("step-00000005"), loaded.model, scaler)
    with pytest.raises(ValueError, match="damaged or gone"):
        check_best(tmp_path, 5, loaded.model)


def test_a_best_model_that_is_not_finite_is_none_though_its_manifest_says_so(
    build_model: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    loaded = build_model()
    save(tmp_path, loaded, 2)
    check_best(tmp_path, 2, loaded.model)
    with torch.no_grad():
        loaded.model.classifier.bias[0] = float("nan")
    shutil.rmtree(tmp_path / "checkpoints")
    save(tmp_path, loaded, 2)
    with pytest.raises(ValueError, match="damaged or gone"):
        check_best(tmp_path, 2, loaded.model)


def test_a_log_that_lost_records_is_cut_to_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert whole_records(log, 5) == 0
    log.write_text('{"a": 1}\n{"b"')
    assert whole_records(log, 100) == 9
    assert whole_records(log, 9) == 9
