"""--augment: pure functions of seed and draw, that change what they say and nothing else."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import write_clips

from audiocls.config import AUGMENTATIONS as NAMES
from audiocls.config import TrainConfig
from audiocls.data.augment import AUGMENTATIONS, Augmentation, mask, speed
from audiocls.data.prepare import prepare_data

RATE = 16_000


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)


def strongest(waveform: np.ndarray) -> float:
    """The frequency of the largest value of the spectrum, in Hz."""
    spectrum = np.abs(np.fft.rfft(waveform))
    return float(np.fft.rfftfreq(len(waveform), 1 / RATE)[spectrum.argmax()])


def test_the_names_of_the_flag_are_those_of_the_functions() -> None:
    assert list(NAMES) == list(AUGMENTATIONS)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_function_of_seed_and_draw_and_leaves_the_clip_as_it_is(name: str) -> None:
    clip = tone(440)
    clip.flags.writeable = False  # a view of the cache
    augment = Augmentation((name,), seed=1, sampling_rate=RATE, min_samples=400)
    again = pickle.loads(pickle.dumps(augment))  # as a worker has it
    made = [augment(clip, draw) for draw in range(20)]
    for draw, waveform in enumerate(made):
        assert waveform.dtype == np.float32
        assert np.isfinite(waveform).all()
        np.testing.assert_array_equal(again(clip, draw), waveform)
    others = [dataclasses.replace(augment, seed=2)(clip, draw) for draw in range(20)]
    for waveforms in (made, others):
        assert len({waveform.tobytes() for waveform in waveforms}) > 3  # speed has five factors
    assert [w.tobytes() for w in made] != [w.tobytes() for w in others]


def test_speed_changes_length_and_pitch_by_the_same_factor() -> None:
    clip = tone(1_000)
    factors = []
    for seed in range(50):
        faster = speed(clip, RATE, np.random.default_rng(seed))
        factors.append(len(clip) / len(faster))
        assert strongest(faster) == pytest.approx(1_000 * factors[-1], abs=2)
    assert 0.895 <= min(factors) < 0.93
    assert 1.07 < max(factors) <= 1.105


def test_mask_silences_bands_and_stretches_and_leaves_most_of_the_clip() -> None:
    clip = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    kept = []
    for seed in range(50):
        masked = mask(clip, RATE, np.random.default_rng(seed))
        assert len(masked) == len(clip)
        silent = masked == 0
        assert silent.mean() <= 0.2
        kept.append(np.mean(masked**2) / np.mean(clip**2))
    assert min(kept) > 0.3
    assert max(kept) < 1
    # A tone within the band is gone, and one outside it stays.
    gone = [np.abs(mask(tone(1_000), RATE, np.random.default_rng(seed))).max() < 0.1 for seed in range(100)]
    assert 5 < sum(gone) < 40


def test_a_clip_that_would_be_too_short_for_the_model_stays_as_it_is() -> None:
    clip = tone(440, 0.1)
    augment = Augmentation(("speed",), seed=0, sampling_rate=RATE, min_samples=len(clip))
    for draw in range(30):
        assert len(augment(clip, draw)) >= len(clip)


@pytest.mark.parametrize("names", [("speed",), ("mask",), ("speed", "mask")])
def test_no_clip_becomes_longer_than_it_is_said_to(names: tuple[str, ...]) -> None:
    augment = Augmentation(names, seed=0, sampling_rate=RATE, min_samples=400)
    lengths = np.array([400, 9_999, 16_000])
    for length, most in zip(lengths, augment.most_samples(lengths), strict=True):
        made = [len(augment(np.ones(length, np.float32), draw)) for draw in range(200)]
        assert 0.98 * most <= max(made) <= most


def test_only_training_clips_are_changed(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", [4_000] * 20)
    config = TrainConfig(dataset=str(tmp_path / "clips"), augment="mask, speed", cache_dir=str(tmp_path))
    data = prepare_data(config, RATE, 400)
    assert data.train.augment == Augmentation(("mask", "speed"), config.seed, RATE, 400)
    assert data.evaluation.augment is None
    plain = prepare_data(dataclasses.replace(config, augment=None), RATE, 400)
    augment = data.train.augment
    for draw in range(len(plain.train)):
        expected = augment(plain.train[draw].values, draw)
        np.testing.assert_array_equal(data.train[draw].values, expected)
        assert data.train[draw].draw == draw
