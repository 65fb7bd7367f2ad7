"""Frozen work done once: the same training with the encoder's output read back."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from conftest import RANDOM, Lab

from audiocls.config import TrainConfig
from audiocls.data.prepare import RunData
from audiocls.errors import UserError
from audiocls.flags import parse_train
from audiocls.model.backbone import LoadedModel
from audiocls.model.freezing import freeze
from audiocls.training.features import cache_features
from audiocls.training.loop import evaluation_batches

CPU = torch.device("cpu")
SETTINGS = {"batch_size": 4, "gradient_accumulation_steps": 2, "epochs": 3, "learning_rate": 1e-3}


def frozen(lab: Lab, data: RunData, **config: object) -> LoadedModel:
    loaded = lab.spread(data, **config)
    freeze(loaded, "feature-encoder")
    return loaded


@pytest.mark.parametrize("config", [{}, RANDOM], ids=["exact", "with dropout and SpecAugment"])
def test_the_loss_curve_is_the_uncached_one_within_half_precision(config: dict, lab: Lab) -> None:
    data = lab.data(26, num_test=6, samples=(400, 1_600))
    plain = lab.train("plain", frozen(lab, data, **config), data, with_finish=True, **SETTINGS)
    loaded, featured = cache_features(
        frozen(lab, data, **config), data, "features", lab.folder / "cache", CPU
    )
    cached = lab.train("cached", loaded, featured, with_finish=True, **SETTINGS)
    for kind in ("train", "eval", "test"):
        ours, theirs = (run.logged(kind, "loss") for run in (cached, plain))
        # Half precision keeps three decimals of each feature.
        assert ours == pytest.approx(theirs, rel=0.01)
    assert cached.logged("train", "padding_share") != [0.0] * 3


def test_features_are_what_the_encoder_makes_of_the_clip_alone(lab: Lab) -> None:
    data = lab.data(7, samples=(400, 1_600))
    loaded = frozen(lab, data)
    encoder = loaded.model.encoder.feature_extractor
    collate = loaded.collator()
    with torch.no_grad():
        batches = [collate([data.train[index]]) for index in range(len(data.train))]
        expected = [encoder(batch.inputs["input_values"])[0].T for batch in batches]
    cached, featured = cache_features(loaded, data, "features", lab.folder / "cache", CPU)
    for index, features in enumerate(expected):
        np.testing.assert_array_equal(featured.train[index][0], features.half().numpy())
    assert (cached.takes, loaded.takes) == ("features", "audio")


def test_a_second_run_reads_them_and_other_weights_or_preprocessing_do_not(lab: Lab) -> None:
    data = lab.data(7)
    passes = []
    for change, do_normalize in ((0.0, True), (0.0, True), (0.1, True), (0.0, False)):
        loaded = frozen(lab, data)
        extractor = dataclasses.replace(loaded.backbone.feature_extractor, do_normalize=do_normalize)
        backbone = dataclasses.replace(loaded.backbone, feature_extractor=extractor)
        loaded = dataclasses.replace(loaded, backbone=backbone)
        encoder = loaded.model.encoder.feature_extractor
        with torch.no_grad():
            next(encoder.parameters()).add_(change)
        counted: list[int] = []
        encoder.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        cache_features(loaded, data, "features", lab.folder / "cache", CPU)
        passes.append(len(counted))
    assert passes == [19, 0, 19, 19]  # 7 clips to train on and 12 to evaluate on


def test_it_is_refused_where_the_output_would_not_be_a_function_of_the_clip() -> None:
    with pytest.raises(UserError, match="--freeze feature-encoder"):
        parse_train(["--cache-features"])
    with pytest.raises(UserError, match="in any case"):
        parse_train("--cache-features --freeze encoder".split())
    with pytest.raises(UserError, match="--backbone transformers"):
        parse_train("--cache-features --freeze feature-encoder --backbone transformers".split())


def test_batches_hold_half_precision(lab: Lab) -> None:
    data = lab.data(7, samples=(400, 1_600))
    loaded, featured = cache_features(frozen(lab, data), data, "features", lab.folder / "cache", CPU)
    batch = next(evaluation_batches(TrainConfig(num_workers=0), featured, featured.evaluation, loaded, CPU))
    assert batch.inputs["features"].dtype == torch.float16
    assert batch.inputs["features"].ndim == 3


def test_features_that_are_cut_short_or_of_other_clips_are_made_again(lab: Lab) -> None:
    data = lab.data(7)
    # As where a clip that could not be used before now can.
    fewer = dataclasses.replace(data, train=dataclasses.replace(data.train, rows=data.train.rows[1:]))
    _, expected = cache_features(frozen(lab, data), data, "features", lab.folder / "expected", CPU)
    for part in (fewer, data, data):
        _, featured = cache_features(frozen(lab, data), part, "features", lab.folder / "cache", CPU)
        for row in part.train.rows:
            np.testing.assert_array_equal(featured.train.waveforms[row], expected.train.waveforms[row])
        for file in lab.folder.glob("cache/features/*/values"):
            os.truncate(file, 10)
