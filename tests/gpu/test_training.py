"""train.py on the GPU: it learns in every precision, is stopped and resumed, and lives with little memory."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import pytest
import torch
from conftest import without_times
from data_helpers import ROOT

from audiocls.errors import STOPPED, TRAINING_FAILED
from gpu.conftest import TrainDemo, demo_flags, losses, records_of

pytestmark = pytest.mark.gpu


def test_the_demo_is_learned_in_every_precision(precision: str, train_demo: TrainDemo) -> None:
    records = train_demo("--precision", precision, "--epochs", 2)
    found = losses(records)
    assert len(found) == 40
    assert mean(found[-5:]) < 0.75 * mean(found[:5])
    # Chance is 0.1.
    assert next(record for record in records if record["kind"] == "test")["accuracy"] > 0.4


@pytest.mark.filterwarnings("ignore")  # torch's compiler has many, about itself
def test_the_demo_is_learned_compiled_and_by_cuda_graphs(train_demo: TrainDemo, cuda: torch.device) -> None:
    found = losses(train_demo("--compile", "--cuda-graphs", "--epochs", 1))
    assert mean(found[-5:]) < 0.9 * mean(found[:5])


def test_cuda_graphs_change_no_loss(train_demo: TrainDemo, cuda: torch.device) -> None:
    shared = ("--precision", "fp32", "--epochs", 3)
    expected = losses(train_demo(*shared, name="kernels"))
    # Sums on the GPU come in any order, and training spreads that.
    assert losses(train_demo(*shared, "--cuda-graphs", name="graphs")) == pytest.approx(expected, rel=0.02)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """cuDNN's convolutions and the backward pass of attention add up in any order otherwise."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


# train.py in a process of its own, likewise.
DETERMINISTIC_TRAIN = """
import runpy, torch
torch.use_deterministic_algorithms(True)
runpy.run_path("train.py", run_name="__main__")
"""


def test_sigterm_stops_with_143_and_resume_ends_as_if_nothing_had_happened(
    train_demo: TrainDemo, tmp_path: Path, deterministic: None
) -> None:
    """Bit by bit, in the precision that a run has by default."""
    flags = ["--epochs", "4", "--eval-every", "15"]
    whole = train_demo(*flags, name="whole")

    command = [sys.executable, "-c", DETERMINISTIC_TRAIN, *demo_flags("stopped", tmp_path), *flags]
    log = tmp_path / "stopped" / "metrics.jsonl"
    with subprocess.Popen(command, cwd=ROOT, env=os.environ, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") >= 20) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == STOPPED, errors
    assert 20 <= len(records_of(tmp_path / "stopped")) < len(whole)

    resumed = train_demo(*flags, "--resume", name="stopped")
    assert without_times(resumed) == without_times(whole)
    weights = [tmp_path / name / "best" / "model.safetensors" for name in ("whole", "stopped")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_features_computed_once_train_as_those_computed_each_time(train_demo: TrainDemo) -> None:
    flags = ("--freeze-feature-encoder", "--precision", "fp32", "--max-steps", 20)
    each_time = losses(train_demo(*flags, name="each time"))
    once = losses(train_demo(*flags, "--cache-features", name="once"))
    assert len(once) == 20
    assert once == pytest.approx(each_time, rel=0.01)  # they are kept in half precision


ALL_CLIPS = ("--batch-size", 160, "--gradient-accumulation-steps", 1)


# torch's loader, whose queues are closed while its threads use them; a process of its own would have ended.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_out_of_memory_ends_with_5_and_says_what_to_type(
    train_demo: TrainDemo, little_memory: None, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ("--precision", "fp32", "--max-steps", 2)
    assert losses(train_demo(*flags, *ALL_CLIPS, ends_with=TRAINING_FAILED)) == []
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: Out of memory. Try --batch-size 80 --gradient-accumulation-steps 2")
    # The process goes on: what did not fit was let go.
    assert len(losses(train_demo(*flags, "--batch-size", 4, name="smaller"))) == 2


def test_batch_size_auto_takes_all_clips_where_they_fit(train_demo: TrainDemo, cuda: torch.device) -> None:
    auto = ("--batch-size", "auto", "--global-batch-size", 160)
    shared = ("--precision", "fp32", "--max-steps", 2)
    # The same micro-batches, hence the same dropout; 1e-3: sums on the GPU come in any order.
    expected = losses(train_demo(*shared, *ALL_CLIPS, name="given"))
    assert losses(train_demo(*shared, *auto, name="auto")) == pytest.approx(expected, rel=1e-3)


def test_batch_size_auto_finds_what_fits(train_demo: TrainDemo, little_memory: None) -> None:
    auto = ("--batch-size", "auto", "--global-batch-size", 160)
    assert len(losses(train_demo("--precision", "fp32", "--max-steps", 2, *auto))) == 2
