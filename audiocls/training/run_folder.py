"""The folder of a run: its name, and run.json, which says what the run was."""

import atexit
import contextlib
import dataclasses
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from audiocls.code_hash import code_hash, code_of
from audiocls.config import CHANGES_NOTHING, TrainConfig
from audiocls.data.prepare import RunData
from audiocls.devices import device_name, pick_precision
from audiocls.distributed import ALONE, Ranks
from audiocls.errors import InputOutputFailed, Stopped, UserError
from audiocls.flags import flag_name
from audiocls.model.backbone import Backbone
from audiocls.storage import READ_ERRORS, failing_as, lock, remove_unfinished, write_json
from audiocls.streams import say
from audiocls.tables import FORMATS
from audiocls.version import __version__

# What a resumed run may change: the rest decides what is computed.
MAY_CHANGE = CHANGES_NOTHING | {"audit", "epochs", "eval_every", "max_bad_clips", "max_steps"}
SIZES = ("batch_size", "gradient_accumulation_steps", "global_batch_size")
LIBRARIES = ("torch", "torchaudio", "transformers", "datasets", "numpy", "soundfile", "safetensors")


def after_restart(config: TrainConfig, ranks: Ranks) -> TrainConfig:
    """The config with which a run that torchrun has started again goes on where it was."""
    if folder := ranks.remembered("run folder"):
        config = dataclasses.replace(config, output_dir=folder)
    if folder and ranks.remembered("run has begun"):
        if not os.path.exists(folder):
            raise UserError(
                f"{folder} is not on this machine, which writes since all was started again: name an "
                "--output-dir that every machine sees."
            )
        config = dataclasses.replace(config, resume=True, overwrite=False)
    return config


