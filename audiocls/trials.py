"""The runs of train.py that compare.py and folds.py need: made once each, resumed where cut short."""

import dataclasses
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiocls.code_hash import code_hash, code_of
from audiocls.commands import script
from audiocls.config import CHANGES_NOTHING, TrainConfig
from audiocls.errors import OK, STOPPED, TRAINING_FAILED, Stopped, UserError
from audiocls.flags import NOT_REPEATED, flag_name
from audiocls.reporting.results import begun_with, read_run
from audiocls.signals import StopSignal
from audiocls.storage import describe, failing_as, remove_folder, write_json
from audiocls.streams import say

TRAIN = script("train")
# What each trial decides for itself, or what would be done several times over.
NOT_SHARED = NOT_REPEATED | {"audit"}
PATHS = ("dataset", "eval_dataset", "test_dataset", "drop", "relabel", "model")  # settings that may be paths


@dataclass(frozen=True)
class Trial:
    """A run to be made."""

    name: str  # in what is said of it
    folder: Path  # of the run; beside what train.py writes there, our trial.json and log.txt
    config: TrainConfig
    is_given: bool = False  # whether it is somebody's own run, of whatever code

    @property
    def files(self) -> dict[str, str]:
        """A hash of each file that the settings name."""
        paths = {normal(name) for setting in PATHS if (name := getattr(self.config, setting))}
        return {path: sha256_of(path, *stamp(path)) for path in sorted(paths) if os.path.isfile(path)}

    @property
    def digest(self) -> str:
        """A hash of the settings that affect the result but the seed, of files they name, and of the code."""
        now, defaults = effective(dataclasses.asdict(self.config)), dataclasses.asdict(TrainConfig())
        decides = {name: value for name, value in now.items() if name != "seed" and value != defaults[name]}
        content = json.dumps([decides, self.files, code_hash()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:6]

    @property
    def has_work(self) -> bool:
        """Whether the run has come so far that something of it is saved."""
        return any((self.folder / name).exists() for name in ("checkpoints", "best"))

    def check(self) -> None:
        """Raises UserError where the folder holds a run of other settings, files or code."""
        if not (self.has_work or is_finished(self.folder)):
            return
        begun = begun_with(self.folder)
        now, before = effective(dataclasses.asdict(self.config)), effective(begun.get("config", {}))
        changes = [
            f"{flag_name(name)}: {value} -> {now.get(name)}"
            for name, value in before.items()
            if value != now.get(name)
        ]
        files = begun.get("files", {})
        changes += [f"{name} has changed" for name, sha in self.files.items() if files.get(name, sha) != sha]
        if not self.is_given and code_of(self.folder) not in (None, code_hash()):
            changes.append("the code has changed")
        if changes:
            raise UserError(
                f"{self.folder} holds a run of other settings ({'; '.join(changes)}): name another "
                "--output-dir, or remove it."
            )


def effective(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that affect the result; paths that exist in one spelling."""
    return {
        name: normal(value) if name in PATHS and isinstance(value, str) else value
        for name, value in config.items()
        if name not in CHANGES_NOTHING
    }


def normal(name: str) -> str:
    """A path that exists, in one spelling; other names as they are."""
    path = os.path.expanduser(name)
    return os.path.normpath(path) if os.path.exists(path) else name


def stamp(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


@functools.cache
def sha256_of(path: str, size: int, changed: int) -> str:
    """A file's hash; `size` and the time when it `changed` are those of what is remembered."""
    return describe(Path(path))["sha256"]


def check_shared(config: TrainConfig, what: str) -> TrainConfig:
    """The config, which several runs are to have in common. Raises UserError where they cannot."""
    defaults = TrainConfig()
    if wrong := [name for name in sorted(NOT_SHARED) if getattr(config, name) != getattr(defaults, name)]:
        raise UserError(
            f"{what} makes several runs of train.py: leave out {', '.join(map(flag_name, wrong))}."
        )
    return config


def is_finished(run_folder: Path) -> bool:
    """Whether a run, or one of folds, has come to its end.

    One of ours, whose checkpoints are removed at the very end, may lack its report while they are there.
    """
    if not (run_folder / "run.json").exists():
        return False
    if (run_folder / "trial.json").exists() and (run_folder / "checkpoints").exists():
        return False
    results = read_run(run_folder)
    return bool(results.last("end") or results.folds)


def run_trials(trials: list[Trial], stop: StopSignal) -> None:
    """Make the runs that are missing, one after the other.

    Raises UserError where one holds other settings or fails, Stopped after a signal: what is there by then
    is not made again.
    """
    for trial in trials:
        trial.check()
    trials = list({trial.folder: trial for trial in trials}.values())  # settings may be the same
    missing = [trial for trial in trials if not is_finished(trial.folder)]
    if len(missing) < len(trials):
        say(f"{len(trials) - len(missing)} of {len(trials)} runs are there already")
    for number, trial in enumerate(missing, start=1):
        say(f"run {number} of {len(missing)}: {trial.name}; what it says is in {trial.folder}/log.txt")
        seconds = run(trial, stop)
        results = read_run(trial.folder)
        metric, score = (results.last("end")[key] for key in ("best_metric", "best_score"))
        scored = []
        if trial.config.split_by != "nothing":  # else the score is of what was trained on
            scored.append(f"{metric} {score:.4f} ({results.run['evaluation_is']})")
        if test := results.last("test"):
            scored.append(f"{test[metric]:.4f} (test)")
        say(f"  {', '.join([*scored, f'{seconds / 60:.1f} min'])}")


def run(trial: Trial, stop: StopSignal) -> float:
    """Run train.py to its end, in a process of its own; returns the seconds that this took.

    Raises Failed where it ends otherwise, Stopped where we are asked to stop, once it has stopped.
    """
    folder, settings = trial.folder, trial.folder / "trial.json"
    is_ours = settings.exists() or not (folder / "run.json").exists()
    before = begun_with(folder).get("seconds", 0.0)
    began = time.monotonic()

    def keep(seconds: float) -> None:
        if is_ours:
            config = dataclasses.asdict(trial.config)
            write_json(settings, {"config": config, "files": trial.files, "seconds": seconds})

    with failing_as(folder):
        folder.mkdir(parents=True, exist_ok=True)
    keep(before)
    command = [sys.executable, str(TRAIN), "--config", str(settings if is_ours else folder / "run.json")]
    command += ["--output-dir", str(folder), "--resume" if trial.has_work else "--overwrite"]
    stop.defer()
    with failing_as(folder / "log.txt"), (folder / "log.txt").open("ab") as log:
        start = log.tell()
        # The bar, on standard error, is for whoever watches.
        errors = None if sys.stderr.isatty() else log
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=errors)
        try:
            code = wait(process, stop)
        finally:
            seconds = before + time.monotonic() - began
            keep(seconds)
    if stop.requested or code == STOPPED:
        raise Stopped("stopped: the same command goes on from there")
    stop.undefer()
    if code != OK:
        raise Failed(f"{trial.name} failed: {why_failed(code, folder / 'log.txt', start)}", code)
    if is_ours:
        remove_folder(folder / "checkpoints")  # several times the model, to go on with what has ended
    return seconds


def why_failed(code: int, log: Path, start: int) -> str:
    """The reason that a run gave, in its log from `start` on, or what is known."""
    if code < 0:
        memory = ", as where memory runs out" if -code == signal.SIGKILL else ""
        return f"it was killed by signal {-code}{memory}. The same command goes on."
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return said[-1] if said else f"see above, or {log}" if sys.stderr.isatty() else f"see {log}"


class Failed(UserError):
    """A run that ended otherwise than well, with the exit code it had."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code if code > 0 else TRAINING_FAILED  # below 0: a signal killed it


def wait(process: subprocess.Popen, stop: StopSignal) -> int:
    """The exit code of a process, which is asked to stop once we are."""
    asked = False
    while True:
        try:
            return process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            if stop.requested and not asked:
                process.terminate()  # after a Ctrl-C, which it had as well, this changes nothing
                asked = True
