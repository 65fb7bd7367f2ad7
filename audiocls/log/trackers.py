"""TensorBoard and Weights & Biases, where `--log-to` asks for them: the same records as metrics.jsonl.

Each is imported only when it is asked for.
"""

import importlib.util
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from audiocls.errors import UserError
from audiocls.storage import failing_as, write_text
from audiocls.streams import say

KINDS = ("train", "eval", "test")  # of the records that are passed on


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, run_folder: Path, config: dict[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard forgets what earlier files say of the steps from purge_step on.
        self.writer = SummaryWriter(str(run_folder / "tensorboard"), purge_step=step + 1 if step else None)
        rows = "".join(f"| {name} | `{value}` |\n" for name, value in config.items())
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

    def __init__(self, run_folder: Path, config: dict[str, Any], step: int) -> None:
        import wandb

        self.make_image = wandb.Image
        id_file = run_folder / "wandb" / "run-id.txt"
        if not id_file.exists():
            with failing_as(id_file):
                id_file.parent.mkdir(exist_ok=True)
            write_text(id_file, secrets.token_hex(8))
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "audiocls"),
            name=run_folder.resolve().name,
            id=id_file.read_text(encoding="utf-8"),
            dir=str(run_folder),
            config=config,
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


# Each begins, or goes on after `step`: records of later steps that it has will come again.
Tracker = TensorBoard | WeightsAndBiases
TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
LOGIN = {"wandb": " Log in with `wandb login`, or set WANDB_MODE=offline."}


def check_installed(names: Sequence[str]) -> None:
    """Raises UserError for a tracker that is not there, before anything is computed for it."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise UserError(f"--log-to needs {' and '.join(missing)}: pip install {' '.join(missing)}.")


@dataclass
class Trackers:
    """All the trackers of a run. One that fails while the run goes on is noted, and not asked again."""

    names: Sequence[str] = ()
    run_folder: Path = Path()
    config: dict[str, Any] = field(default_factory=dict)
    open: dict[str, Tracker] = field(default_factory=dict)  # that were started and have not failed, by name

    def start(self, step: int) -> None:
        """Raises UserError for a tracker that does not start: nothing is lost yet."""
        for name in self.names:
            try:
                self.open[name] = TRACKERS[name](self.run_folder, self.config, step)
            except Exception as error:
                raise UserError(f"--log-to {name} does not start: {error}.{LOGIN.get(name, '')}") from error

    def record(self, kind: str, values: dict[str, Any]) -> None:
        """Pass on a record of metrics.jsonl: its numbers, by its step."""
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, int | float) and name not in ("step", "is_best")
        }
        if kind in KINDS:
            self.each(lambda tracker: tracker.record(kind, values["step"], numbers))

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """`pixels` is uint8 [height, width, 3]."""
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
