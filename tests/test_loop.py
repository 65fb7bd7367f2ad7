"""The training loop's promises: what a step is, what is logged, what is kept, and that nothing is lost."""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RANDOM, Run, collator
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score
from torch.nn import functional as F
from transformers import get_scheduler

from audiocls.config import TrainConfig
from audiocls.data.batch_plan import BatchPlan
from audiocls.data.prepare import RunData
from audiocls.errors import NumbersBroke
from audiocls.model.backbone import load_for_training, open_backbone
from audiocls.model.loaded import LoadedModel
from audiocls.signals import StopSignal
from audiocls.training import loop
from audiocls.training.evaluation import Evaluation, evaluate
from audiocls.training.optim import scheduled_learning_rate

CPU = torch.device("cpu")
TIMES = ("samples_per_second", "audio_seconds_per_second", "data_wait_seconds", "wall_seconds")

MakeData = Callable[..., RunData]
MakeModel = Callable[..., LoadedModel]
TrainIn = Callable[..., Run]


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Every bit alike."""
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def without_times(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


def logged(records: Iterable[dict[str, Any]], key: str) -> list[Any]:
    return [record[key] for record in records]


def watch_training(loaded: LoadedModel, change: Callable[[int, torch.Tensor], torch.Tensor]) -> None:
    """Put `change(number of the forward pass from 0, logits)` in the place of the logits, while training."""
    passes = itertools.count()

    def forward_hook(model: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        return change(next(passes), logits) if model.training else logits

    loaded.model.register_forward_hook(forward_hook)


# A step


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[list[torch.Tensor]]:
    """Each step's gradient after clipping, a tensor a parameter, filled as training goes."""
    seen: list[list[torch.Tensor]] = []
    clip = loop.clip_grad_norm_

    def remember(parameters: Iterable[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
        parameters = list(parameters)
        norm = clip(parameters, max_norm)
        seen.append([parameter.grad.clone() for parameter in parameters])
        return norm

    monkeypatch.setattr(loop, "clip_grad_norm_", remember)
    return seen


def test_a_batch_of_16_is_the_same_step_as_4_times_4_and_as_5_and_5_and_6(
    run_data: MakeData,
    spread_model: MakeModel,
    train_in: TrainIn,
    tmp_path: Path,
    gradients: list[list[torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = run_data(16)
    learning_rate = 1e-5  # what Adam's first step moves every weight by

    def step(name: str, **division: int) -> Run:
        settings = {"max_steps": 1, "warmup_ratio": 0.0, "learning_rate": learning_rate}
        return train_in(tmp_path / name, spread_model(data), data, **settings, **division)

    whole = step("16", batch_size=16, gradient_accumulation_steps=1)
    divided = [step("4x4", batch_size=4, gradient_accumulation_steps=4)]
    order = BatchPlan(16, 16, 16, TrainConfig.seed, 1).steps(0)[0][0]
    ragged = [[order[:5], order[5:10], order[10:]]]  # no flags give 5 + 5 + 6
    monkeypatch.setattr(BatchPlan, "steps", lambda plan, epoch: ragged)
    divided.append(step("5+5+6", batch_size=6, gradient_accumulation_steps=3))

    assert torch.stack([gradient.norm() for gradient in gradients[0]]).norm() == pytest.approx(1, abs=1e-4)
    for run, gradient in zip(divided, gradients[1:], strict=True):
        for key in ("loss", "grad_norm"):  # the latter before clipping; float32 has 7 digits
            assert run.records("train")[0][key] == pytest.approx(whole.records("train")[0][key], rel=2e-6)
        # A gradient of norm 1, summed in another order.
        for ours, theirs in zip(gradient, gradients[0], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
        # A tenth of a step: Adam scales gradients that are all but zero, and their rounding, up to a step.
        for name, tensor in run.weights.items():
            torch.testing.assert_close(tensor, whole.weights[name], atol=learning_rate / 10, rtol=0, msg=name)


def test_450_clips_of_32_times_4_make_4_steps_an_epoch_and_40_with_4_of_warm_up(
    run_data: MakeData, build_model: MakeModel, train_in: TrainIn, tmp_path: Path
) -> None:
    loaded = build_model()
    micro_batches: list[int] = []

    def count(call: int, logits: torch.Tensor) -> torch.Tensor:
        micro_batches.append(len(logits))
        return logits

    watch_training(loaded, count)
    # What is not given here is the guide's.
    run = train_in(tmp_path, loaded, run_data(450, samples=160), learning_rate=1.0)

    records = run.records("train")
    assert logged(records, "step") == list(range(1, 41))
    assert logged(records, "epoch") == [step / 4 for step in range(1, 41)]
    assert micro_batches == 10 * [*[32] * 12, 32, 32, 2]  # the last step is one of its own: 66 clips
    learning_rates = logged(records, "learning_rate")
    assert learning_rates[:5] == [0, 0.25, 0.5, 0.75, 1]
    assert learning_rates[4:] == pytest.approx([1 - step / 36 for step in range(36)])  # falls from there on


def test_a_short_last_step_has_the_gradient_of_its_clips_mean(
    run_data: MakeData,
    spread_model: MakeModel,
    train_in: TrainIn,
    tmp_path: Path,
    gradients: list[list[torch.Tensor]],
) -> None:
    data = run_data(14)
    settings = {"batch_size": 3, "gradient_accumulation_steps": 3, "max_grad_norm": 0.0, "epochs": 1}
    train_in(tmp_path, spread_model(data), data, warmup_ratio=1.0, **settings)  # the first step's rate is 0

    loaded = spread_model(data)
    last = BatchPlan(14, 9, 9, TrainConfig.seed, 1).steps(0)[1][0]
    batch = collator(loaded.backbone)([data.train[index] for index in last])
    F.cross_entropy(loaded.model.train()(**batch.inputs), batch.labels).backward()
    assert len(last) == 5  # 3 + 2
    norm = torch.stack([gradient.norm() for gradient in gradients[1]]).norm().item()
    for ours, parameter in zip(gradients[1], loaded.model.parameters(), strict=True):
        # As above: float32 rounding, relative to the whole gradient.
        torch.testing.assert_close(ours, parameter.grad, atol=1e-6 * norm, rtol=0)


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.1, 0.25, 1.0])
@pytest.mark.parametrize("total_steps", [1, 7, 40])
@pytest.mark.parametrize(
    ("ours", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")]
)
def test_learning_rate_is_transformers_schedule_at_every_step(
    ours: str, theirs: str, total_steps: int, warmup_ratio: float
) -> None:
    peak = 3e-5
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    warmup_steps = math.ceil(warmup_ratio * total_steps)  # TrainingArguments.get_warmup_steps
    schedule = get_scheduler(theirs, optimizer, warmup_steps, total_steps)
    for step in range(total_steps):
        learning_rate = scheduled_learning_rate(step, total_steps, warmup_ratio, peak, ours)
        # Two ways to write one formula in float64.
        assert learning_rate == pytest.approx(schedule.get_last_lr()[0], rel=1e-12, abs=1e-18), step
        optimizer.step()
        schedule.step()


# Numbers that are not finite


def spoil_loss(logits: torch.Tensor) -> torch.Tensor:
    return logits * math.nan


def spoil_gradient(logits: torch.Tensor) -> torch.Tensor:
    logits.register_hook(lambda gradient: gradient * math.inf)
    return logits


@pytest.mark.parametrize("spoil", [spoil_loss, spoil_gradient])
def test_what_is_not_finite_touches_neither_weights_nor_optimizer_and_is_counted(
    spoil: Callable[[torch.Tensor], torch.Tensor],
    run_data: MakeData,
    build_model: MakeModel,
    train_in: TrainIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    optimizers: list[torch.optim.Optimizer] = []
    make_optimizer = loop.make_optimizer

    def remember(*args: Any) -> torch.optim.Optimizer:
        optimizers.append(make_optimizer(*args))
        return optimizers[0]

    monkeypatch.setattr(loop, "make_optimizer", remember)
    loaded = build_model()
    snapshots: list[dict[str, torch.Tensor]] = []

    def spoil_third_step(call: int, logits: torch.Tensor) -> torch.Tensor:
        if call % 2 == 0:
            moments = {
                f"{number}/{key}": tensor.clone()
                for number, state in optimizers[0].state_dict()["state"].items()
                for key, tensor in state.items()
            }
            weights = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
            snapshots.append(weights | moments)
        return spoil(logits) if call == 5 else logits  # the second micro-batch of the third step

    watch_training(loaded, spoil_third_step)
    settings = {"batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 6, "warmup_ratio": 0.0}
    run = train_in(tmp_path, loaded, run_data(24), **settings)

    assert_same(snapshots[3], snapshots[2])
    assert any(not torch.equal(snapshots[2][key], snapshots[1][key]) for key in snapshots[1])
    assert any(not torch.equal(snapshots[4][key], snapshots[3][key]) for key in snapshots[3])
    assert run.state is not None
    assert (run.state.step, run.state.steps_taken, run.state.non_finite_in_a_row) == (6, 5, 0)
    third, fourth = run.records("train")[2:4]
    assert third["grad_norm"] is None
    assert third["learning_rate"] == fourth["learning_rate"]
    assert (third["loss"] is None) == (spoil is spoil_loss)


@pytest.mark.parametrize("finite_call", [None, 19])
def test_20_non_finite_steps_in_a_row_break_the_run_and_19_do_not(
    finite_call: int | None, run_data: MakeData, build_model: MakeModel, train_in: TrainIn, tmp_path: Path
) -> None:
    loaded = build_model()
    watch_training(loaded, lambda call, logits: logits if call == finite_call else spoil_loss(logits))
    settings = {"batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 25, "eval_every": 25}
    if finite_call is None:
        with pytest.raises(NumbersBroke, match=r"^20 losses or gradients in a row .* up to step 20\."):
            train_in(tmp_path, loaded, run_data(24), **settings)
    else:
        run = train_in(tmp_path, loaded, run_data(24), **settings)
        assert run.state is not None
        assert (run.state.steps_taken, run.state.non_finite_in_a_row) == (1, 5)


# What is logged


def test_each_record_has_the_keys_of_its_kind_and_the_end_is_the_last(
    run_data: MakeData, build_model: MakeModel, train_in: TrainIn, tmp_path: Path
) -> None:
    data = run_data(12, num_test=7)
    settings = {"batch_size": 4, "gradient_accumulation_steps": 1, "epochs": 2, "eval_every": 2}
    run = train_in(tmp_path, build_model(), data, with_finish=True, **settings)
    timing = ["samples_per_second", "audio_seconds_per_second", "data_wait_seconds", "padding_share"]
    scores = ["loss", "accuracy", "macro_f1", "num_samples"]
    expected = {
        "train": ["kind", "step", "epoch", "loss", "learning_rate", "grad_norm", *timing],
        "eval": ["kind", "step", "epoch", *scores, "is_best"],
        "test": ["kind", "step", "epoch", *scores],
        "end": ["kind", "step", "best_step", "best_metric", "best_score", "wall_seconds", "reason"],
    }
    records = run.records()
    assert [list(record) for record in records] == [expected[record["kind"]] for record in records]
    in_order = [*["train", "train", "eval"] * 3, "test", "end"]
    assert logged(records, "kind") == in_order

    evaluations, test, end = run.records("eval"), run.records("test")[0], records[-1]
    best = next(record for record in reversed(evaluations) if record["is_best"])
    assert best["accuracy"] == max(logged(evaluations, "accuracy"))
    assert (test["step"], test["epoch"], test["num_samples"]) == (best["step"], best["epoch"], 7)
    assert (end["step"], end["best_step"]) == (6, best["step"])
    assert (end["best_metric"], end["best_score"]) == ("accuracy", best["accuracy"])
    assert (end["reason"], end["wall_seconds"] > 0) == ("epochs", True)


def test_reason_of_the_end_is_max_steps_where_they_were_given(
    run_data: MakeData, build_model: MakeModel, train_in: TrainIn, tmp_path: Path
) -> None:
    run = train_in(tmp_path, build_model(), run_data(12), with_finish=True, batch_size=4, max_steps=2)
    assert run.records("end")[0]["reason"] == "max_steps"


def test_logged_loss_is_the_mean_over_the_clips_since_the_last_line(
    run_data: MakeData, spread_model: MakeModel, train_in: TrainIn, tmp_path: Path
) -> None:
    data = run_data(10)
    settings = {"batch_size": 2, "gradient_accumulation_steps": 2, "epochs": 3, "learning_rate": 1e-3}
    each = train_in(tmp_path / "each", spread_model(data), data, **settings).records("train")
    some = train_in(tmp_path / "some", spread_model(data), data, log_every=4, **settings).records("train")

    clips = np.array([4, 4, 2] * 3)
    losses = np.array(logged(each, "loss"))
    ends = [4, 8, 9]  # the last step is always logged
    assert logged(some, "step") == ends
    for record, start, end in zip(some, [0, *ends], ends, strict=False):
        window = slice(start, end)
        mean = np.average(losses[window], weights=clips[window])
        assert record["loss"] == pytest.approx(mean, abs=1e-12)  # float64 sums of the same losses
    assert abs(losses[:4].mean() - some[0]["loss"]) > 1e-5  # and not the mean of the steps' means


# Stop and resume

RESUMED = {
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "epochs": 2,
    "learning_rate": 1e-3,
    "eval_batch_size": 5,  # of 12 clips: three batches
}


def stop_in(loaded: LoadedModel, stop: StopSignal, during: str, number: int) -> None:
    """Ask for the end during the `number`-th forward pass of training or of evaluation."""
    passes = itertools.count(1)

    def forward_hook(model: Any, args: Any, output: Any) -> None:
        if model.training == (during == "training") and next(passes) == number:
            stop.requested = True

    loaded.model.register_forward_hook(forward_hook)


# 15 clips make 8 micro-batches an epoch, in steps of 2.
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("during", "number", "eval_every", "stops_after"),
    [
        pytest.param("training", 1, "epoch", 0, id="in the first step"),
        pytest.param("training", 5, "epoch", 2, id="in the middle of a step"),
        pytest.param("training", 6, "epoch", 3, id="at the end of a step"),
        pytest.param("training", 8, 3, 4, id="at the end of an epoch without an evaluation"),
        pytest.param("training", 8, "epoch", 4, id="at the end of an epoch, before its evaluation"),
        pytest.param("evaluation", 2, "epoch", 4, id="in the evaluation that ends an epoch"),
        pytest.param("evaluation", 3, "epoch", 4, id="at the end of an evaluation"),
        pytest.param("evaluation", 5, "epoch", 8, id="in the last evaluation"),
        pytest.param("training", 11, "epoch", 5, id="in the middle of a step of the second epoch"),
    ],
)
def test_an_interrupted_and_resumed_run_is_bit_for_bit_the_uninterrupted_one(
    during: str,
    number: int,
    eval_every: int | str,
    stops_after: int,
    num_workers: int,
    run_data: MakeData,
    build_model: MakeModel,
    spread_model: MakeModel,
    train_in: TrainIn,
    stop: StopSignal,
    tmp_path: Path,
) -> None:
    data = run_data(15)
    settings = RESUMED | {"log_every": 3, "eval_every": eval_every, "num_workers": num_workers}
    whole = train_in(
        tmp_path / "whole",
        spread_model(data, **RANDOM),
        data,
        with_finish=True,
        **settings | {"num_workers": 0},
    )
    loaded = spread_model(data, **RANDOM)
    stop_in(loaded, stop, during, number)
    stopped = train_in(tmp_path / "parts", loaded, data, **settings)
    assert stopped.state is None
    assert checkpoints(stopped.folder)[-1] == stops_after

    stop.requested = False
    # Another head: what the model was made with does not matter.
    other = build_model(seed=1, **RANDOM)
    resumed = train_in(tmp_path / "parts", other, data, with_finish=True, resume=True, **settings)
    assert_same_run(resumed, whole)


def assert_same_run(ours: Run, theirs: Run) -> None:
    """Every bit of what a run leaves is alike, but for the times."""
    assert_same(ours.weights, theirs.weights)
    assert without_times(ours.records()) == without_times(theirs.records())
    newest = f"checkpoints/step-{checkpoints(theirs.folder)[-1]:08d}"
    for file in (f"{newest}/model.safetensors", f"{newest}/optimizer.safetensors", "best/model.safetensors"):
        assert_same(load_file(ours.folder / file), load_file(theirs.folder / file))
    predictions = [(run.folder / "predictions.jsonl").read_text() for run in (ours, theirs)]
    assert predictions[0] == predictions[1]


def test_an_evaluation_that_was_stopped_is_neither_scored_nor_saved_as_done(
    run_data: MakeData, build_model: MakeModel, train_in: TrainIn, stop: StopSignal, tmp_path: Path
) -> None:
    data = run_data(15)
    loaded = build_model()
    stop_in(loaded, stop, "evaluation", 2)
    stopped = train_in(tmp_path, loaded, data, **RESUMED)
    assert [record["step"] for record in stopped.records("train")] == [1, 2, 3, 4]
    assert stopped.records("eval") == []
    assert not (tmp_path / "best").exists()

    def due() -> bool:
        path = tmp_path / "checkpoints" / "step-00000004" / "training_state.json"
        return json.loads(path.read_text())["state"]["evaluation_is_due"]

    assert due()
    stop.requested = False
    resumed = train_in(tmp_path, build_model(), data, resume=True, **RESUMED)
    assert [record["step"] for record in resumed.records("eval")] == [4, 8]
    assert not due()  # saved anew, also where it is not the best


@pytest.mark.parametrize(
    ("every", "saved"), [(3, [3, 4, 6, 8]), ("0.001s", list(range(1, 9))), ("1h", [4, 8])]
)
def test_checkpoints_between_evaluations_change_nothing_else(
    every: int | str,
    saved: list[int],
    run_data: MakeData,
    spread_model: MakeModel,
    train_in: TrainIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[int] = []
    save = loop.save_checkpoint

    def remember(*args: Any, **options: Any) -> None:
        steps.append(args[4].step)
        save(*args, **options)

    data = run_data(15)
    whole = train_in(tmp_path / "whole", spread_model(data, **RANDOM), data, with_finish=True, **RESUMED)
    monkeypatch.setattr(loop, "save_checkpoint", remember)
    run = train_in(
        tmp_path / "run",
        spread_model(data, **RANDOM),
        data,
        with_finish=True,
        checkpoint_every=every,
        **RESUMED,
    )
    assert steps == saved
    assert_same_run(run, whole)


def test_more_epochs_go_on_from_the_last_step_and_the_new_schedule_is_said(
    run_data: MakeData,
    build_model: MakeModel,
    train_in: TrainIn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = run_data(15)
    train_in(tmp_path, build_model(), data, **RESUMED)
    run = train_in(tmp_path, build_model(), data, resume=True, **RESUMED | {"epochs": 3})
    assert "the learning rate's schedule is now over 12 steps, not 8" in capsys.readouterr().out
    assert [record["step"] for record in run.records("train")] == list(range(1, 13))


class Crash(Exception):
    """The process ends here, without a signal that would let it save anything."""


def test_a_run_that_crashed_between_checkpoints_is_resumed_bit_for_bit(
    run_data: MakeData, spread_model: MakeModel, train_in: TrainIn, tmp_path: Path
) -> None:
    data = run_data(15)
    settings = RESUMED | {"epochs": 3}
    whole = train_in(tmp_path / "whole", spread_model(data, **RANDOM), data, with_finish=True, **settings)

    def crash(call: int, logits: torch.Tensor) -> torch.Tensor:
        if call == 13:
            raise Crash
        return logits

    loaded = spread_model(data, **RANDOM)
    watch_training(loaded, crash)
    with pytest.raises(Crash):
        train_in(tmp_path / "parts", loaded, data, **settings)
    resumed = train_in(
        tmp_path / "parts", spread_model(data, **RANDOM), data, with_finish=True, resume=True, **settings
    )
    assert_same_run(resumed, whole)


def test_a_run_that_crashed_before_its_best_was_exported_is_resumed_bit_for_bit(
    run_data: MakeData,
    spread_model: MakeModel,
    train_in: TrainIn,
    tmp_path: Path,
) -> None:
    data = run_data(15)
    whole = train_in(tmp_path / "whole", spread_model(data, **RANDOM), data, with_finish=True, **RESUMED)

    def crash(run_folder: Path, step: int) -> None:
        raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "export_best", crash)
        with pytest.raises(Crash):
            train_in(tmp_path / "parts", spread_model(data, **RANDOM), data, **RESUMED)
    assert not (tmp_path / "parts" / "best").exists()
    resumed = train_in(
        tmp_path / "parts", spread_model(data, **RANDOM), data, with_finish=True, resume=True, **RESUMED
    )
    assert_same_run(resumed, whole)


def test_an_interrupted_fp16_run_goes_on_with_the_scale_it_had(
    run_data: MakeData,
    spread_model: MakeModel,
    train_in: TrainIn,
    stop: StopSignal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Halved in the first steps: a scale that began anew would skip steps again.
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**16))
    data = run_data(15)
    settings = RESUMED | {"precision": "fp16", "epochs": 3}
    whole = train_in(tmp_path / "whole", spread_model(data, **RANDOM), data, with_finish=True, **settings)
    skipped = [record["grad_norm"] is None for record in whole.records("train")]
    assert skipped[0]
    assert not all(skipped)

    loaded = spread_model(data, **RANDOM)
    stop_in(loaded, stop, "training", 13)
    train_in(tmp_path / "parts", loaded, data, **settings)
    stop.requested = False
    resumed = train_in(
        tmp_path / "parts", spread_model(data, **RANDOM), data, with_finish=True, resume=True, **settings
    )
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("best_step", [1, 2, 3])
def test_a_damaged_newest_checkpoint_is_passed_over_wherever_the_best_is(
    best_step: int,
    run_data: MakeData,
    spread_model: MakeModel,
    train_in: TrainIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = run_data(12)
    # The accuracy falls, but at one step.
    accuracies = [0.9 if step == best_step else 0.5 - step / 100 for step in range(1, 4)]
    script: list[float] = []

    def scripted(*args: Any) -> Evaluation:
        return dataclasses.replace(evaluate(*args), accuracy=script.pop(0))

    monkeypatch.setattr(loop, "evaluate", scripted)
    settings = {"batch_size": 4, "gradient_accumulation_steps": 3, "epochs": 3, "save_total_limit": 2}
    script += accuracies
    whole = train_in(tmp_path, spread_model(data), data, with_finish=True, **settings)
    weights, records = whole.weights, whole.records()
    with (tmp_path / "checkpoints" / "step-00000003" / "optimizer.safetensors").open("r+b") as file:
        file.truncate(100)

    script += accuracies[2:]
    resumed = train_in(tmp_path, spread_model(data), data, with_finish=True, resume=True, **settings)
    assert_same(resumed.weights, weights)
    assert without_times(resumed.records()) == without_times(records)
    best = json.loads((tmp_path / "best" / "manifest.json").read_text())
    assert best["step"] == best_step


def test_the_resumed_runs_are_random_enough_to_prove_something(
    run_data: MakeData, spread_model: MakeModel, train_in: TrainIn, tmp_path: Path
) -> None:
    data = run_data(15)
    still = train_in(tmp_path / "still", spread_model(data), data, **RESUMED)
    random = train_in(tmp_path / "random", spread_model(data, **RANDOM), data, **RESUMED)
    pairs = zip(logged(still.records("train"), "loss"), logged(random.records("train"), "loss"), strict=True)
    assert min(abs(ours - theirs) for ours, theirs in pairs) > 1e-3


def test_audio_of_a_discarded_micro_batch_is_heard_once(
    run_data: MakeData, build_model: MakeModel, train_in: TrainIn, stop: StopSignal, tmp_path: Path
) -> None:
    data = run_data(15)
    settings = RESUMED | {"log_every": 8}
    loaded = build_model()
    stop_in(loaded, stop, "training", 5)  # the first half of the third step
    train_in(tmp_path, loaded, data, **settings)
    stop.requested = False
    record = train_in(tmp_path, build_model(), data, resume=True, **settings).records("train")[-1]
    seconds_a_clip = record["audio_seconds_per_second"] / record["samples_per_second"]
    assert seconds_a_clip == pytest.approx(800 / 16_000)


def test_resuming_a_finished_run_changes_nothing(
    run_data: MakeData, build_model: MakeModel, train_in: TrainIn, tmp_path: Path
) -> None:
    data = run_data(15, num_test=6)
    first = train_in(tmp_path, build_model(), data, with_finish=True, **RESUMED)
    records, predictions = first.records(), (tmp_path / "predictions.jsonl").read_text()
    again = train_in(tmp_path, build_model(seed=1), data, with_finish=True, resume=True, **RESUMED)
    assert without_times(again.records()) == without_times(records)
    assert (tmp_path / "predictions.jsonl").read_text() == predictions


# The best


@pytest.mark.parametrize(
    ("metric", "scores", "is_best"),
    [
        ("accuracy", [0.5, 0.4, 0.5, 0.7, 0.6, 0.7, 0.1], [1, 0, 0, 1, 0, 0, 0]),
        ("macro_f1", [0.0, 0.0, 0.2, 0.1, 0.2, 0.1, 0.1], [1, 0, 1, 0, 0, 0, 0]),
        ("loss", [math.nan, 2.0, 2.0, 3.0, math.inf, 1.0, 1.5], [0, 1, 0, 0, 0, 1, 0]),
    ],
)
def test_best_is_the_first_of_the_best_and_nothing_worse_touches_it(
    metric: str,
    scores: list[float],
    is_best: list[int],
    run_data: MakeData,
    build_model: MakeModel,
    train_in: TrainIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = iter(scores)
    touched: list[dict[str, int]] = []

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_ctime_ns for path in (tmp_path / "best").glob("*")}

    def scripted(*args: Any) -> Evaluation:
        touched.append(times())
        return dataclasses.replace(evaluate(*args), **{metric: next(script)})

    monkeypatch.setattr(loop, "evaluate", scripted)
    settings = {"batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 7, "eval_every": 1}
    run = train_in(tmp_path, build_model(), run_data(12), best_metric=metric, save_total_limit=2, **settings)
    touched.append(times())

    changed = [int(after != before) for before, after in itertools.pairwise(touched)]
    assert changed == is_best
    assert logged(run.records("eval"), "is_best") == [bool(flag) for flag in is_best]
    finite = [score if math.isfinite(score) else None for score in scores]
    assert logged(run.records("eval"), metric) == finite

    best_step = max(step for step, flag in enumerate(is_best, start=1) if flag)
    assert run.state is not None
    assert (run.state.best_step, run.state.best_score) == (best_step, scores[best_step - 1])
    assert checkpoints(tmp_path) == sorted({best_step, 6, 7})  # the newest two, and the best
    kept = tmp_path / "checkpoints" / f"step-{best_step:08d}"
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert (tmp_path / "best" / name).read_bytes() == (kept / name).read_bytes()
    assert (tmp_path / "predictions.jsonl").read_bytes() == (kept / "predictions.jsonl").read_bytes()


@pytest.mark.parametrize("best_metric", ["loss", "accuracy"])  # the accuracy of logits that are NaN is finite
def test_a_run_without_one_finite_loss_has_no_best_and_says_so(
    best_metric: str, run_data: MakeData, build_model: MakeModel, train_in: TrainIn, tmp_path: Path
) -> None:
    loaded = build_model()
    with torch.no_grad():
        loaded.model.classifier.bias.fill_(math.nan)
    settings = {"batch_size": 4, "max_steps": 2, "best_metric": best_metric}
    with pytest.raises(NumbersBroke, match="No evaluation had a finite loss"):
        train_in(tmp_path, loaded, run_data(12), with_finish=True, **settings)
    assert not (tmp_path / "best").exists()


def test_the_test_set_is_scored_with_the_best_weights_and_not_the_last(
    run_data: MakeData,
    spread_model: MakeModel,
    train_in: TrainIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = run_data(12, num_test=9)
    accuracies = iter([0.9, 0.1, 0.1])
    monkeypatch.setattr(
        loop,
        "evaluate",
        lambda *args: dataclasses.replace(evaluate(*args), accuracy=next(accuracies, 0.0)),
    )
    settings = {"batch_size": 12, "gradient_accumulation_steps": 1, "epochs": 3, "warmup_ratio": 0.0}
    run = train_in(tmp_path, spread_model(data), data, with_finish=True, learning_rate=1e-2, **settings)

    assert data.test is not None
    config = TrainConfig(num_workers=0)
    best = load_for_training(open_backbone(str(tmp_path / "best")), data.labels, seed=0)
    batches = loop.evaluation_loader(config, data.test, best, CPU)
    expected = evaluate(best.model, batches, CPU, "fp32")
    record = run.records("test")[0]
    assert record["loss"] == pytest.approx(expected.loss, abs=1e-6)  # the same numbers, read from a file
    assert record["step"] == 1
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert logged(lines, "split") == ["evaluation"] * 12 + ["test"] * 9


# What is trained, and how it is saved


def test_weights_stored_in_float16_are_trained_and_saved_in_float32(
    run_data: MakeData, model_folder: Callable[..., Path], train_in: TrainIn, tmp_path: Path
) -> None:
    data = run_data(12)
    backbone = open_backbone(str(model_folder(torch.float16)))
    loaded = load_for_training(backbone, data.labels, seed=0)
    # Steps far below float16's resolution of weights near 1, 0.001: they would be lost.
    run = train_in(tmp_path, loaded, data, batch_size=4, max_steps=1, warmup_ratio=0.0, learning_rate=1e-6)

    assert {tensor.dtype for tensor in run.weights.values()} == {torch.float32}
    saved = load_file(tmp_path / "best" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert json.loads((tmp_path / "best" / "config.json").read_text())["dtype"] == "float32"
    norm = "wav2vec2.encoder.layer_norm.weight"
    assert (saved[norm] - 1).abs().min() > 1e-7


def test_a_saved_gradient_checkpointing_is_off_in_the_model_and_absent_from_what_is_saved(
    run_data: MakeData, model_folder: Callable[..., Path], train_in: TrainIn, tmp_path: Path
) -> None:
    folder = model_folder()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"gradient_checkpointing": True}))
    data = run_data(12)
    loaded = load_for_training(open_backbone(str(folder)), data.labels, seed=0)
    train_in(tmp_path, loaded, data, batch_size=4, max_steps=1)

    assert not any(getattr(module, "gradient_checkpointing", False) for module in loaded.model.modules())
    assert "gradient_checkpointing" not in json.loads((tmp_path / "best" / "config.json").read_text())


# Evaluation


def test_evaluation_is_scikit_learns_and_the_same_in_batches_of_any_size(
    run_data: MakeData, spread_model: MakeModel
) -> None:
    data = run_data(32, num_eval=23)
    loaded = spread_model(data)
    loaded.model.train()
    results = []
    for eval_batch_size in (23, 4, 1):
        config = TrainConfig(eval_batch_size=eval_batch_size, num_workers=0)
        batches = loop.evaluation_loader(config, data.evaluation, loaded, CPU)
        results.append(evaluate(loaded.model, batches, CPU, "fp32"))
        assert loaded.model.training

    clips = [data.evaluation[index] for index in range(23)]
    batch = collator(loaded.backbone)(clips)
    with torch.no_grad():
        logits = loaded.model.eval()(**batch.inputs)
    predicted = logits.argmax(-1).numpy()
    assert len(set(predicted.tolist())) > 1
    for result in results:
        assert result.num_samples == 23
        assert result.accuracy == pytest.approx(accuracy_score(batch.labels, predicted), abs=1e-12)
        assert result.macro_f1 == pytest.approx(f1_score(batch.labels, predicted, average="macro"), abs=1e-12)
        # float32 logits with a spread of 1, from convolutions and products of another shape.
        assert result.loss == pytest.approx(F.cross_entropy(logits, batch.labels).item(), abs=1e-5)
        np.testing.assert_allclose(result.probabilities, logits.softmax(-1), atol=1e-5)


def test_label_smoothing_is_in_the_training_loss_and_not_in_the_evaluations(
    run_data: MakeData, spread_model: MakeModel, train_in: TrainIn, tmp_path: Path
) -> None:
    data = run_data(12)
    loaded = spread_model(data)
    batch = collator(loaded.backbone)([data.train[index] for index in range(12)])
    with torch.no_grad():
        smoothed, plain = (
            F.cross_entropy(loaded.model(**batch.inputs), batch.labels, label_smoothing=s).item()
            for s in (0.3, 0.0)
        )
    settings = {"batch_size": 12, "gradient_accumulation_steps": 1, "max_steps": 1, "warmup_ratio": 1.0}
    run = train_in(tmp_path, loaded, data, label_smoothing=0.3, **settings)  # the first step's rate is 0

    assert abs(smoothed - plain) > 0.01
    assert run.records("train")[0]["loss"] == pytest.approx(smoothed, abs=1e-5)  # clips in another order
    clips = [data.evaluation[index] for index in range(12)]
    batch = collator(loaded.backbone)(clips)
    with torch.no_grad():
        expected = F.cross_entropy(loaded.model.eval()(**batch.inputs), batch.labels).item()
    assert run.records("eval")[0]["loss"] == pytest.approx(expected, abs=1e-6)


# Precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_takes_steps_with_losses_near_those_of_fp32(
    precision: str,
    run_data: MakeData,
    spread_model: MakeModel,
    train_in: TrainIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Spread logits have steep gradients: a scale at which none of them is beyond float16.
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**6))
    data = run_data(12)
    settings = {"batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4, "learning_rate": 1e-4}
    exact = train_in(tmp_path / "fp32", spread_model(data), data, **settings)
    run = train_in(tmp_path / precision, spread_model(data), data, precision=precision, **settings)

    assert run.state is not None
    assert run.state.steps_taken == 4
    assert {tensor.dtype for tensor in run.weights.values()} == {torch.float32}
    ours, theirs = (logged(one.records("train"), "loss") for one in (run, exact))
    assert ours != theirs
    # bf16 has 3 digits, and its rounding adds up over the layers; losses are near 1.
    assert ours == pytest.approx(theirs, abs=0.05)


def test_the_schedule_waits_for_steps_that_fp16s_scaler_skips(
    run_data: MakeData,
    spread_model: MakeModel,
    train_in: TrainIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A scale that float16 cannot hold: the scaler halves it until it fits.
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**20)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    data = run_data(12)
    settings = {"batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 16, "learning_rate": 1e-5}
    run = train_in(tmp_path, spread_model(data), data, precision="fp16", **settings)

    records = run.records("train")
    skipped = [record["grad_norm"] is None for record in records]
    assert run.state is not None
    assert 0 < sum(skipped) < 16
    assert run.state.steps_taken == 16 - sum(skipped)
    taken = np.cumsum([0, *(not skip for skip in skipped)])[:-1]
    expected = [scheduled_learning_rate(int(steps), 16, 0.1, 1e-5, "linear") for steps in taken]
    assert logged(records, "learning_rate") == expected
    assert all(record["loss"] is not None for record in records)
