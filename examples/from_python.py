"""Train and classify from Python, with the parts that train.py puts together."""

import sys

from audiocls import Classifier, TrainConfig
from audiocls.data.prepare import prepare_data
from audiocls.devices import pick_device
from audiocls.errors import OK, exit_code_of
from audiocls.log.run_log import RunLog
from audiocls.log.summary import say_data, say_start
from audiocls.model.loading import load_for_training, open_backbone
from audiocls.signals import StopSignal
from audiocls.training.loop import finish, train
from audiocls.training.run_folder import claim_run_folder, write_run


def main() -> int:
    stop = StopSignal()  # SIGTERM and Ctrl-C
    config = TrainConfig(dataset="demo", model="tiny", learning_rate=2e-3, global_batch_size=32, epochs=4)
    device = pick_device(config.device, config.precision)
    run_folder = claim_run_folder(config)
    backbone = open_backbone(config.model)
    data = prepare_data(config, backbone.sampling_rate, backbone.min_samples, backbone.max_samples)
    loaded = load_for_training(backbone, data.labels, seed=config.seed)
    write_run(run_folder, config, data, backbone, device)
    say_data(config, data)
    say_start(config, data, loaded, device, run_folder)
    with RunLog(run_folder) as log:
        state = train(config, loaded, data, device, run_folder, log, stop)
        finish(config, loaded, data, device, run_folder, log, stop, state)

    classifier = Classifier.from_pretrained(run_folder)
    for prediction in classifier(data.evaluation.paths[:3]):
        print(f"{prediction.path}: {prediction.label} ({prediction.score:.2f})")
    return OK


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
