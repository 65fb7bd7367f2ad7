"""Several ranks end with what one process ends with, whatever their number."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import architectures
import numpy as np
import pytest
import torch
from conftest import LABELS, RANDOM, SMALL, Lab, collator, without_times
from rank_helpers import on_ranks
from torch.profiler import ProfilerActivity, profile, record_function

from audiocls.config import TrainConfig
from audiocls.data.augment import Augmentation
from audiocls.data.loader import IGNORED, of_no_weight
from audiocls.data.prepare import RunData
from audiocls.distributed import ALONE, Ranks, joined
from audiocls.errors import UserError
from audiocls.log.trace import part_times
from audiocls.model.backbone import LoadedModel
from audiocls.model.freezing import freeze
from audiocls.model.loading import load_for_training, open_backbone
from audiocls.signals import StopSignal
from audiocls.training import loop
from audiocls.training.features import cache_features
from audiocls.training.loss import loss_sum
from audiocls.training.memory import fit_batch_size, ranks_share

# Of 25 clips a step is four micro-batches (3 + 3 + 3 + 1 clips), an epoch's last two (3 + 2).
SETTINGS: dict[str, Any] = {
    "batch_size": 3,
    "global_batch_size": 10,
    "epochs": 2,
    "learning_rate": 1e-3,
    "best_metric": "loss",
    "eval_batch_size": 2,
}
CPU = torch.device("cpu")
MicroBatch = tuple[int, int, tuple[int, ...]]  # step, number in it, draws
Prepare = Callable[[Lab, RunData], tuple[LoadedModel, RunData]]


@dataclasses.dataclass
class Result:
    """What a rank has at the end of a run."""

    weights: dict[str, torch.Tensor]
    records: list[dict[str, Any]]  # of the first rank
    micro_batches: list[MicroBatch]  # those whose clips counted

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["kind"] == kind]


def random_in_everything(lab: Lab, data: RunData) -> tuple[LoadedModel, RunData]:
    augment = Augmentation(("speed", "mask"), 7, 16_000, 40)
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, augment=augment))
    return lab.spread(data, **RANDOM), data


def clips(lab: Lab) -> RunData:
    """25 to train on, 11 to evaluate on, 7 to test: of 50 to 150 ms."""
    return lab.data(25, 11, 7, samples=(800, 2400))


def train(
    lab: Lab,
    name: str,
    ranks: Ranks = ALONE,
    prepare: Prepare = random_in_everything,
    dtype: torch.dtype = torch.float64,
    **settings: Any,
) -> Result:
    """A run, with what `prepare` makes of model and clips."""
    loaded, data = prepare(lab, clips(lab))
    loaded.model.to(dtype)

    def as_dtype(module: Any, args: Any, inputs: dict[str, torch.Tensor]) -> Any:
        return args, {name: one.to(dtype) if one.is_floating_point() else one for name, one in inputs.items()}

    loaded.model.register_forward_pre_hook(as_dtype, with_kwargs=True)
    micro_batches: list[MicroBatch] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "step_batches", partial(noting, micro_batches, loop.step_batches))
        run = lab.train(name, loaded, data, ranks=ranks, with_finish=True, **SETTINGS | settings)
    return Result(run.weights, without_times(run.records()) if ranks.is_first else [], micro_batches)


def noting(seen: list[MicroBatch], step_batches: Callable[..., Any], *args: Any, **how: Any) -> Iterator[Any]:
    """`step_batches`, which adds what it gives to `seen`."""
    for step, batches in step_batches(*args, **how):
        place = 3 * step.epoch + step.step_in_epoch

        def noted(step: Any = step, batches: Any = batches, place: int = place) -> Iterator[Any]:
            for number, batch, is_last in batches:
                if (batch.labels != IGNORED).all():
                    seen.append((place, number, tuple(step.micro_batches[number])))
                yield number, batch, is_last

        yield step, noted()


def on(world_size: int, lab: Lab, name: str, **how: Any) -> list[Result]:
    """The same run on so many ranks."""
    how.get("prepare", random_in_everything)(lab, clips(lab))  # once, before: its files are kept

    def work(ranks: Ranks, stop: StopSignal) -> Result:
        return train(dataclasses.replace(lab, stop=stop), name, ranks, **how)

    return on_ranks(world_size, work)


def distance(one: Result, other: Result) -> float:
    """The largest difference of two weights of the same name."""
    assert one.weights.keys() == other.weights.keys()
    return max((one.weights[name] - other.weights[name]).abs().max().item() for name in one.weights)


def together(runs: list[Result]) -> list[MicroBatch]:
    return sorted(micro_batch for run in runs for micro_batch in run.micro_batches)


# The same result


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_take_the_same_micro_batches_and_end_with_the_same_weights(lab: Lab, world_size: int) -> None:
    alone = train(lab, "alone")
    runs = on(world_size, lab, "ranks")

    assert together(runs) == alone.micro_batches
    for run in runs:  # float64 has 16 digits: gradients are added up in another order
        assert distance(run, alone) < 1e-12
        assert distance(run, runs[0]) == 0
    for ours, theirs in zip(runs[0].records, alone.records, strict=True):
        numbers = [
            {key: one for key, one in record.items() if type(one) is not str} for record in (ours, theirs)
        ]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)  # losses are computed in float32


def test_in_float32_losses_stay_within_rounding_over_20_steps(lab: Lab) -> None:
    how: dict[str, Any] = {"dtype": torch.float32, "epochs": 7, "eval_every": "end"}
    runs = train(lab, "alone", **how), on(3, lab, "ranks", **how)[0]
    alone, ranks = ([record["loss"] for record in run.of_kind("train")] for run in runs)
    assert len(alone) == 21
    assert np.abs(np.subtract(ranks, alone)).max() < 1e-5


def test_evaluation_counts_each_clip_once(lab: Lab) -> None:
    """11 clips in batches of two, of which the last one is alone; four ranks have one batch or two."""
    how: dict[str, Any] = {"dtype": torch.float32, "max_steps": 1}
    alone = train(lab, "alone", **how)
    for world_size in (2, 4):
        name = f"{world_size} ranks"
        first = on(world_size, lab, name, **how)[0]
        for kind, num_clips in (("eval", 11), ("test", 7)):
            (ours,), (theirs,) = first.of_kind(kind), alone.of_kind(kind)
            assert ours["num_clips"] == theirs["num_clips"] == num_clips
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
            assert ours["accuracy"] == theirs["accuracy"]
        assert paths(lab.folder / name) == paths(lab.folder / "alone")


def paths(run_folder: Path) -> list[str]:
    lines = (run_folder / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line)["path"] for line in lines]


@pytest.mark.parametrize(("before", "then"), [(2, [1, 2, 3]), (3, [3])])
def test_a_run_goes_on_on_more_or_fewer_ranks(lab: Lab, before: int, then: list[int]) -> None:
    # Whatever the number of steps, the same rate.
    how: dict[str, Any] = {"dtype": torch.float32, "lr_scheduler": "constant", "warmup_ratio": 0.0}
    whole = on(before, lab, "whole", **how)
    to_come = [micro_batch for micro_batch in together(whole) if micro_batch[0] >= 3]
    for after in then:
        name = f"on {before}, then on {after}"
        on(before, lab, name, max_steps=3, **how)
        runs = on(after, lab, name, resume=True, **how)
        assert together(runs) == to_come
        if after == before:
            assert all(distance(run, whole[0]) == 0 for run in runs)
        else:  # in float32, after three steps of 1e-3 which Adam takes in any direction that rounding gives
            assert max(distance(run, whole[0]) for run in runs) < 1e-4


# What models do that torch's DistributedDataParallel does not expect


def of_settings(lab: Lab, data: RunData, **config: Any) -> tuple[LoadedModel, RunData]:
    return lab.spread(data, **config), data


def weights_never_used(lab: Lab, data: RunData) -> tuple[LoadedModel, RunData]:
    """The embedding of masked frames, where nothing is masked."""
    loaded, data = of_settings(lab, data, mask_time_prob=0.05)
    assert not loaded.backbone.config.apply_spec_augment
    assert loaded.model.encoder.masked_spec_embed.requires_grad
    return loaded, data


def frozen_convolutions(lab: Lab, data: RunData) -> tuple[LoadedModel, RunData]:
    loaded, data = of_settings(lab, data, **RANDOM)
    freeze(loaded, "feature-encoder")
    return loaded, data


def frozen_encoder(lab: Lab, data: RunData) -> tuple[LoadedModel, RunData]:
    loaded, data = of_settings(lab, data, use_weighted_layer_sum=True)
    freeze(loaded, "encoder")
    return cache_features(loaded, data, "pooled", lab.folder / "cache", CPU)


def recomputed_activations(lab: Lab, data: RunData) -> tuple[LoadedModel, RunData]:
    loaded, data = of_settings(lab, data, **RANDOM)
    loaded.model.recompute_activations()
    return loaded, data


def transformers_own(lab: Lab, data: RunData) -> tuple[LoadedModel, RunData]:
    """It draws which layers to drop, and which channels to mask, itself."""
    return lab.build(stock=True, **RANDOM), data


def layer_dropped_for_all(lab: Lab, data: RunData) -> tuple[LoadedModel, RunData]:
    """Of few layers and micro-batches, so that in some steps no rank uses one: it must not move."""
    return of_settings(lab, data, **RANDOM | {"layerdrop": 0.8})


@pytest.mark.parametrize(
    "prepare",
    [
        weights_never_used,
        frozen_convolutions,
        frozen_encoder,
        recomputed_activations,
        transformers_own,
        layer_dropped_for_all,
    ],
)
def test_ranks_train_what_one_process_trains(lab: Lab, prepare: Prepare) -> None:
    alone = train(lab, "alone", prepare=prepare)
    for run in on(3, lab, "ranks", prepare=prepare):
        assert distance(run, alone) < 1e-12


@pytest.mark.parametrize("name", ["wavlm", "whisper", "audio-spectrogram-transformer"])
def test_every_kind_of_model_trains_on_ranks(lab: Lab, name: str, tmp_path: Path) -> None:
    def prepare(lab: Lab, data: RunData) -> tuple[LoadedModel, RunData]:
        return load_for_training(open_backbone(str(tmp_path)), LABELS, seed=0), data

    architectures.save_backbone(name, tmp_path)
    alone = train(lab, "alone", prepare=prepare, epochs=1)
    assert distance(on(2, lab, "ranks", prepare=prepare, epochs=1)[0], alone) < 1e-12


def test_what_ranks_save_is_the_models_own(lab: Lab) -> None:
    """Names and shapes are transformers', also those of the weight norm, and no `module.` is before them."""
    from transformers import AutoModelForAudioClassification

    on(2, lab, "ranks", max_steps=1, dtype=torch.float32)
    model, report = AutoModelForAudioClassification.from_pretrained(
        lab.folder / "ranks" / "best", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.hidden_size == SMALL["hidden_size"]


# What a step costs


def test_a_step_exchanges_the_gradients_once_and_a_few_numbers(lab: Lab) -> None:
    """In as many micro-batches as there are; the model is smaller than torch's first bucket, of 1 MB."""

    def work(ranks: Ranks, stop: StopSignal) -> tuple[list[int], list[int]]:
        run = dataclasses.replace(lab, stop=stop)
        loaded, data = of_settings(run, clips(run))
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True, acc_events=True) as seen:
            run.train("ranks", loaded, data, ranks=ranks, **SETTINGS | {"max_steps": 1})
        reduced = [event.input_shapes[0] for event in seen.events() if event.name == "gloo:all_reduce"]
        return [int(np.prod(shape)) for shape in reduced], [one.numel() for one in loaded.model.parameters()]

    of_settings(lab, clips(lab))
    for sizes, parameters in on_ranks(2, work):
        # The gradients; which of them there are; loss, samples, padding, stop and clock.
        assert sizes == [sum(parameters), len(parameters), 5]


