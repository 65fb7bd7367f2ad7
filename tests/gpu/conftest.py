"""The device that these tests run on, and train.py on it.

    python -m pytest tests/gpu                               # on a GPU; without one all are skipped
    AUDIOCLS_TEST_DEVICE=cpu python -m pytest tests/gpu      # all but those that are about CUDA, on a CPU

Most call `train.main` in the test's own process: a fresh one takes seconds to import torch and wake the GPU.
"""

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# cuBLAS reads this once. It is what torch.use_deterministic_algorithms asks for.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"

import pytest
import torch
from data_helpers import ROOT

from audiocls.config import TrainConfig
from audiocls.devices import pick_device, pick_precision
from audiocls.errors import exit_code_of

DEVICE = os.environ.get("AUDIOCLS_TEST_DEVICE", "cuda")
CHOICES = TrainConfig.__dataclass_fields__["precision"].metadata["choices"]
PRECISIONS = [name for name in CHOICES if name != "auto"]


def pytest_runtest_setup() -> None:
    if DEVICE.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tests compute, made ready as train.py does it."""
    return pick_device(DEVICE)


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The device, for tests that only a CUDA GPU can run."""
    if device.type != "cuda":
        pytest.skip("only on a CUDA device")
    return device


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest, device: torch.device) -> str:
    """Each that --precision names; those that the device lacks are skipped."""
    if pick_precision(request.param, device) != request.param:
        pytest.skip(f"there is no {request.param} on {device}")
    pick_device(DEVICE, request.param)
    return request.param


TrainDemo = Callable[..., list[dict]]


def demo_flags(name: str, folder: Path) -> list[str]:
    where = ["--device", DEVICE, "--output-dir", str(folder / name), "--cache-dir", str(folder / "cache")]
    return ["--demo", *where, "--log-every", "1"]


@pytest.fixture
def train_demo(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_handlers: None
) -> TrainDemo:
    """train_demo(*flags, name="run", ends_with=0): train.py on the demo data, in this process.

    It must end with that exit code. Returns the lines of its metrics.jsonl.
    """
    monkeypatch.syspath_prepend(ROOT)
    import train

    def run(*flags: object, name: str = "run", ends_with: int = 0) -> list[dict]:
        let_go()
        arguments = [*demo_flags(name, tmp_path), *map(str, flags)]
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        assert exit_code_of(train.main) == ends_with
        return records_of(tmp_path / name)

    return run


def let_go() -> None:
    """Free what earlier runs left, on the GPU as well."""
    gc.unfreeze()  # train.py freezes all that is there when it starts
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def records_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(records: list[dict]) -> list[float]:
    """The training loss of every step."""
    return [record["loss"] for record in records if record["kind"] == "train"]


@pytest.fixture
def little_memory(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process may take no more of the GPU's memory than it holds and 192 MiB.

    That is room for cuBLAS's workspaces and the demo's model with some clips, not for all 160.
    """
    let_go()
    free = 192 * 2**20
    most = torch.cuda.memory_reserved(cuda) + free
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *args: (free, most))  # as of a card of that size
    total = torch.cuda.get_device_properties(cuda).total_memory
    torch.cuda.set_per_process_memory_fraction(most / total)  # of the current device
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    let_go()
