"""What to change next: a line for each thing that bounds a step; a note, once, where a GPU waits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Lab

from audiocls.config import TrainConfig
from audiocls.log.advice import SpeedNote, StepShares, beside_steps, bound_by, next_change
from audiocls.log.phases import StepFacts
from audiocls.log.run_log import RunLog
from audiocls.log.summary import open_log


def shares(
    data_wait: float = 0.0, device_wait: float = 0.5, padding: float = 0.0, gpu_idle: float | None = None
) -> StepShares:
    return StepShares(data_wait, device_wait, padding, gpu_idle)


@pytest.mark.parametrize(
    ("found", "bound"),
    [
        (shares(gpu_idle=0.1), "device"),
        (shares(gpu_idle=0.1, device_wait=0.0, data_wait=0.5), "device"),  # measured: the GPU has work
        (shares(gpu_idle=0.4), "host"),
        (shares(gpu_idle=0.4, data_wait=0.3), "batches"),
        (shares(device_wait=0.5), "device"),
        (shares(device_wait=0.5, data_wait=0.3), "device"),  # the batch came while the GPU was busy
        (shares(device_wait=0.1, data_wait=0.3), "batches"),
        (shares(device_wait=0.01, data_wait=0.3), "batches"),
        (shares(device_wait=0.01, data_wait=0.1), "host"),
    ],
)
def test_a_gpu_is_bound_by_what_it_waits_for(found: StepShares, bound: str) -> None:
    assert bound_by(found, on_gpu=True) == bound


@pytest.mark.parametrize(("data_wait", "bound"), [(0.1, "device"), (0.3, "batches")])
def test_a_cpu_is_bound_by_its_own_work_or_by_batches(data_wait: float, bound: str) -> None:
    assert bound_by(shares(data_wait, device_wait=0.0), on_gpu=False) == bound


BUSY, IDLE = shares(gpu_idle=0.05), shares(gpu_idle=0.5)
WHOLE: dict[str, Any] = {"gradient_accumulation_steps": 1}


@pytest.mark.parametrize(
    ("found", "settings", "precision", "says"),
    [
        (shares(0.3, gpu_idle=0.4), {}, "bf16", "30% of the time no batch is ready"),
        (shares(0.3, gpu_idle=0.4), {"num_workers": 4}, "bf16", "more --num-workers than 4"),
        (IDLE, {}, "bf16", "--batch-size auto --global-batch-size 128: the same steps) or --cuda-graphs"),
        (IDLE, {"cuda_graphs": True}, "bf16", "--batch-size auto --global-batch-size 128: the same steps)"),
        (IDLE, WHOLE, "bf16", "launch its kernels: --cuda-graphs (at most 2 times as fast)"),
        (IDLE, WHOLE | {"cuda_graphs": True}, "bf16", "steps of more clips would hardly take longer"),
        (shares(padding=0.3, gpu_idle=0.05), {"bucket": False}, "bf16", "padding: leave out --no-bucket"),
        (
            shares(padding=0.3, gpu_idle=0.05),
            {},
            "bf16",
            "a smaller --batch-size with --global-batch-size 128",
        ),
        (shares(padding=0.3, gpu_idle=0.05), {"compile": True}, "bf16", "nothing simple"),
        (BUSY, {}, "fp32", "--precision bf16"),
        (BUSY, {}, "bf16", "the GPU is busy: --compile"),
        (BUSY, {"compile": True}, "bf16", "nothing simple: the GPU is busy"),
    ],
)
def test_each_bound_has_its_change(
    found: StepShares, settings: dict[str, Any], precision: str, says: str
) -> None:
    config = TrainConfig(batch_size=32, **{"gradient_accumulation_steps": 4} | settings)
    line = next_change(found, config, precision=precision, on_gpu=True)
    assert says in line and "\n" not in line


def test_graphs_are_not_advised_where_they_are_refused() -> None:
    config = TrainConfig(batch_size=128, gradient_accumulation_steps=1)
    for can_capture in (True, False):
        line = next_change(IDLE, config, precision="bf16", on_gpu=True, can_capture=can_capture)
        assert ("--cuda-graphs" in line) == can_capture


def test_what_takes_much_beside_the_steps_is_said() -> None:
    config = TrainConfig(eval_every=3)
    assert beside_steps({}, config) == beside_steps({"forward": 9.0, "evaluation": 1.0}, config) == []
    evaluation, save = beside_steps({"forward": 1.0, "evaluation": 3.0, "save": 6.0}, config)
    assert "30% of the loop's time is evaluation: a larger --eval-every than 3" in evaluation
    assert "60%" in save and "--checkpoint-every" in save


def test_on_a_cpu_it_advises_nothing_that_is_for_gpus() -> None:
    config = TrainConfig()
    for found in (shares(device_wait=0.0), shares(0.3, 0.0), shares(padding=0.3, device_wait=0.0)):
        line = next_change(found, config, precision="fp32", on_gpu=False)
        assert not any(word in line for word in ("GPU", "--compile", "--precision"))


def test_shares_are_of_all_steps_and_waiting_for_the_gpu_of_the_median() -> None:
    seconds = [
        {"data wait": 1.0, "device wait": 1.0},
        {"forward": 2.0},
        {"forward": 90.0, "device wait": 6.0},
    ]
    found = StepShares.of([StepFacts(0.0, 4, 6.0, 2.0, each) for each in seconds])
    assert found == shares(data_wait=0.01, device_wait=0.0625, padding=0.25)


HOST_BOUND = StepFacts(0.0, 4, 6.0, 2.0, {"forward": 0.5, "backward": 0.5})
GPU_BOUND = StepFacts(0.0, 4, 6.0, 2.0, {"forward": 0.1, "device wait": 0.9})
LACKS_BATCHES = StepFacts(0.0, 4, 6.0, 2.0, {"data wait": 0.5, "forward": 0.5})


def said(note: SpeedNote, steps: list[StepFacts]) -> dict[int, str]:
    """What it says, by the number of the step after which it does."""
    return {number: line for number, step in enumerate(steps, 1) if (line := note(step))}


@pytest.mark.parametrize(("steps_per_epoch", "after"), [(5, 20), (50, 50), (10_000, 200)])
def test_a_run_is_told_once_after_its_first_epoch(steps_per_epoch: int, after: int) -> None:
    found = said(SpeedNote(TrainConfig(), "bf16", steps_per_epoch), [HOST_BOUND] * 500)
    assert list(found) == [after]
    assert (
        found[after].startswith("note: ") and "--cuda-graphs" in found[after] and "--profile" in found[after]
    )


def test_a_run_whose_gpu_is_busy_is_told_nothing_whatever_the_first_steps_were() -> None:
    slow_start = StepFacts(0.0, 4, 6.0, 2.0, {"data wait": 100.0})
    steps = [slow_start] * 2 + [GPU_BOUND] * 100
    assert not said(SpeedNote(TrainConfig(), "bf16", 30), steps)


def test_a_run_that_lacks_batches_is_told_so() -> None:
    found = said(SpeedNote(TrainConfig(), "bf16", 30), [LACKS_BATCHES] * 30)
    assert "no batch is ready" in found[30] and "--num-workers" in found[30]


def test_the_run_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, speed_note=SpeedNote(TrainConfig(), "bf16", 20)) as log:
        log.start(total_steps=30, step=0, log_bytes=0)
        for _ in range(30):
            log.advance(LACKS_BATCHES)
    said = capsys.readouterr()
    assert (said.out + said.err).count("no batch is ready") == 1


@pytest.mark.parametrize(
    ("device", "settings", "is_there"),
    [
        ("cuda", {}, True),
        ("cuda", {"profile": True}, False),  # whose table says it, and whose steps are slowed
        ("cuda", {"freeze": "encoder"}, False),  # a head alone is quick in any case
        ("cpu", {}, False),
    ],
)
def test_the_note_is_for_gpu_runs_without_profile(
    lab: Lab, device: str, settings: dict[str, Any], is_there: bool
) -> None:
    config = TrainConfig(precision="bf16", **settings)
    log = open_log(config, lab.data(24), lab.build(), torch.device(device), lab.folder)
    assert (log.speed_note is not None) == is_there