def test_a_profile_of_ranks_tells_the_models_parts(lab: Lab) -> None:
    """Though torch opens a range of its own around them."""

    def work(ranks: Ranks, stop: StopSignal) -> dict[str, float]:
        loaded = lab.build()
        batch = collator(loaded.backbone)([clips(lab).train[0]])
        replica = ranks.wrapped(loaded.model)
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
            with record_function("forward"):
                logits = replica(**batch.inputs)
            logits.sum().backward()
        return {name: part.backward_seconds for name, part in part_times(seen.events(), on_gpu=False).items()}

    lab.build(), clips(lab)
    for parts in on_ranks(2, work):
        assert list(parts) == [
            "convolutions",
            "projection",
            "positional convolution",
            "layer 0",
            "layer 1",
            "head",
        ]
        assert all(seconds > 0 for seconds in parts.values())


# Dealing


def test_a_batch_of_no_weight_has_no_loss_and_no_gradient(lab: Lab) -> None:
    data = lab.data(25, 11)
    loaded = lab.spread(data)
    batch = collator(loaded.backbone)([data.train[index] for index in range(3)])
    weightless = of_no_weight(batch)
    for smoothing in (0.0, 0.1):
        loss = loss_sum(loaded.model(**weightless.inputs), weightless.labels, smoothing)
        loss.backward()
        assert loss == 0
        assert all((one.grad == 0).all() for one in loaded.model.parameters() if one.grad is not None)
    assert (weightless.num_samples, weightless.padding_samples) == (0, 0)


