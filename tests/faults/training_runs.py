"""What the drivers of faults in training share: short runs of the real train.py, each in a fork."""

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

import cases
import numpy as np
import torch
from conftest import RANDOM, save_backbone, write_clips

import train
from audiocls.errors import exit_code_of
from audiocls.model.encoder import SpeechClassifier
from audiocls.reporting import report

for late in (  # what train.py imports when it runs, and torch's optimizers
    "audiocls.log.summary",
    "audiocls.training.features",
    "audiocls.training.loop",
    "audiocls.training.run_folder",
    "torch._dynamo",
    "transformers.models.auto.modeling_auto",
    "transformers.models.wav2vec2.feature_extraction_wav2vec2",
    "transformers.models.wav2vec2.modeling_wav2vec2",
):
    importlib.import_module(late)


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
        """A whole run, which must succeed. It makes no report: that takes as long as the training."""

        def leave_out_report(tell: object) -> None:
            report.write_report = lambda run_folder: run_folder

        child = Child(self.arguments(output, **settings), leave_out_report).wait()
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
        cases.Child(lambda: save_backbone(folder / "model", **RANDOM) and 0).wait()
        yield Workplace(folder)
    finally:
        if os.getpid() == parent:
            shutil.rmtree(folder)


class Child(cases.Child):
    """train.py in a fork: `before` is called there first, with a function that tells the parent to act."""

    def __init__(
        self, arguments: list[str], before: Callable[[Callable[[], None]], object] | None = None
    ) -> None:
        told, tell = os.pipe()

        def act() -> int:
            try:
                sys.argv = ["train.py", *arguments]
                if before is not None:
                    before(lambda: os.write(tell, b"!"))
                return exit_code_of(train.main)
            finally:
                atexit._run_exitfuncs()

        super().__init__(act)
        os.close(tell)
        self.told = os.fdopen(told, "rb", buffering=0)

    def wait_until_told(self) -> bool:
        """False where the child ended without a word."""
        return self.told.read(1) != b""

    @property
    def errors(self) -> str:
        lines = self.printed(2).decode(errors="replace").splitlines(keepends=True)
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
