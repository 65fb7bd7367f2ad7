"""Feeding alone: an epoch's batches without a model, and what has to be done once before the first epoch.

Theirs is the Trainer's own loader over the guide's mapped Arrow set, ours the loader of the training loop
over the memory-mapped cache. CPU time is what is compared: it is taken from training, however many cores
there are.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import (
    SAMPLING_RATE,
    SMALL,
    Row,
    clip_lengths,
    interleaved,
    parser,
    report,
    save_backbone,
    scratch_folder,
    write_clips,
)

BATCH_SIZE = 32


def main() -> None:
    args = parser(__doc__).parse_args()
    rounds = 3 if args.quick else 7
    num_clips = 128 if args.quick else 512
    rows = []
    with scratch_folder() as folder:
        for name, seconds, longest in (
            ("1 s clips", [1.0] * num_clips, 1.0),
            ("1-10 s clips", clip_lengths(num_clips // 4, 1, 10), 10.0),
        ):
            # 8 kHz, as MInDS-14 is: preparation resamples.
            clips = write_clips(folder / name, seconds, [8_000])
            rows += feeding_and_preparation(name, folder, clips, longest, rounds)
    settings = {
        "clips": f"{num_clips} of 1 s, {num_clips // 4} of 1-10 s, 8 kHz wav",
        "batches of": BATCH_SIZE,
        "rounds": rounds,
        "not counted": "one round",
    }
    report(args, settings, rows)


def feeding_and_preparation(name: str, folder: Path, clips: Path, longest: float, rounds: int) -> list[Row]:
    import torch
    from theirs import encode, load_clips, make_trainer  # makes torchaudio importable for transformers
    from transformers import AutoFeatureExtractor

    from audiocls.config import TrainConfig
    from audiocls.data.batch_plan import BatchPlan
    from audiocls.data.loader import load_batches
    from audiocls.data.prepare import prepare_data
    from audiocls.model.loading import load_for_training, open_backbone

    model = str(save_backbone(folder / "model", SMALL))  # only its shapes are used
    backbone, stock = open_backbone(model), open_backbone(model, stock=True)
    feature_extractor = AutoFeatureExtractor.from_pretrained(model)
    cpu = torch.device("cpu")
    table = load_clips(clips)
    config = TrainConfig(
        dataset=str(clips), cache_dir=str(folder / "ours"), max_seconds=longest, device="cpu"
    )

    def prepare_ours() -> Any:
        shutil.rmtree(folder / "ours", ignore_errors=True)
        return prepare_data(config, SAMPLING_RATE, min_samples=backbone.min_samples)

    def prepare_theirs() -> Any:
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as ours does: sharing so small a resampling can cost ten times as much
        encoded = encode(table, feature_extractor, longest, load_from_cache_file=False)
        torch.set_num_threads(num_threads)
        return encoded

    data, encoded = prepare_ours(), prepare_theirs()
    loaded = load_for_training(backbone, data.labels, seed=0)
    plan = BatchPlan(
        len(data.train), BATCH_SIZE, BATCH_SIZE, seed=0, epochs=1, lengths=data.train.num_samples
    )
    loader = make_trainer(
        load_for_training(stock, data.labels, seed=0).model.model,
        feature_extractor,
        encoded,
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=BATCH_SIZE,
        use_cpu=True,
        dataloader_pin_memory=False,
    ).get_train_dataloader()

    def feed_ours() -> None:
        draws = [draws for step in plan.steps_from(0, 0) for draws in step.micro_batches]
        for batch in load_batches(data.train, draws, loaded.collator(), num_workers=0, device=cpu):
            batch.to(cpu)

    def feed_theirs() -> None:
        for _ in loader:
            pass

    num_train, num_all = len(data.train), len(data.train) + len(data.evaluation)
    fed = interleaved(
        {"ours": cpu_milliseconds(feed_ours, num_train), "theirs": cpu_milliseconds(feed_theirs, num_train)},
        rounds=rounds,
    )
    made = interleaved(
        {
            "ours": cpu_milliseconds(prepare_ours, num_all),
            "theirs": cpu_milliseconds(prepare_theirs, num_all),
        },
        rounds=rounds,
    )
    return [
        Row(f"an epoch's feeding, {name}", "CPU ms/clip", fed["ours"], fed["theirs"]),
        Row(f"preparation, once, {name}", "CPU ms/clip", made["ours"], made["theirs"]),
    ]


def cpu_milliseconds(work: Callable[[], Any], num_clips: int) -> Callable[[], float]:
    """A measure: what `work` takes of this process's CPU time, a clip."""

    def measure() -> float:
        began = time.process_time()
        work()
        return 1000 * (time.process_time() - began) / num_clips

    return measure


if __name__ == "__main__":
    main()
