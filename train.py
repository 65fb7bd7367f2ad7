"""Fine-tune a speech encoder to classify audio: `python train.py --help`."""

import dataclasses
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from audiocls.config import TrainConfig
from audiocls.errors import OK, exit_code_of, is_first_rank, out_of_memory_explained
from audiocls.flags import parse_train
from audiocls.signals import StopSignal

if TYPE_CHECKING:
    import torch

    from audiocls.data.audit import Audit
    from audiocls.data.prepare import RunData
    from audiocls.distributed import Ranks
    from audiocls.model.backbone import LoadedModel


def main() -> int:
    stop = StopSignal()
    if "RANK" in os.environ:  # of torchrun
        stop.defer()  # until `joined`, which knows whether a signal only follows from the end of another rank
        # Else DistributedDataParallel warns of a setting that is meant: Ranks.wrapped.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    config = parse_train(sys.argv[1:])
    if config.audit:
        stop.undefer("stopped")
        if is_first_rank():
            audit_only(config)
        return OK

    # Only from here on anything heavy is imported. Looking for garbage meanwhile would take a quarter longer.
    gc.disable()
    from audiocls.distributed import joined

    with joined(stop) as ranks:
        fine_tune(config, stop, ranks)
    stop.ignore()  # all is done
    gc.freeze()  # as Python ends it would look for garbage in all that was imported (0.4 s)
    return OK


def fine_tune(config: TrainConfig, stop: StopSignal, ranks: "Ranks") -> None:
    """All that happens between flags and report, on each of the ranks."""
    from audiocls.devices import pick_device
    from audiocls.hub import check_login, say_push
    from audiocls.log.summary import open_log, say_micro_batches
    from audiocls.log.trackers import check_installed
    from audiocls.reporting.audit import keep_audit
    from audiocls.reporting.wrap_up import say_end, wrap_up
    from audiocls.training.checkpoint import check_room
    from audiocls.training.loop import finish, train
    from audiocls.training.memory import advice, fit_batch_size, smaller_work
    from audiocls.training.run_folder import (
        after_restart,
        claim_run_folder,
        how_it_ended,
        keep_micro_batch_size,
        micro_batch_before,
        write_run,
    )

    config = ranks.decide(lambda: after_restart(config, ranks))
    check_installed(config.trackers)
    if (name := config.push_to_hub) and not config.push_dry_run:
        config = dataclasses.replace(config, push_to_hub=ranks.decide(lambda: check_login(name)))
    device = pick_device(ranks.own_device(config.device), config.precision)
    run_folder = ranks.decide(lambda: claim_run_folder(config, ranks))
    with ranks.first_goes_ahead():  # the others find in its caches what it has fetched, decoded and computed
        config, loaded, data, found = prepare(config, device, run_folder, ranks)
    ranks.check_alike("clips", lambda: data.layout)
    before = ranks.decide(lambda: micro_batch_before(run_folder, config))
    with how_it_ended(run_folder, ranks):
        if ranks.is_first:
            check_room(run_folder, loaded.model)  # a full disk is found before training
            write_run(run_folder, config, data, loaded.backbone, device, before, ranks)
        with out_of_memory_explained(smaller_work(config)):
            config = fit_batch_size(config, loaded, data.train, device, before, ranks)
        say_micro_batches(config, ranks)
        if ranks.is_first:
            keep_micro_batch_size(run_folder, config.micro_batch_size)
            keep_audit(run_folder, found)

        with (
            open_log(config, data, loaded, device, run_folder, ranks) as log,
            out_of_memory_explained(advice(config)),
        ):
            state = train(config, loaded, data, device, run_folder, log, stop, ranks)
            finish(config, loaded, data, device, run_folder, log, stop, state, ranks)
            if ranks.is_first:
                wrap_up(run_folder, data.sound, log.show_image)
    if ranks.is_first:
        say_end(run_folder)
        if config.push_to_hub:
            say_push(run_folder / "best", config.push_to_hub, dry_run=config.push_dry_run)


def prepare(
    config: TrainConfig, device: "torch.device", run_folder: Path, ranks: "Ranks"
) -> "tuple[TrainConfig, LoadedModel, RunData, Audit]":
    """The settings with a value for every "auto", the model and the clips, ready to train; the audit."""
    from audiocls.data.audit import audit
    from audiocls.data.cache import cache_folder
    from audiocls.data.prepare import prepare_data
    from audiocls.log.summary import say_data, say_start
    from audiocls.model.freezing import check_can_freeze, freeze, with_layer_sum
    from audiocls.model.loading import load_for_training, open_backbone
    from audiocls.reporting.audit import say_summary
    from audiocls.training.features import cache_features
    from audiocls.training.graphs import check_can_capture
    from audiocls.training.head_first import train_head_first
    from audiocls.training.memory import smaller_work
    from audiocls.training.rules import fit_window, settle

    gc.freeze()
    gc.enable()
    # In this order, so that a mistake in the data is found before weights are read.
    backbone = open_backbone(config.model, config.model_revision, stock=config.backbone == "transformers")
    if config.cuda_graphs:
        check_can_capture(backbone, device, ranks.world_size)
    data = prepare_data(config, backbone.sampling_rate, backbone.min_samples, backbone.max_samples)
    config = settle(config, data, backbone)
    check_can_freeze(backbone, config.freeze, cache_features=config.cache_features)
    if config.head_first or config.freeze == "encoder":
        backbone = with_layer_sum(backbone)
    if config.cut_window:
        backbone, data = fit_window(backbone, data)
    found = audit(config.dataset, data, backbone.max_samples)
    say_data(config, data)
    say_summary(found)
    loaded = load_for_training(backbone, data.labels, seed=config.seed)
    freeze(loaded, config.freeze)
    say_start(config, data, loaded, device, run_folder, ranks)
    if config.activation_checkpointing:
        loaded.model.recompute_activations()
    with out_of_memory_explained(smaller_work(config)):
        cache_dir = cache_folder(config.cache_dir)
        if config.head_first:
            train_head_first(config, loaded, data, cache_dir, device)
        if config.cache_features or config.freeze == "encoder":
            takes = "pooled" if config.freeze == "encoder" else "features"
            loaded, data = cache_features(loaded, data, takes, cache_dir, device)
    return config, loaded, data, found


def audit_only(config: TrainConfig) -> None:
    """What --audit does: prepare the data, say everything about it, and write that as a page."""
    from audiocls.data.audit import audit, prepare_for_audit
    from audiocls.model.loading import open_backbone_or_tiny
    from audiocls.reporting.pages import say_audit
    from audiocls.training.run_folder import short_name

    backbone = open_backbone_or_tiny(config.model, config.model_revision)
    data = prepare_for_audit(config, backbone.sampling_rate, backbone.min_samples, backbone.max_samples)
    folder = Path(os.path.expanduser(config.output_dir or "runs"))
    say_audit(audit(config.dataset, data), folder, short_name(config.dataset))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