def claim_run_folder(config: TrainConfig, ranks: Ranks = ALONE) -> Path:
    """Make the folder to write to; the default name gets -2, -3 where it is taken.

    Raises UserError where a folder that was named holds a run already, or the model to begin with,
    InputOutputFailed where it cannot be written.
    """
    folder = Path(os.path.expanduser(config.output_dir)) if config.output_dir else default_folder(config)
    if lies_in(config.model, folder) and not (config.resume and holds_run(folder)):
        raise UserError(
            f"--model {config.model} lies in {folder}, where this run would begin anew and replace it: name "
            "another --output-dir."
        )
    if holds_run(folder) and not (config.resume or config.overwrite):
        raise UserError(f"{folder} holds a run already: give --resume, --overwrite or another --output-dir.")
    with failing_as(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not lock(folder):
            raise UserError(f"Another run is writing to {folder}: wait for it, or name another --output-dir.")
        atexit.register(remove_if_empty, folder)  # where nothing was written: a mistake, a stop
        remove_unfinished(folder)
        remove_unfinished(folder / "checkpoints")
        with tempfile.TemporaryFile(dir=folder) as probe:  # on Linux it never has a name
            probe.write(bytes(4096))
    ranks.remember("run folder", str(folder))
    return folder


def default_folder(config: TrainConfig) -> Path:
    """runs/<data set>-<model>, made just now; to resume or overwrite, the newest one of that name."""
    base = Path("runs", f"{short_name(config.dataset)}-{short_name(config.model)}")
    folder, newest, number = base, base, 1
    while True:
        if not os.path.exists(folder):
            if config.resume or config.overwrite:
                return newest
            with failing_as(folder), contextlib.suppress(FileExistsError):  # another run may be first
                folder.mkdir(parents=True)
                return folder
        number += 1
        newest, folder = folder, base.with_name(f"{base.name}-{number}")


def remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def lies_in(model: str, folder: Path) -> bool:
    """Whether a model is a folder that is `folder` or lies in it, or a run folder whose best/ does."""
    path = Path(os.path.expanduser(model))
    if model == "tiny" or not os.path.isdir(path):
        return False
    return any(one.resolve().is_relative_to(folder.resolve()) for one in (path, path / "best"))


def short_name(name: str) -> str:
    """`minds14` of PolyAI/minds14, `birds` of a/birds.csv, `fsdd` of fsdd/train.csv, `x` of runs/x/best."""
    path = Path(os.path.expanduser(name))
    path = path.resolve() if os.path.exists(path) else path
    if path.name == "best" and (path / "config.json").exists():  # a run's model
        path = path.parent
    if path.suffix.lower() not in FORMATS:
        return path.name
    return path.parent.name if path.stem in ("train", "metadata") and path.parent.name else path.stem


def holds_run(folder: Path) -> bool:
    return any(os.path.exists(folder / name) for name in ("run.json", "checkpoints"))


def remove_run(folder: Path) -> None:
    """Remove what a run wrote, and nothing that somebody put beside it."""
    with failing_as(folder):
        for name in ("checkpoints", "best", "errors", "profile", "tensorboard", "wandb"):
            if (folder / name).exists():
                shutil.rmtree(folder / name)
        for name in "run.json metrics.jsonl predictions.jsonl audit.json report.html".split():
            (folder / name).unlink(missing_ok=True)


def micro_batch_before(folder: Path, config: TrainConfig) -> int | None:
    """The clips in a micro-batch of the run that is resumed; None where none is, or it does not say."""
    if not config.resume:
        return None
    try:
        before = json.loads((folder / "run.json").read_text(encoding="utf-8"))["micro_batch_size"]
    except READ_ERRORS:  # what is wrong with it, `write_run` says
        return None
    return before if type(before) is int and 0 < before <= config.clips_per_step else None


def keep_micro_batch_size(folder: Path, size: int) -> None:
    """Add to run.json how many clips a micro-batch has: a run that is resumed keeps that."""
    add_to_run(folder, micro_batch_size=size)


@contextlib.contextmanager
def how_it_ended(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Add to run.json, as `ended`, that the run is "stopped", by a signal, or "finished"; null meanwhile.

    null it stays where the run fails or is killed.
    """
    try:
        yield
    except Stopped:
        if ranks.is_first and holds_run(folder):
            add_to_run(folder, ended="stopped")
        raise
    if ranks.is_first:
        add_to_run(folder, ended="finished")


def add_to_run(folder: Path, **values: Any) -> None:
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    write_json(folder / "run.json", run | values)


def write_run(
    folder: Path,
    config: TrainConfig,
    data: RunData,
    backbone: Backbone,
    device: torch.device,
    micro_batch_size: int | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Write run.json: the run begins. One that is resumed is checked to be the same, one overwritten removed.

    Raises UserError where it would be another run.
    """
    run: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "label2id": {label: id for id, label in enumerate(data.labels)},
        "split_fingerprint": data.fingerprint,
        "clips": {
            "train": len(data.train),
            "evaluation": len(data.evaluation),
            "test": len(data.test) if data.test else 0,
        },
        "evaluation_is": data.eval_name,
        "hub_commits": data.commits | ({config.model: backbone.commit} if backbone.commit else {}),
        "device": device_name(device),
        "precision": pick_precision(config.precision, device),
        "clips_per_step": config.clips_per_step,
        "micro_batch_size": micro_batch_size,
        "world_size": ranks.world_size,
        "forward_pass": backbone.forward_pass,
        "ended": None,
        "versions": {
            "audiocls": __version__,
            "code": code_hash(),
            "python": platform.python_version(),
            **{library: version(library) for library in LIBRARIES},
        },
    }
    if config.resume and holds_run(folder):
        check_same(folder, run)
        run["versions"]["code"] = code_so_far(folder)
    else:
        remove_run(folder)
    ranks.remember("run has begun", "yes")
    write_json(folder / "run.json", run)


def code_so_far(folder: Path) -> str:
    """The code that makes a run which is resumed, now's last. Says it where it has changed."""
    before = code_of(folder) or "unknown"
    if before.rpartition(" ")[2] == code_hash():
        return before
    say("note: the code is not the one that the run began with: what comes of it, no state of the code gives")
    return f"{before} then {code_hash()}"


def clips_per_step(config: dict[str, Any]) -> int:
    return TrainConfig(**{name: config[name] for name in SIZES if name in config}).clips_per_step


def check_same(folder: Path, run: dict[str, Any]) -> None:
    """Raises UserError with `field: old -> new` for everything that a resumed run must not change."""
    try:
        before = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        # A setting that is newer than the run had its default's effect.
        old_config = dataclasses.asdict(TrainConfig()) | before["config"]
        may_change = MAY_CHANGE
        if clips_per_step(old_config) == clips_per_step(run["config"]):
            may_change = MAY_CHANGE | set(SIZES)  # the same steps, with other draws of dropout
        changes = [
            f"{flag_name(name)}: {old_config.get(name)} -> {new}"
            for name, new in run["config"].items()
            if name not in may_change and old_config.get(name) != new
        ]
        others = {
            "precision": "precision",
            "forward_pass": "forward pass",
            "label2id": "labels",
            "split_fingerprint": "clips, or their order",
        }
        changes += [f"other {what}" for name, what in others.items() if before[name] != run[name]]
    except READ_ERRORS as error:
        raise InputOutputFailed(f"{folder / 'run.json'} cannot be read: {error}. Is it a run's?") from None
    if changes and old_config["recipe"] != run["config"].get("recipe", old_config["recipe"]):
        changes.append(f"it began with --recipe {old_config['recipe']}")
    if changes:
        raise UserError(f"{folder} cannot be resumed, it would be another run: {'; '.join(changes)}.")
