"""SpecAugment's masks: of a clip, not of a batch; as many as transformers'."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from audiocls.data.collators import Example, Spans
from audiocls.model.backbone import LoadedModel
from audiocls.model.loading import load_for_training, open_backbone


@pytest.mark.parametrize("num_frames", [49, 155, 499])
@pytest.mark.parametrize(("mask_prob", "min_masks"), [(0.05, 2), (0.05, 0), (0.3, 0), (0.65, 2)])
def test_as_much_is_masked_as_transformers_masks(num_frames: int, mask_prob: float, min_masks: int) -> None:
    np.random.seed(0)
    theirs = [
        _compute_mask_indices((1, num_frames), mask_prob, 10, min_masks=min_masks) for _ in range(2_000)
    ]
    spans, generator = Spans(mask_prob, 10, min_masks), np.random.default_rng(0)
    ours = np.stack([spans.draw(num_frames, generator) for _ in range(2_000)])
    # Shares of a few tenths over 2,000 draws: the means' standard error is below 0.004.
    assert ours.mean() == pytest.approx(np.mean(theirs), abs=0.015)
    assert ours.mean(0) == pytest.approx(np.concatenate(theirs).mean(0), abs=0.08)


def test_spans_are_whole_distinct_and_inside_the_clip() -> None:
    for number in range(300):
        starts = Spans(0.5, 10, 2).starts(60, np.random.default_rng(number))
        assert len(set(starts.tolist())) == len(starts) >= 2
        assert starts.min() >= 0 and starts.max() <= 50


@pytest.mark.parametrize("num_frames", [1, 9, 10, 11, 19])
def test_a_clip_too_short_for_the_spans_has_fewer_or_none(num_frames: int) -> None:
    starts = Spans(0.05, 10, 2).starts(num_frames, np.random.default_rng(0))
    assert len(starts) == (0 if num_frames < 10 else 1)


def test_a_share_of_nothing_is_nothing_whatever_the_fewest_spans() -> None:
    assert not Spans(0.0, 10, 2).draw(100, np.random.default_rng(0)).any()


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    backbone = open_backbone("tiny")
    masks = {"mask_time_prob": 0.3, "mask_time_length": 4, "mask_feature_prob": 0.2, "mask_feature_length": 5}
    config = dataclasses.replace(backbone.config, **masks)
    return load_for_training(dataclasses.replace(backbone, config=config), ["a", "b"], seed=0)


def examples(*numbers: int) -> list[Example]:
    sounds = [np.random.default_rng(n % 7).standard_normal(4_000 + 1_000 * (n % 7)) for n in numbers]
    return [Example(sound.astype(np.float32), 0, n) for sound, n in zip(sounds, numbers, strict=True)]


def test_a_clips_mask_does_not_depend_on_its_batch(loaded: LoadedModel) -> None:
    collate = loaded.training_collator(seed=3)
    together = collate(examples(0, 4, 6)).inputs["masked_frames"]
    for row, number in enumerate((0, 4, 6)):
        alone = collate(examples(number)).inputs["masked_frames"][0]
        assert alone.any()
        assert torch.equal(together[row, : len(alone)], alone)
        assert not together[row, len(alone) :].any()  # padding is not masked


def test_channels_are_masked_clip_by_clip_too(loaded: LoadedModel) -> None:
    collate = loaded.training_collator(seed=3)
    together = collate(examples(0, 4, 6)).inputs["masked_channels"]
    assert together.shape == (3, 128) and together.any(1).all()
    for row, number in enumerate((0, 4, 6)):
        assert torch.equal(together[row], collate(examples(number)).inputs["masked_channels"][0])
    assert not torch.equal(together[0], together[1])


def test_masks_differ_from_epoch_to_epoch_and_seed_to_seed(loaded: LoadedModel) -> None:
    def mask(seed: int, number: int) -> torch.Tensor:
        return loaded.training_collator(seed)(examples(number)).inputs["masked_frames"]

    assert torch.equal(mask(0, 5), mask(0, 5))
    assert not torch.equal(mask(0, 5), mask(0, 5 + 7))  # the same clip, an epoch of 7 later
    assert not torch.equal(mask(0, 5), mask(1, 5))


def test_the_model_takes_the_masks_and_draws_none_of_its_own(loaded: LoadedModel) -> None:
    model: Any = loaded.model.train()
    batch = loaded.training_collator(seed=0)(examples(1, 2))
    state = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    torch.manual_seed(0)
    masked = model(**batch.inputs)
    assert np.array_equal(state, np.random.get_state()[1])
    batch.inputs["masked_frames"] = torch.zeros_like(batch.inputs["masked_frames"])
    torch.manual_seed(0)
    assert not torch.equal(model(**batch.inputs), masked)


def test_a_model_configured_without_masks_gets_none() -> None:
    loaded = load_for_training(open_backbone("tiny"), ["a", "b"], seed=0)
    assert "masked_frames" not in loaded.training_collator(0)(examples(1)).inputs
    assert Wav2Vec2Config().mask_time_prob == 0.05  # the published models have them
