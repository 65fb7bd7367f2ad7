"""Silence at the ends of clips: what is dropped, what it is measured by, and what stays."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from data_helpers import noise

from audiocls.data.audio import decode
from audiocls.data.measures import measure
from audiocls.data.silence import MARGIN_SECONDS, STRETCH_SECONDS, TRIM_DB, sound_in

RATE = 16_000
MARGIN = round(MARGIN_SECONDS * RATE)
STRETCH = round(STRETCH_SECONDS * RATE)


def between_silences(before: float, sound: float, after: float, *, floor: float = 0.0) -> np.ndarray:
    """float32 [samples]: noise of so many seconds between silences, in which there is noise of `floor`."""
    lengths = [round(seconds * RATE) for seconds in (before, sound, after)]
    gains = np.repeat(np.array([floor, 1.0, floor], np.float32), lengths)
    return noise(len(gains))[:, 0] * gains


@pytest.mark.parametrize("floor_db", [-200, -60, -45])
@pytest.mark.parametrize(("before", "after"), [(1.0, 2.0), (0.0, 1.0), (0.5, 0.0), (0.0, 0.0), (0.05, 0.05)])
def test_what_stays_is_the_sound_and_a_margin(before: float, after: float, floor_db: float) -> None:
    waveform = between_silences(before, 0.8, after, floor=10 ** (floor_db / 20))
    start, end = sound_in(waveform, RATE)
    first, last = round(before * RATE), round((before + 0.8) * RATE)
    # A stretch may begin in the silence.
    assert max(0, first - MARGIN - STRETCH) <= start <= max(0, first - MARGIN)
    assert min(len(waveform), last + MARGIN) <= end <= min(len(waveform), last + MARGIN + STRETCH)


@pytest.mark.parametrize("gain", [1.0, 0.01])
@pytest.mark.parametrize("offset", [0.0, 0.05, -0.3])
def test_neither_loudness_nor_an_offset_matters(gain: float, offset: float) -> None:
    waveform = between_silences(1, 1, 1, floor=10 ** (-(TRIM_DB + 10) / 20))
    changed = (gain * waveform + offset).astype(np.float32)
    assert sound_in(changed, RATE) == sound_in(waveform, RATE)


def test_what_is_nearly_as_loud_as_the_sound_stays() -> None:
    waveform = between_silences(1, 1, 1, floor=10 ** (-(TRIM_DB - 5) / 20))
    assert sound_in(waveform, RATE) == (0, len(waveform))


def test_a_silent_waveform_is_left_as_it_is() -> None:
    for level in (0.0, 1e-5):
        assert sound_in(np.full(5_000, level, np.float32), RATE) == (0, 5_000)
    assert sound_in(noise(5_000)[:, 0] * np.float32(1e-4), RATE) == (0, 5_000)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    waveform = between_silences(1.5, 1.0, 0.7)
    soundfile.write(tmp_path / "a.wav", np.stack([waveform, waveform], axis=1), RATE, subtype="FLOAT")
    return tmp_path / "a.wav"


def test_a_clip_begins_where_its_sound_does(recording: Path) -> None:
    whole, trimmed = (decode(recording, RATE, trim_silence=is_so) for is_so in (False, True))
    start, end = sound_in(whole.waveform, RATE)
    np.testing.assert_array_equal(trimmed.waveform, whole.waveform[start:end])
    assert trimmed.seconds == (end - start) / RATE
    assert trimmed.seconds + trimmed.trimmed_seconds == pytest.approx(whole.seconds)
    assert not trimmed.goes_on


def test_what_is_used_of_a_clip_is_counted_from_its_sound_on(recording: Path) -> None:
    whole = decode(recording, RATE, trim_silence=True)
    first = decode(recording, RATE, 8_000, trim_silence=True)
    np.testing.assert_array_equal(first.waveform, whole.waveform[:8_000])
    assert first.goes_on and first.seconds == whole.seconds


def test_the_audit_measures_what_trimming_would_drop_and_what_it_dropped(recording: Path) -> None:
    would, did = (measure(decode(recording, RATE, trim_silence=is_so), RATE) for is_so in (False, True))
    assert would.silent_ends_seconds == did.silent_ends_seconds == pytest.approx(2.0, abs=0.05)
