"""What the drivers of faults in training share: short runs of the real train.py, each in a fork of its own.

A process start with its imports takes seconds, the runs take one: this process imports everything and
computes nothing, and each case is a fork of it, the leader of a process group.
"""

# ruff: noqa: E402 - the environment must be set before torch is imported

import atexit
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from cases import fork
from conftest import RANDOM, SMALL, TEST_HOME, write_clips

import train
from audiocls.errors import exit_code_of
from audiocls.hub import quiet_transformers
from audiocls.model.encoder import SpeechClassifier

TEST_HOME.cleanup()  # before a fork would do it, at its end
for late in (  # what train.py imports when it runs
    "audiocls.reporting.summary",
    "audiocls.training.features",
    "audiocls.training.loop",
    "audiocls.training.run_folder",
    "transformers.models.auto.modeling_auto",
    "transformers.models.wav2vec2.feature_extraction_wav2vec2",
    "transformers.models.wav2vec2.modeling_wav2vec2",
):
    importlib.import_module(late)
TIMEOUT_SECONDS = 120


@dataclass
class Workplace:
    """A folder with clips, a model in which everything is random, and room for runs."""

    folder: Path

    def arguments(self, output: Path, **settings: Any) -> list[str]:
        """train.py's arguments: always --resume, since the same command can be repeated."""
        settings = {
            "dataset": self.folder / "clips",
            "model": self.folder / "model",
            "cache_dir": self.folder / "cache",
            "output_dir": output,
            "batch_size": 2,
            "gradient_accumulation_steps": 1,
            "eval_batch_size": 4,
            "epochs": 3,
            "learning_rate": 1e-3,
            "best_metric": "loss",
            "log_every": 1,
            "max_seconds": "none",
            "device": "cpu",
            "num_workers": 0,
            "resume": True,
        } | settings
        flags = []
        for name, value in settings.items():
            flag = "--" + name.replace("_", "-")
            flags += [flag] if value is True else [flag, str(value)]
        return flags

    def run(self, output: Path, **settings: Any) -> "Child":
        """A whole run, which must succeed."""
        child = Child(self.arguments(output, **settings)).wait()
        if child.code != 0:
            raise RuntimeError(f"a run without any fault ended with {child.code}: {child.errors}")
        return child


@contextmanager
def workplace() -> Iterator[Workplace]:
    folder = Path(tempfile.mkdtemp(prefix="audiocls-faults-"))
    parent = os.getpid()
    try:
        for split, count in {"train": 15, "validation": 10, "test": 7}.items():
            lengths = np.random.default_rng(count).integers(800, 1600, count).tolist()
            write_clips(folder / "clips" / split, lengths, seed=count)
        Child(work=lambda: save_model(folder / "model")).wait()
        yield Workplace(folder)
    finally:
        if os.getpid() == parent:
            shutil.rmtree(folder)


def save_model(folder: Path) -> int:
    """A Wav2Vec2 with dropout, LayerDrop and SpecAugment, all on."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    quiet_transformers()
    torch.manual_seed(0)
    model = Wav2Vec2Model(Wav2Vec2Config(**SMALL | RANDOM))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # as large as trained ones: fresh, all clips sound nearly alike
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return 0


class Child:
    """train.py in a fork: `before` is called there first, with a function that tells the parent to act."""

    def __init__(
        self,
        arguments: list[str] | None = None,
        before: Callable[[Callable[[], None]], object] | None = None,
        work: Callable[[], int] = lambda: exit_code_of(train.main),
    ) -> None:
        self.output, self.stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self.told, tell = os.pipe()
        self.began = time.monotonic()
        self.code: int | None = None

        def act() -> int:
            os.setpgid(0, 0)
            try:
                if arguments is not None:
                    sys.argv = ["train.py", *arguments]
                if before is not None:
                    before(lambda: os.write(tell, b"!"))
                return work()
            finally:
                atexit._run_exitfuncs()

        self.pid = fork(act, self.output, self.stderr)
        os.close(tell)

    def wait_until_told(self) -> bool:
        """False where the child ended without a word."""
        return os.read(self.told, 1) != b""

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if not ended:
                return False
            self.code = os.waitstatus_to_exitcode(status)
            self.seconds = time.monotonic() - self.began
            os.close(self.told)
        return True

    def wait(self, most_seconds: float = TIMEOUT_SECONDS) -> "Child":
        """Wait for the end; where it does not come, the whole group is killed and the code is -9."""
        deadline = time.monotonic() + most_seconds
        while not self.poll():
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(0.003)
        return self

    @property
    def errors(self) -> str:
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").splitlines(keepends=True)
        # torch has an opinion on two workers on one core.
        about_cores = ("UserWarning: This DataLoader", "self.check_worker_number_rationality()")
        return "".join(line for line in lines if not any(words in line for words in about_cores))

    def orphans(self) -> list[int]:
        """The processes of its group that live on; they are killed."""
        deadline = time.monotonic() + 1
        while left := group(self.pid):
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                return left
            time.sleep(0.01)
        return []


def group(leader: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == leader and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def wrap(owner: Any, name: str, before: Callable[[], object]) -> None:
    """Call `before` each time `owner.name` is called."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        before()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def at_forward(act: Callable[[], object], number: int, *, training: bool) -> None:
    """In a child: `act` in the `number`-th forward pass, from 1, of training or of evaluation."""
    passes = 0 if training else -1  # in evaluation mode a model is tried when it is loaded

    def hook(module: Any, args: Any, output: Any) -> None:
        nonlocal passes
        if isinstance(module, SpeechClassifier) and module.training == training:
            passes += 1
            if passes == number:
                act()

    torch.nn.modules.module.register_module_forward_hook(hook)
