"""Fine-tune a speech encoder to classify audio: `python train.py --help`."""

import sys

from audiocls.config import parse_train
from audiocls.errors import OK, exit_code_of
from audiocls.signals import StopSignal


def main() -> int:
    stop = StopSignal()
    config = parse_train(sys.argv[1:])

    # Only from here on anything heavy is imported.
    from audiocls.data.cache import cache_folder
    from audiocls.data.prepare import prepare_data
    from audiocls.devices import pick_device
    from audiocls.model.backbone import freeze_feature_encoder, load_for_training, open_backbone
    from audiocls.reporting.run_log import RunLog
    from audiocls.reporting.summary import say_end, say_start
    from audiocls.training.checkpoint import check_room
    from audiocls.training.features import cache_features
    from audiocls.training.loop import finish, train
    from audiocls.training.run_folder import claim_run_folder, write_run

    device = pick_device(config.device)
    run_folder = claim_run_folder(config)
    backbone = open_backbone(config.model, config.model_revision)
    progress = sys.stderr.isatty()
    data = prepare_data(
        config, backbone.sampling_rate, backbone.min_samples, backbone.max_samples, progress=progress
    )
    loaded = load_for_training(
        backbone, data.labels, seed=config.seed, padding_invariant=config.padding_invariant
    )
    if config.freeze_feature_encoder:
        freeze_feature_encoder(loaded.model, config.model)
    if config.cache_features:
        loaded, data = cache_features(loaded, data, cache_folder(config.cache_dir), device, progress=progress)
    check_room(run_folder, loaded.model)
    write_run(run_folder, config, data, backbone, device)
    say_start(config, data, loaded, device, run_folder)

    with RunLog(run_folder) as log:
        state = train(config, loaded, data, device, run_folder, log, stop)
        test = finish(config, loaded, data, device, run_folder, log, stop, state)
    say_end(config, data, state, test, run_folder)
    stop.ignore()
    return OK


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
