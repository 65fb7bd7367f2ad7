"""The training loop's promises: what a step is, what is logged, what is kept, and that nothing is lost."""

import dataclasses
import functools
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RANDOM, Lab, Run, collator, without_times
from data_helpers import unbroken
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import get_scheduler

from audiocls.config import TrainConfig
from audiocls.data.batch_plan import BatchPlan
from audiocls.errors import InputOutputFailed, NumbersBroke
from audiocls.metrics import SCORES
from audiocls.model.backbone import LoadedModel
from audiocls.model.loading import load_for_training, open_backbone
from audiocls.training import loop
from audiocls.training.evaluation import Evaluation, evaluate
from audiocls.training.optim import learning_rate_factor

CPU = torch.device("cpu")

Whole = Callable[..., Run]


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Every bit alike."""
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


def logged(records: Iterable[dict[str, Any]], key: str) -> list[Any]:
    return [record[key] for record in records]


def with_scores(result: Evaluation, **scores: float) -> Evaluation:
    """`result` with these scores for those it found."""
    return dataclasses.replace(result, scores=result.scores | scores)


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


@pytest.fixture(params=[0, 1], ids=["as on a CPU", "as on a GPU"])
def steps_behind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came of a step is read before the next one begins, or while it is computed."""
    monkeypatch.setattr(loop, "steps_behind", lambda device: request.param)


