"""The short blocks of text before the first step and after the last, and the log between them."""

import dataclasses
import shlex
import sys
from pathlib import Path

import numpy as np
import torch

from audiocls.config import TrainConfig
from audiocls.data.prepare import RunData
from audiocls.devices import device_name, pick_precision
from audiocls.hub import files_to_push, push
from audiocls.model.loaded import LoadedModel
from audiocls.reporting.audit import class_sizes
from audiocls.reporting.audit_text import classes_text
from audiocls.reporting.chance import ChanceAlarm
from audiocls.reporting.flops import training_flops
from audiocls.reporting.profiling import StepProfiler
from audiocls.reporting.run_log import RunLog, say
from audiocls.reporting.trackers import Trackers
from audiocls.training.checkpoint import TrainState
from audiocls.training.evaluation import Evaluation


def say_start(
    config: TrainConfig, data: RunData, loaded: LoadedModel, device: torch.device, run_folder: Path
) -> None:
    """What is trained on what, and what is not as one may think."""
    for note in [*data.notes, *loaded.notes]:
        say(f"note: {note}")
    if config.model == "tiny" and config.learning_rate < 1e-3:
        say("note: tiny has random weights, for which the learning rate is low: try --recipe scratch")
    parts = [("train", data.train), (f"evaluation ({data.eval_name})", data.evaluation)]
    parts += [("test", data.test)] if data.test else []
    say(f"data: {config.dataset}: " + ", ".join(f"{name} {len(clips)} clips" for name, clips in parts))
    if cache := data.train.decoded.cache:
        say(f"decoded audio: {cache.num_bytes / 1e6:.1f} MB in {cache.path.parent}")
    say(classes_text(class_sizes(data.train, data.labels)))
    parameters = list(loaded.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    say(
        f"model: {config.model}, {sum(p.numel() for p in parameters) / 1e6:.2f}M parameters, "
        f"{trained / 1e6:.2f}M of them trained"
    )
    say(f"forward pass: {forward_pass_of(loaded)}")
    say(
        f"steps of {config.clips_per_step} clips, {config.batch_size} at a time, on "
        f"{device_name(device)} in {pick_precision(config.precision, device)}"
    )
    if device.type == "cpu" and pick_precision(config.precision, device) != "fp32":
        say(f"note: {config.precision} is slower than fp32 on most CPUs")
    say(f"writing to {run_folder}/")


def forward_pass_of(loaded: LoadedModel) -> str:
    """Whose code computes the logits, and what padding does to them."""
    if not loaded.backbone.is_stock:
        return "audiocls/model/encoder.py, in which padding changes no result"
    padding = "changes no result" if loaded.padding_invariant else "changes results, as in the guide"
    return f"transformers' own {loaded.backbone.config.model_type}, in which padding {padding}"


def open_log(
    config: TrainConfig, data: RunData, loaded: LoadedModel, device: torch.device, run_folder: Path
) -> RunLog:
    """The run's log, with what `--profile` and `--log-to` ask for."""
    sizes = np.bincount(data.evaluation.labels, minlength=len(data.labels))
    decoded, rows = data.train.decoded, data.train.rows
    alarm = ChanceAlarm(
        config,
        sizes / sizes.sum(),
        loaded.backbone.takes_waveforms,
        decoded.num_samples[rows].sum() / decoded.sampling_rate / decoded.seconds[rows].sum(),
    )
    trackers = Trackers(config.trackers, run_folder, dataclasses.asdict(config))
    if not config.profile:
        return RunLog(run_folder, None, alarm, trackers)
    backbone = loaded.backbone

    def flops_of(seconds: float) -> float:
        return training_flops(
            backbone.config,
            seconds * backbone.sampling_rate,
            is_frozen=config.freeze_feature_encoder,
            is_cached=config.cache_features,
        )

    precision = pick_precision(config.precision, device)
    profiler = StepProfiler(run_folder / "profile", device, precision, flops_of)
    return RunLog(run_folder, profiler, alarm, trackers)


def say_push(best: Path, name: str, *, dry_run: bool) -> None:
    """Upload the best model, or with `dry_run` say what would be. Raises InputOutputFailed."""
    if dry_run:
        for file in files_to_push(best):
            say(f"would upload to {name}: {file.name}, {file.stat().st_size:,} bytes")
        return
    say(f"uploaded to {push(best, name)}")


def say_end(
    config: TrainConfig, data: RunData, state: TrainState, test: Evaluation | None, run_folder: Path
) -> None:
    """How good the best model is, where it lies, and what to type to use it."""
    say(f"best: {config.best_metric} {state.best_score:.4f} on {data.eval_name} at step {state.best_step}")
    largest = np.bincount(data.evaluation.labels).max() / len(data.evaluation)
    if config.best_metric == "accuracy" and (state.best_score or 0.0) <= largest:
        say(f"note: that is no better than always naming one label, which is right in {largest:.4f}")
    if test is not None:
        say(f"test: accuracy {test.accuracy:.4f}, macro_f1 {test.macro_f1:.4f} on {test.num_samples} clips")
    example = data.evaluation.paths[0]
    file = example if Path(example).is_file() else "FILE.wav"  # a clip of a Hub data set is no file
    infer = Path(sys.argv[0]).with_name("infer.py")
    command = shlex.join(["python", str(infer), str(run_folder), file])
    say(f"the best model is in {run_folder}/best; try: {command}")
