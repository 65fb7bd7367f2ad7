"""TensorBoard and Weights & Biases, where `--log-to` asks for them: the same records as metrics.jsonl.

Each is imported only when it is asked for.
"""

import importlib.util
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from audiocls.errors import UserError
from audiocls.reporting.run_log import say
from audiocls.storage import failing_as, write_text

KINDS = ("train", "eval", "test")  # of the records that are passed on


class Tracker(Protocol):
    """What a run says to a tracker."""

    def start(self, step: int) -> None:
        """Begin, or go on after `step`: what was said beyond it will be said again."""

    def record(self, kind: str, step: int, values: dict[str, float]) -> None: ...

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """`pixels` is uint8 [height, width, 3]."""

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, run_folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.config = run_folder / "tensorboard", config

    def start(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard forgets what earlier files say of the steps from purge_step on.
        self.writer = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)
        rows = "".join(f"| {name} | `{value}` |\n" for name, value in self.config.items())
        self.writer.add_text("config", f"| setting | value |\n|---|---|\n{rows}", step)

    def record(self, kind: str, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, step)
        self.writer.flush()

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the project WANDB_PROJECT, else audiocls; its files are in `wandb/` of the run folder."""

    def __init__(self, run_folder: Path, config: dict[str, Any]) -> None:
        self.run_folder, self.config = run_folder, config

    def start(self, step: int) -> None:
        import wandb

        self.make_image = wandb.Image
        id_file = self.run_folder / "wandb" / "run-id.txt"
        if not id_file.exists():
            with failing_as(id_file):
                id_file.parent.mkdir(exist_ok=True)
            write_text(id_file, secrets.token_hex(8))
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "audiocls"),
            name=self.run_folder.resolve().name,
            id=id_file.read_text(encoding="utf-8"),
            dir=str(self.run_folder),
            config=self.config,
            resume="allow",
        )

    def record(self, kind: str, step: int, values: dict[str, float]) -> None:
        named = {f"{kind}/{name}": value for name, value in values.items()}
        if kind == "test":  # of the best step, which lies behind: wandb's steps only go on
            self.run.summary.update(named)
        elif step >= self.run.step:  # else it was logged before the run was resumed
            self.run.log(named, step=step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.run.log({name: self.make_image(pixels)}, step=max(step, self.run.step))

    def close(self) -> None:
        self.run.finish()


MAKE: dict[str, Callable[[Path, dict[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}
LOGIN = {"wandb": " Log in with `wandb login`, or set WANDB_MODE=offline."}


def check_installed(names: Sequence[str]) -> None:
    """Raises UserError for a tracker that is not there, before anything is computed for it."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise UserError(f"--log-to needs {' and '.join(missing)}: pip install {' '.join(missing)}.")


class Trackers:
    """All the trackers of a run. One that fails while the run goes on is noted, and not asked again."""

    def __init__(self, names: Sequence[str], run_folder: Path, config: dict[str, Any]) -> None:
        self.waiting = {name: MAKE[name](run_folder, config) for name in names}
        self.open: dict[str, Tracker] = {}

    def start(self, step: int) -> None:
        """Raises UserError for a tracker that does not start: nothing is lost yet."""
        for name, tracker in self.waiting.items():
            try:
                tracker.start(step)
                self.open[name] = tracker
            except Exception as error:
                raise UserError(f"--log-to {name} does not start: {error}.{LOGIN.get(name, '')}") from error

    def record(self, kind: str, values: dict[str, Any]) -> None:
        """Pass on a record of metrics.jsonl: its numbers, by its step."""
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
        }
        if kind in KINDS:
            self.each(lambda tracker: tracker.record(kind, values["step"], numbers))

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.each(lambda tracker: tracker.image(name, pixels, step))

    def close(self) -> None:
        self.each(lambda tracker: tracker.close())

    def each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.open.items()):
            try:
                act(tracker)
            except Exception as error:
                say(f"note: {name} is left out from here on: {type(error).__name__}: {error}")
                del self.open[name]