def test_a_batch_of_16_is_the_same_step_as_4_times_4_and_as_5_and_5_and_6(
    lab: Lab, gradients: list[list[torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = lab.data(16)
    learning_rate = 1e-5  # what Adam's first step moves every weight by

    def step(name: str, **division: int) -> Run:
        settings = {"max_steps": 1, "warmup_ratio": 0.0, "learning_rate": learning_rate}
        return lab.train(name, lab.spread(data), data, **settings, **division)

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
            torch.testing.assert_close(
                tensor,
                whole.weights[name],
                atol=learning_rate / 10,
                rtol=0,
                msg=f"{name}: {{}}".format,
            )


def test_450_clips_of_32_times_4_make_4_steps_an_epoch_and_40_with_4_of_warm_up(lab: Lab) -> None:
    loaded = lab.build()
    micro_batches: list[int] = []

    def count(call: int, logits: torch.Tensor) -> torch.Tensor:
        micro_batches.append(len(logits))
        return logits

    watch_training(loaded, count)
    # What is not given here is the guide's.
    run = lab.train("run", loaded, lab.data(450, samples=160), learning_rate=1.0)

    records = run.records("train")
    assert logged(records, "step") == list(range(1, 41))
    assert logged(records, "epoch") == [step / 4 for step in range(1, 41)]
    assert micro_batches == 10 * [*[32] * 12, 32, 32, 2]  # the last step is one of its own: 66 clips
    learning_rates = logged(records, "learning_rate")
    assert learning_rates[:5] == [0, 0.25, 0.5, 0.75, 1]
    assert learning_rates[4:] == pytest.approx([1 - step / 36 for step in range(36)])  # falls from there on


def test_a_short_last_step_has_the_gradient_of_its_clips_mean(
    lab: Lab, gradients: list[list[torch.Tensor]]
) -> None:
    data = lab.data(14)
    settings = {"batch_size": 3, "gradient_accumulation_steps": 3, "max_grad_norm": 0.0, "epochs": 1}
    lab.train("run", lab.spread(data), data, warmup_ratio=1.0, **settings)  # the first step's rate is 0

    loaded = lab.spread(data)
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
    with pytest.raises(ValueError, match="no schedule"):
        learning_rate_factor(torch.tensor(total_steps), total_steps, warmup_ratio, "polynomial")
    for step in range(total_steps):
        factor = learning_rate_factor(torch.tensor(step), total_steps, warmup_ratio, ours)
        learning_rate = peak * factor.item()
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


@pytest.mark.usefixtures("steps_behind")
@pytest.mark.parametrize("spoil", [spoil_loss, spoil_gradient])
def test_what_is_not_finite_touches_neither_weights_nor_optimizer_and_is_counted(
    spoil: Callable[[torch.Tensor], torch.Tensor], lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizers: list[torch.optim.Optimizer] = []
    make_optimizer = loop.make_optimizer

    def remember(*args: Any) -> torch.optim.Optimizer:
        optimizers.append(make_optimizer(*args))
        return optimizers[0]

    monkeypatch.setattr(loop, "make_optimizer", remember)
    loaded = lab.build()
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
    run = lab.train("run", loaded, lab.data(24), **settings)

    assert_same(snapshots[3], snapshots[2])
    assert any(not torch.equal(snapshots[2][key], snapshots[1][key]) for key in snapshots[1])
    assert any(not torch.equal(snapshots[4][key], snapshots[3][key]) for key in snapshots[3])
    assert run.state is not None
    assert (run.state.step, run.state.steps_taken, run.state.non_finite_in_a_row) == (6, 5, 0)
    third, fourth = run.records("train")[2:4]
    assert third["grad_norm"] is None
    assert third["learning_rate"] == fourth["learning_rate"]
    assert (third["loss"] is None) == (spoil is spoil_loss)


@pytest.mark.usefixtures("steps_behind")
@pytest.mark.parametrize("finite_call", [None, 19])
def test_20_non_finite_steps_in_a_row_break_the_run_and_19_do_not(finite_call: int | None, lab: Lab) -> None:
    loaded = lab.build()
    watch_training(loaded, lambda call, logits: logits if call == finite_call else spoil_loss(logits))
    settings = {"batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 25, "eval_every": 25}
    if finite_call is None:
        with pytest.raises(NumbersBroke, match=r"^20 losses or gradients in a row .* up to step 20\."):
            lab.train("run", loaded, lab.data(24), **settings)
    else:
        run = lab.train("run", loaded, lab.data(24), **settings)
        assert run.state is not None
        assert (run.state.steps_taken, run.state.non_finite_in_a_row) == (1, 5)


# What is logged


@pytest.mark.usefixtures("steps_behind")
def test_each_record_has_the_keys_of_its_kind_and_the_end_is_the_last(lab: Lab) -> None:
    data = lab.data(12, num_test=7)
    settings = {"batch_size": 4, "gradient_accumulation_steps": 1, "epochs": 2, "eval_every": 2}
    run = lab.train("run", lab.build(), data, with_finish=True, **settings)
    timing = ["clips_per_second", "audio_seconds_per_second", "data_wait_seconds", "padding_share"]
    scores = ["loss", *SCORES, "num_clips"]
    expected = {
        "train": ["kind", "step", "epoch", "loss", "learning_rate", "grad_norm", *timing],
        "eval": ["kind", "step", "epoch", *scores, "is_best", "seconds"],
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
    assert (test["step"], test["epoch"], test["num_clips"]) == (best["step"], best["epoch"], 7)
    assert (end["step"], end["best_step"]) == (6, best["step"])
    assert (end["best_metric"], end["best_score"]) == ("accuracy", best["accuracy"])
    assert (end["reason"], end["wall_seconds"] > 0) == ("epochs", True)


@pytest.mark.usefixtures("steps_behind")
def test_logged_loss_is_the_mean_over_the_clips_since_the_last_line(lab: Lab) -> None:
    data = lab.data(10)
    settings = {"batch_size": 2, "gradient_accumulation_steps": 2, "epochs": 3, "learning_rate": 1e-3}
    each = lab.train("each", lab.spread(data), data, **settings).records("train")
    some = lab.train("some", lab.spread(data), data, log_every=4, **settings).records("train")

    clips = np.array([4, 4, 2] * 3)
    losses = np.array(logged(each, "loss"))
    ends = [4, 8, 9]  # the last step is always logged
    assert logged(some, "step") == ends
    for record, start, end in zip(some, [0, *ends], ends, strict=False):
        window = slice(start, end)
        mean = np.average(losses[window], weights=clips[window])
        assert record["loss"] == pytest.approx(mean, abs=1e-12)  # float64 sums of the same losses
    assert abs(losses[:4].mean() - some[0]["loss"]) > 1e-5  # and not the mean of the steps' means


# Stop and resume: 15 clips make 8 micro-batches an epoch, in steps of 2.

RESUMED = {
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "epochs": 2,
    "learning_rate": 1e-3,
    "eval_batch_size": 5,  # of 12 clips: three batches
}


@pytest.fixture(scope="module")
def finished() -> dict[str, Run]:
    """What `whole` has made so far."""
    return {}


@pytest.fixture
def whole(lab: Lab, finished: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """whole(**settings): the run, with everything random, to which nothing happens."""

    def make(**settings: Any) -> Run:
        if repr(settings) not in finished:
            elsewhere = dataclasses.replace(lab, folder=tmp_path_factory.mktemp("whole"))
            finished[repr(settings)] = go(elsewhere, **settings, with_finish=True)
        return finished[repr(settings)]

    return make


def go(lab: Lab, loaded: LoadedModel | None = None, **settings: Any) -> Run:
    data = lab.data(15)
    return lab.train("run", loaded or lab.spread(data, **RANDOM), data, **settings)


def resume(lab: Lab, **settings: Any) -> Run:
    """To the end, with another head: what the model was made with does not matter."""
    lab.stop.requested = False
    return go(lab, lab.build(seed=1, **RANDOM), **settings, with_finish=True, resume=True)


def stop_in(lab: Lab, loaded: LoadedModel, during: str, number: int) -> LoadedModel:
    """Request a stop in the `number`-th forward pass of "training" or "evaluation", or "optimizer" step."""
    passes = itertools.count(1)

    def hook(who: Any, *args: Any) -> None:
        is_here = during == "optimizer" or who.training == (during == "training")
        if is_here and next(passes) == number:
            lab.stop.requested = True

    if during == "optimizer":
        handle = register_optimizer_step_post_hook(hook)
        loaded.model.register_forward_hook(lambda *args: handle.remove() if lab.stop.requested else None)
    else:
        loaded.model.register_forward_hook(hook)
    return loaded


def assert_same_run(ours: Run, theirs: Run) -> None:
    """Every bit of what a run leaves is alike, but for the times."""
    assert_same(ours.weights, theirs.weights)
    assert without_times(ours.records()) == without_times(theirs.records())
    newest = f"checkpoints/step-{checkpoints(theirs.folder)[-1]:08d}"
    for file in (f"{newest}/model.safetensors", f"{newest}/optimizer.safetensors", "best/model.safetensors"):
        assert_same(load_file(ours.folder / file), load_file(theirs.folder / file))
    predictions = [(run.folder / "predictions.jsonl").read_text() for run in (ours, theirs)]
    assert predictions[0] == predictions[1]


@pytest.mark.usefixtures("steps_behind")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("during", "number", "eval_every", "stops_after"),
    [
        pytest.param("training", 1, "epoch", 0, id="in the first step"),
        pytest.param("training", 5, "epoch", 2, id="in the middle of a step"),
        pytest.param("training", 6, "epoch", 2, id="in the last micro-batch of a step"),
        pytest.param("optimizer", 3, "epoch", 3, id="at the end of a step"),
        pytest.param("optimizer", 4, 3, 4, id="at the end of an epoch without an evaluation"),
        pytest.param("optimizer", 4, "epoch", 4, id="at the end of an epoch, before its evaluation"),
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
    lab: Lab,
    whole: Whole,
) -> None:
    settings = RESUMED | {"log_every": 3, "eval_every": eval_every}
    loaded = stop_in(lab, lab.spread(lab.data(15), **RANDOM), during, number)
    stopped = go(lab, loaded, num_workers=num_workers, **settings)
    assert stopped.state is None
    assert checkpoints(stopped.folder)[-1] == stops_after
    assert_same_run(resume(lab, num_workers=num_workers, **settings), whole(**settings))


@pytest.mark.usefixtures("steps_behind")
@pytest.mark.parametrize(
    ("every", "saved"),
    [(3, [3, 4, 6, 8]), ("0.001s", list(range(1, 9))), ("1h", [4, 8]), (None, [4, 8])],
)
def test_checkpoints_between_evaluations_change_nothing_else(
    every: int | str | None, saved: list[int], lab: Lab, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, steps = whole(**RESUMED), []
    save = loop.save_checkpoint

    def remember(*args: Any, **options: Any) -> None:
        steps.append(args[4].step)
        save(*args, **options)

    monkeypatch.setattr(loop, "save_checkpoint", remember)
    run = go(lab, with_finish=True, checkpoint_every=every, **RESUMED)
    if every == "0.001s" and loop.steps_behind(CPU):  # the clock comes with the numbers of the step before
        saved = [2, 4, 6, 8]
    assert steps == saved
    assert_same_run(run, theirs)


def test_more_epochs_go_on_from_the_last_step_and_the_new_schedule_is_said(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    go(lab, **RESUMED)
    run = resume(lab, **RESUMED | {"epochs": 3})
    assert "the learning rate's schedule is now over 12 steps, not 8" in unbroken(capsys.readouterr().out)
    assert run.logged("train", "step") == list(range(1, 13))


class Crash(Exception):
    """The process ends here, without a signal that would let it save anything."""


@pytest.mark.usefixtures("steps_behind")
@pytest.mark.parametrize("where", ["between two checkpoints", "before its best is exported"])
def test_a_run_that_crashed_is_resumed_bit_for_bit(where: str, lab: Lab, whole: Whole) -> None:
    def crash(*args: Any) -> None:
        raise Crash

    loaded = lab.spread(lab.data(15), **RANDOM)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        if where == "between two checkpoints":
            watch_training(loaded, lambda call, logits: crash() if call == 13 else logits)
        else:
            patch.setattr(loop, "export_best", crash)
        go(lab, loaded, **RESUMED)
    assert (lab.folder / "run" / "best").exists() == (where == "between two checkpoints")
    assert_same_run(resume(lab, **RESUMED), whole(**RESUMED))


def test_an_interrupted_fp16_run_goes_on_with_the_scale_it_had(
    lab: Lab, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Halved in the first steps: a scale that began anew would skip steps again.
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**16))
    settings = RESUMED | {"precision": "fp16", "epochs": 3}
    norms = whole(**settings).logged("train", "grad_norm")
    assert norms[0] is None
    assert any(norms)
    go(lab, stop_in(lab, lab.spread(lab.data(15), **RANDOM), "training", 13), **settings)
    assert_same_run(resume(lab, **settings), whole(**settings))


@pytest.mark.parametrize("best_step", [1, 2, 3])
def test_a_damaged_newest_checkpoint_is_passed_over_wherever_the_best_is(
    best_step: int, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = lab.data(12)
    # The accuracy falls, but at one step.
    accuracies = [0.9 if step == best_step else 0.5 - step / 100 for step in range(1, 4)]
    script: list[float] = []

    def scripted(*args: Any) -> Evaluation:
        return with_scores(evaluate(*args), accuracy=script.pop(0))

    monkeypatch.setattr(loop, "evaluate", scripted)
    settings = {"batch_size": 4, "gradient_accumulation_steps": 3, "epochs": 3, "save_total_limit": 2}
    script += accuracies
    whole = lab.train("run", lab.spread(data), data, with_finish=True, **settings)
    weights, records = whole.weights, whole.records()
    with (lab.folder / "run" / "checkpoints" / "step-00000003" / "optimizer.safetensors").open("r+b") as file:
        file.truncate(100)

    script += accuracies[2:]
    resumed = lab.train("run", lab.spread(data), data, with_finish=True, resume=True, **settings)
    assert_same(resumed.weights, weights)
    assert without_times(resumed.records()) == without_times(records)
    best = json.loads((lab.folder / "run" / "best" / "checksums.json").read_text())
    assert best["step"] == best_step


def test_a_best_model_that_was_changed_is_made_anew_on_resume_or_its_loss_is_explained(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.9, 0.1, 0.1, 0.1])
    scripted = lambda *args: with_scores(evaluate(*args), accuracy=next(accuracies))  # noqa: E731
    monkeypatch.setattr(loop, "evaluate", scripted)
    settings = {"batch_size": 12, "gradient_accumulation_steps": 1, "epochs": 3, "save_total_limit": 2}
    run = lab.train("run", lab.build(), lab.data(12), **settings)
    best, config = run.folder / "best", (run.folder / "best" / "config.json").read_text()
    (best / "config.json").write_text(config.replace("hiss", "sizzle"))
    (best / "checksums.json").unlink()  # as a person does who wants to keep that
    capsys.readouterr()
    lab.train("run", lab.build(), lab.data(12), resume=True, **settings)
    assert "best is made anew, as it was at step 1: checksums.json is missing" in unbroken(
        capsys.readouterr().out
    )
    assert (best / "config.json").read_text() == config

    (best / "checksums.json").unlink()
    shutil.rmtree(run.folder / "checkpoints" / "step-00000001")
    why = r"step-00000001, is damaged or gone, and not in best/: checksums.json is missing\.$"
    with pytest.raises(InputOutputFailed, match=why):
        lab.train("run", lab.build(), lab.data(12), resume=True, **settings)


def test_the_resumed_runs_are_random_enough_to_prove_something(lab: Lab, whole: Whole) -> None:
    still = go(lab, lab.spread(lab.data(15)), **RESUMED)
    pairs = zip(still.logged("train", "loss"), whole(**RESUMED).logged("train", "loss"), strict=True)
    assert min(abs(ours - theirs) for ours, theirs in pairs) > 1e-3


@pytest.mark.usefixtures("steps_behind")
def test_audio_of_a_discarded_micro_batch_is_counted_once(lab: Lab) -> None:
    settings = RESUMED | {"log_every": 8}
    go(lab, stop_in(lab, lab.build(**RANDOM), "training", 5), **settings)  # the first half of the third step
    record = resume(lab, **settings).records("train")[-1]
    seconds_a_clip = record["audio_seconds_per_second"] / record["clips_per_second"]
    assert seconds_a_clip == pytest.approx(800 / 16_000)


def test_resuming_a_finished_run_changes_nothing(lab: Lab) -> None:
    data = lab.data(15, num_test=6)
    first = lab.train("run", lab.build(), data, with_finish=True, **RESUMED)
    records, predictions = first.records(), (lab.folder / "run" / "predictions.jsonl").read_text()
    again = lab.train("run", lab.build(seed=1), data, with_finish=True, resume=True, **RESUMED)
    assert without_times(again.records()) == without_times(records)
    assert (lab.folder / "run" / "predictions.jsonl").read_text() == predictions


def test_after_the_loop_a_signal_ends_what_is_going_on_again(lab: Lab) -> None:
    lab.train("run", lab.build(), lab.data(12), max_steps=1)
    assert lab.stop.at_once


# The best


@pytest.mark.parametrize(
    ("metric", "scores", "is_best"),
    [
        ("accuracy", [0.5, 0.4, 0.5, 0.7, 0.6, 0.7, 0.1], [1, 0, 0, 1, 0, 0, 0]),
        ("macro_f1", [0.0, 0.0, 0.2, 0.1, 0.2, 0.1, 0.1], [1, 0, 1, 0, 0, 0, 0]),
        ("macro_f1", [math.nan, -0.2, -0.3, 0.1, math.nan, 0.1, 0.0], [0, 1, 0, 1, 0, 0, 0]),
        ("loss", [math.nan, 2.0, 2.0, 3.0, math.inf, 1.0, 1.5], [0, 1, 0, 0, 0, 1, 0]),
    ],
)
def test_best_is_the_first_of_the_best_and_nothing_worse_touches_it(
    metric: str, scores: list[float], is_best: list[int], lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = iter(scores)
    touched: list[dict[str, int]] = []

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_ctime_ns for path in (lab.folder / "run" / "best").glob("*")}

    def scripted(*args: Any) -> Evaluation:
        touched.append(times())
        return with_scores(evaluate(*args), **{metric: next(script)})

    monkeypatch.setattr(loop, "evaluate", scripted)
    settings = {"batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 7, "eval_every": 1}
    run = lab.train("run", lab.build(), lab.data(12), best_metric=metric, save_total_limit=2, **settings)
    touched.append(times())

    changed = [int(after != before) for before, after in itertools.pairwise(touched)]
    assert changed == is_best
    assert run.logged("eval", "is_best") == [bool(flag) for flag in is_best]
    finite = [score if math.isfinite(score) else None for score in scores]
    assert run.logged("eval", metric) == finite

    best_step = max(step for step, flag in enumerate(is_best, start=1) if flag)
    assert run.state is not None
    assert (run.state.best_step, run.state.best_score) == (best_step, scores[best_step - 1])
    assert checkpoints(lab.folder / "run") == sorted({best_step, 6, 7})  # the newest two, and the best
    kept = lab.folder / "run" / "checkpoints" / f"step-{best_step:08d}"
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert (lab.folder / "run" / "best" / name).read_bytes() == (kept / name).read_bytes()
    assert (run.folder / "predictions.jsonl").read_bytes() == (kept / "predictions.jsonl").read_bytes()


@pytest.mark.parametrize("best_metric", ["loss", "accuracy"])  # the accuracy of logits that are NaN is finite
def test_a_run_without_one_finite_loss_has_no_best_and_says_so(best_metric: str, lab: Lab) -> None:
    loaded = lab.build()
    with torch.no_grad():
        loaded.model.classifier.bias.fill_(math.nan)
    settings = {"batch_size": 4, "max_steps": 2, "best_metric": best_metric}
    with pytest.raises(NumbersBroke, match="No evaluation had a finite loss"):
        lab.train("run", loaded, lab.data(12), with_finish=True, **settings)
    assert not (lab.folder / "run" / "best").exists()


def test_the_test_set_is_scored_with_the_best_weights_and_not_the_last(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = lab.data(12, num_test=9)
    accuracies = iter([0.9, 0.1, 0.1])
    scripted = lambda *args: with_scores(evaluate(*args), accuracy=next(accuracies, 0.0))  # noqa: E731
    monkeypatch.setattr(loop, "evaluate", scripted)
    settings = {"batch_size": 12, "gradient_accumulation_steps": 1, "epochs": 3, "warmup_ratio": 0.0}
    run = lab.train("run", lab.spread(data), data, with_finish=True, learning_rate=1e-2, **settings)

    assert data.test is not None
    config = TrainConfig(num_workers=0)
    best = load_for_training(open_backbone(str(lab.folder / "run" / "best")), data.labels, seed=0)
    batches = loop.evaluation_batches(config, data, data.test, best, CPU)
    expected = evaluate(best.model, batches, CPU, "fp32")
    record = run.records("test")[0]
    # The same numbers, read from a file.
    assert record["loss"] == pytest.approx(expected.scores["loss"], abs=1e-6)
    assert record["step"] == 1
    lines = (run.folder / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["split"] for line in lines] == ["evaluation"] * 12 + ["test"] * 9


# Evaluation


def test_evaluation_is_scikit_learns_and_the_same_in_batches_of_any_size(lab: Lab) -> None:
    data = lab.data(32, num_eval=23)
    loaded = lab.spread(data)
    loaded.model.train()
    results = []
    for eval_batch_size in (23, 4, 1):
        config = TrainConfig(eval_batch_size=eval_batch_size, num_workers=0)
        batches = loop.evaluation_batches(config, data, data.evaluation, loaded, CPU)
        results.append(evaluate(loaded.model, batches, CPU, "fp32"))
        assert loaded.model.training

    clips = [data.evaluation[index] for index in range(23)]
    batch = collator(loaded.backbone)(clips)
    with torch.no_grad():
        logits = loaded.model.eval()(**batch.inputs)
    predicted = logits.argmax(-1).numpy()
    assert len(set(predicted.tolist())) > 1
    for result in results:
        scores = result.scores
        assert scores["num_clips"] == 23
        assert scores["accuracy"] == pytest.approx(accuracy_score(batch.labels, predicted), abs=1e-12)
        f1 = f1_score(batch.labels, predicted, average="macro")
        assert scores["macro_f1"] == pytest.approx(f1, abs=1e-12)
        # float32 logits with a spread of 1, from convolutions and products of another shape.
        assert scores["loss"] == pytest.approx(F.cross_entropy(logits, batch.labels).item(), abs=1e-5)
        np.testing.assert_allclose(result.probabilities, logits.softmax(-1), atol=1e-5)


def test_label_smoothing_is_in_the_training_loss_and_not_in_the_evaluations(lab: Lab) -> None:
    data = lab.data(12)
    loaded = lab.spread(data)
    batch = collator(loaded.backbone)([data.train[index] for index in range(12)])
    with torch.no_grad():
        smoothed, plain = (
            F.cross_entropy(loaded.model(**batch.inputs), batch.labels, label_smoothing=s).item()
            for s in (0.3, 0.0)
        )
    settings = {"batch_size": 12, "gradient_accumulation_steps": 1, "max_steps": 1, "warmup_ratio": 1.0}
    run = lab.train("run", loaded, data, label_smoothing=0.3, **settings)  # the first step's rate is 0

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
    precision: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Spread logits have steep gradients: a scale at which none of them is beyond float16.
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**6))
    data = lab.data(12)
    settings = {"batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 4, "learning_rate": 1e-4}
    exact = lab.train("fp32", lab.spread(data), data, **settings)
    run = lab.train(precision, lab.spread(data), data, precision=precision, **settings)

    assert run.state is not None
    assert run.state.steps_taken == 4
    assert {tensor.dtype for tensor in run.weights.values()} == {torch.float32}
    ours, theirs = (one.logged("train", "loss") for one in (run, exact))
    assert ours != theirs
    # bf16 has 3 digits, and its rounding adds up over the layers; losses are near 1.
    assert ours == pytest.approx(theirs, abs=0.05)


@pytest.mark.usefixtures("steps_behind")
def test_the_schedule_waits_for_steps_that_fp16s_scaler_skips(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A scale that float16 cannot hold: the scaler halves it until it fits.
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**20)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    data = lab.data(12)
    settings = {"batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 16, "learning_rate": 1e-5}
    run = lab.train("run", lab.spread(data), data, precision="fp16", **settings)

    records = run.records("train")
    skipped = [record["grad_norm"] is None for record in records]
    assert run.state is not None
    assert 0 < sum(skipped) < 16
    assert run.state.steps_taken == 16 - sum(skipped)
    taken = np.cumsum([0, *(not skip for skip in skipped)])[:-1]
    expected = (1e-5 * learning_rate_factor(torch.from_numpy(taken), 16, 0.1, "linear")).tolist()
    assert logged(records, "learning_rate") == expected
    assert all(record["loss"] is not None for record in records)
