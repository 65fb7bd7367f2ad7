"""Frozen work done once: the same training with the encoder's output read back."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RANDOM, Run

from audiocls.data.prepare import RunData
from audiocls.errors import UserError
from audiocls.flags import parse_train
from audiocls.model.backbone import freeze_feature_encoder
from audiocls.model.loaded import LoadedModel
from audiocls.training.features import cache_features
from audiocls.training.loop import evaluation_loader

CPU = torch.device("cpu")
SETTINGS = {"batch_size": 4, "gradient_accumulation_steps": 2, "epochs": 3, "learning_rate": 1e-3}


def frozen(model: Callable[..., LoadedModel], data: RunData, **config: object) -> LoadedModel:
    loaded = model(data, **config)
    freeze_feature_encoder(loaded)
    return loaded


@pytest.mark.parametrize("config", [{}, RANDOM], ids=["exact", "with dropout and SpecAugment"])
def test_the_loss_curve_is_the_uncached_one_within_half_precision(
    config: dict,
    run_data: Callable[..., RunData],
    spread_model: Callable[..., LoadedModel],
    train_in: Callable[..., Run],
    tmp_path: Path,
) -> None:
    data = run_data(26, num_test=6, samples=(400, 1_600))
    plain = train_in(
        tmp_path / "plain", frozen(spread_model, data, **config), data, with_finish=True, **SETTINGS
    )
    loaded, heard = cache_features(frozen(spread_model, data, **config), data, tmp_path / "cache", CPU)
    cached = train_in(tmp_path / "cached", loaded, heard, with_finish=True, **SETTINGS)
    for kind in ("train", "eval", "test"):
        ours, theirs = ([record["loss"] for record in run.records(kind)] for run in (cached, plain))
        # Half precision keeps three decimals of each feature.
        assert ours == pytest.approx(theirs, rel=0.01)
    assert [r["padding_share"] for r in cached.records("train")] != [0.0] * 3


def test_features_are_what_the_encoder_makes_of_the_clip_alone(
    run_data: Callable[..., RunData], spread_model: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    data = run_data(7, samples=(400, 1_600))
    loaded = frozen(spread_model, data)
    encoder = loaded.model.encoder.feature_extractor
    collate = loaded.collator()
    with torch.no_grad():
        expected = [
            encoder(collate([data.train[index]]).inputs["input_values"])[0].T
            for index in range(len(data.train))
        ]
    cached, heard = cache_features(loaded, data, tmp_path / "cache", CPU)
    for index, features in enumerate(expected):
        np.testing.assert_array_equal(heard.train[index][0], features.half().numpy())
    assert cached.takes_features
    assert not loaded.takes_features


def test_a_second_run_reads_them_and_other_weights_or_preprocessing_do_not(
    run_data: Callable[..., RunData],
    spread_model: Callable[..., LoadedModel],
    tmp_path: Path,
) -> None:
    data = run_data(7)
    passes = []
    for change, do_normalize in ((0.0, True), (0.0, True), (0.1, True), (0.0, False)):
        loaded = frozen(spread_model, data)
        extractor = dataclasses.replace(loaded.backbone.feature_extractor, do_normalize=do_normalize)
        backbone = dataclasses.replace(loaded.backbone, feature_extractor=extractor)
        loaded = dataclasses.replace(loaded, backbone=backbone)
        encoder = loaded.model.encoder.feature_extractor
        with torch.no_grad():
            next(encoder.parameters()).add_(change)
        counted: list[int] = []
        encoder.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        cache_features(loaded, data, tmp_path / "cache", CPU)
        passes.append(len(counted))
    assert passes == [19, 0, 19, 19]  # 7 clips to train on and 12 to evaluate on


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--cache-features"], "--freeze-feature-encoder"),
        (
            ["--cache-features", "--freeze-feature-encoder", "--backbone", "transformers"],
            "--backbone transformers",
        ),
    ],
)
def test_it_is_refused_where_the_output_would_not_be_a_function_of_the_clip(
    flags: list[str], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        parse_train(flags)


def test_batches_hold_half_precision(
    run_data: Callable[..., RunData], spread_model: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    from audiocls.config import TrainConfig

    data = run_data(7, samples=(400, 1_600))
    loaded, heard = cache_features(frozen(spread_model, data), data, tmp_path / "cache", CPU)
    batch = next(iter(evaluation_loader(TrainConfig(num_workers=0), heard.evaluation, loaded, CPU)))
    assert batch.inputs["features"].dtype == torch.float16
    assert batch.inputs["features"].ndim == 3


def test_features_that_are_cut_short_or_of_other_clips_are_made_again(
    run_data: Callable[..., RunData], spread_model: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    data = run_data(7)
    # As where a clip that could not be used before now can.
    fewer = dataclasses.replace(data, train=dataclasses.replace(data.train, rows=data.train.rows[1:]))
    _, expected = cache_features(frozen(spread_model, data), data, tmp_path / "expected", CPU)
    for part in (fewer, data, data):
        _, heard = cache_features(frozen(spread_model, data), part, tmp_path / "cache", CPU)
        for row in part.train.rows:
            np.testing.assert_array_equal(heard.train.waveforms[row], expected.train.waveforms[row])
        for file in tmp_path.glob("cache/features/*/values"):
            os.truncate(file, 10)
