"""What a run says before its first step: what is trained on what; and the log that it opens."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch

from audiocls.config import TrainConfig
from audiocls.data.prepare import RunData
from audiocls.devices import device_name, pick_precision
from audiocls.distributed import ALONE, Ranks
from audiocls.errors import number_of
from audiocls.flags import as_typed
from audiocls.log.advice import SpeedNote
from audiocls.log.chance_alarm import ChanceAlarm
from audiocls.log.estimate import TimeEstimate
from audiocls.log.flops import training_flops_by_part
from audiocls.log.profiling import StepProfiler
from audiocls.log.run_log import RunLog
from audiocls.log.trackers import Trackers
from audiocls.model.backbone import LoadedModel
from audiocls.recipes import GUIDE_AT_CHANCE, GUIDE_ENDS, RECIPES
from audiocls.streams import say


def say_data(config: TrainConfig, data: RunData) -> None:
    """Print what became of every file or row, and a note about anything surprising."""
    for account in data.accounts:
        say(f"data: {account}")
    if config.split_by == "nothing":
        say("note: nothing is held out: the evaluation is of the clips that are trained on, and flatters")
    for note in data.notes:
        say(f"note: {note}")
    if cache := data.train.decoded.cache:
        say(f"decoded audio: {cache.num_bytes / 1e6:.1f} MB in {cache.path.parent.parent}")


def say_start(
    config: TrainConfig,
    data: RunData,
    loaded: LoadedModel,
    device: torch.device,
    run_folder: Path,
    ranks: Ranks = ALONE,
) -> None:
    """Print model, settings, device and the run's folder, and a note about anything surprising."""
    parameters = list(loaded.model.parameters())
    total, trained = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
    how_many = "all" if trained == total else f"{trained / 1e6:.2f}M"
    say(f"model: {config.model}, {total / 1e6:.2f}M parameters, {how_many} of them trained")
    padding = "changes no result" if loaded.padding_invariant else "changes results, as in the guide"
    stock = f"transformers' own {loaded.backbone.config.model_type}"
    code = stock if loaded.backbone.is_stock else "audiocls/model/encoder.py"
    say(f"forward pass: {code}, in which padding {padding}")
    for note in loaded.notes:
        say(f"note: {note}")
    settings = [as_typed(name, getattr(config, name)) for name in RECIPES[config.recipe].settings]
    say(f"recipe {config.recipe} sets {' '.join(settings)}")
    if all(getattr(config, name) == value for name, value in GUIDE_AT_CHANCE.items()):
        say(f"note: {GUIDE_ENDS}")
    if config.model == "tiny" and (float(config.learning_rate) < 1e-3 or config.freeze == "encoder"):
        say("note: tiny has random weights, which these settings hardly train: try --recipe scratch")
    on_ranks = f"{ranks.world_size} ranks, each on " if ranks.world_size > 1 else ""
    precision = pick_precision(config.precision, device)
    say(f"device: {on_ranks}{device_name(device)}, in {precision}")
    if device.type == "cpu" and precision != "fp32":
        say(f"note: {precision} is slower than fp32 on most CPUs")
    if device.type != "cuda" and config.precision == "tf32":
        say("note: only CUDA GPUs have tf32: computed in fp32")
    say(f"writing to {run_folder}/")


def say_micro_batches(config: TrainConfig, ranks: Ranks = ALONE) -> None:
    """Print how a step is divided, where it is."""
    if config.micro_batch_size < config.clips_per_step:
        say(f"micro-batches of {number_of(config.micro_batch_size, 'clip')}")
    if (busy := -(-config.clips_per_step // config.micro_batch_size)) < ranks.world_size:
        idle, size = ranks.world_size - busy, -(-config.clips_per_step // ranks.world_size)
        say(f"note: {idle} of {ranks.world_size} ranks repeat what others do: give --batch-size {size}")


def open_log(
    config: TrainConfig,
    data: RunData,
    loaded: LoadedModel,
    device: torch.device,
    run_folder: Path,
    ranks: Ranks = ALONE,
) -> RunLog:
    """The run's log, with what `--profile` and `--log-to` ask for; of all ranks but the first an idle one."""
    if not ranks.is_first:
        return RunLog(None)
    sizes = np.bincount(data.evaluation.labels, minlength=len(data.labels))
    decoded, rows = data.train.decoded, data.train.rows
    alarm = ChanceAlarm(
        config,
        sizes / sizes.sum(),
        loaded.backbone.takes_waveforms,
        decoded.num_samples[rows].sum() / decoded.sampling_rate / decoded.seconds[rows].sum(),
    )
    an_epoch = math.ceil(len(data.train) / config.clips_per_step)
    total = config.max_steps or int(config.epochs) * an_epoch
    every = config.eval_every if isinstance(config.eval_every, int) else total
    every = an_epoch if config.eval_every == "epoch" else every
    estimate = TimeEstimate(len(data.evaluation), every, device.type == "cpu")
    backbone = loaded.backbone

    def flops_of(seconds: float) -> dict[str, float]:
        by_part = training_flops_by_part(
            backbone.config,
            seconds * backbone.sampling_rate,
            freeze=config.freeze,
            is_cached=config.cache_features,
        )
        return {part: flops / ranks.world_size for part, flops in by_part.items()}  # this one's share

    precision = pick_precision(config.precision, device)
    can_capture = backbone.is_alike_each_time and not config.activation_checkpointing
    profiler, speed_note = None, None
    if config.profile:
        profiler = StepProfiler(run_folder / "profile", device, precision, flops_of, config, can_capture)
    elif device.type == "cuda" and config.freeze != "encoder":  # a head alone is quick in any case
        speed_note = SpeedNote(config, precision, an_epoch, can_capture)
    trackers = Trackers(config.trackers, run_folder, dataclasses.asdict(config))
    return RunLog(run_folder, profiler, alarm, estimate, speed_note, trackers)