# What is decided once


def test_the_first_rank_goes_ahead_and_decides(tmp_path: Path) -> None:
    def work(ranks: Ranks, stop: StopSignal) -> tuple[Any, ...]:
        done = tmp_path / "done"
        with ranks.first_goes_ahead():
            found = done.exists()
            done.touch()
        decided = ranks.decide(lambda: f"rank {ranks.rank}")
        total = ranks.sum(torch.tensor(1.5), ranks.rank, 2)
        return found, decided, ranks.gather(ranks.rank), total.tolist(), ranks.own_device("cpu")

    assert on_ranks(3, work) == [(rank > 0, "rank 0", [0, 1, 2], [4.5, 3.0, 6.0], "cpu") for rank in range(3)]


def test_ranks_that_see_other_clips_are_told(tmp_path: Path) -> None:
    def work(ranks: Ranks, stop: StopSignal) -> str:
        with pytest.raises(UserError) as caught:
            ranks.check_alike("clips", lambda: ranks.rank == 1)
        return str(caught.value)

    assert on_ranks(2, work) == [
        "Rank 1 has other clips than rank 0: they must be the same.",
        "Rank 0 has other clips than rank 1: they must be the same.",
    ]


def test_an_automatic_micro_batch_is_half_of_a_ranks_share_where_clips_are_sorted(lab: Lab) -> None:
    clips = lab.data(25, 11).train
    config = TrainConfig(batch_size="auto", global_batch_size=100)
    for world_size, size in ((1, 32), (2, 25), (4, 13), (8, 7)):
        ranks = dataclasses.replace(ALONE, world_size=world_size)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ranks, "gather", lambda ranks, own: [own])
            fitted = fit_batch_size(config, lab.build(), clips, CPU, None, ranks)
        assert (fitted.micro_batch_size, fitted.clips_per_step) == (size, 100)


def test_a_gpus_share_is_halved_only_where_that_is_work_enough(lab: Lab) -> None:
    clips = lab.data(25, 11).train  # of 50 ms
    eight = dataclasses.replace(ALONE, world_size=8)
    for clips_per_step, is_bucketed, share in (
        (16_000, True, 2_000),
        (32_000, True, 2_000),
        (32_000, False, 4_000),
    ):
        config = TrainConfig(batch_size="auto", global_batch_size=clips_per_step, bucket=is_bucketed)
        assert ranks_share(config, clips, 16_000, torch.device("cuda"), eight) == share


def test_one_gpu_cannot_be_named_for_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(1, 2, 1, 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert ranks.own_device("cuda") == "cuda:1"
    for name in ("cuda:0", "mps"):
        with pytest.raises(UserError, match=f"--device {name} is one GPU for all ranks: give cuda"):
            ranks.own_device(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"There are 2 ranks here, and 1 GPUs\."):
        ranks.own_device("cuda")
    assert ALONE.own_device("cuda:0") == "cuda:0"


def test_without_what_torchrun_says_ranks_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="RANK is set, and MASTER_ADDR is not: start it by torchrun"):
        joined(SimpleNamespace()).__enter__()


def test_a_model_with_running_statistics_is_evaluated_as_it_is_saved(lab: Lab, tmp_path: Path) -> None:
    """Of Wav2Vec2-Conformer's BatchNorm each rank has seen other clips."""

    def work(ranks: Ranks, stop: StopSignal) -> list[float]:
        run = dataclasses.replace(lab, stop=stop)
        data = clips(run)
        loaded = load_for_training(open_backbone(str(tmp_path)), LABELS, seed=0)
        run.train("ranks", loaded, data, ranks=ranks, **SETTINGS | {"max_steps": 2, "epochs": 1})
        return [buffer.double().sum().item() for buffer in loaded.model.buffers()]

    architectures.save_backbone("wav2vec2-conformer", tmp_path)
    clips(lab)
    one, other = on_ranks(2, work)
    assert one == other
