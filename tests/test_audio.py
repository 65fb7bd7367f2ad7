"""Decoding against soundfile and torchaudio.functional.resample of the whole file."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from data_helpers import noise, write_wav

from audiocls.data.audio import Levels, decode, mono
from audiocls.data.limits import BadAudio
from audiocls.data.resampling import frames_needed
from audiocls.torchaudio_guard import import_torchaudio

FORMATS = {  # suffix: the rates written, the least common ones included
    "wav": (8_000, 11_025, 12_345, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000),
    "flac": (8_000, 22_050, 44_100, 48_000),
    "ogg": (8_000, 22_050, 44_100, 48_000),
    "mp3": (8_000, 22_050, 44_100, 48_000),
}
ROUNDING = 1e-6  # samples are below 1: eight times float32's epsilon
CASES = [(suffix, rate) for suffix, rates in FORMATS.items() for rate in rates]


def reference(path: Path, sampling_rate: int) -> torch.Tensor:
    """The whole file, the channels' mean, resampled by torchaudio's function."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    waveform = torch.from_numpy(samples.mean(axis=1))
    return import_torchaudio().functional.resample(waveform, rate, sampling_rate)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("suffix", "rate"), CASES)
def test_decode_is_soundfile_and_torchaudio_of_the_whole_file_then_cut(
    tmp_path: Path, suffix: str, rate: int, channels: int
) -> None:
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, noise(round(1.3 * rate), channels), rate)
    whole = reference(path, 16_000).numpy()

    decoded = decode(path, 16_000)
    assert decoded.waveform.dtype == np.float32
    # Rounding: a convolution over other or otherwise aligned samples may sum in another order.
    np.testing.assert_allclose(decoded.waveform, whole, atol=ROUNDING)
    assert decoded.seconds == round(1.3 * rate) / rate

    for max_samples in (1, 399, *np.random.default_rng(rate).integers(1, 20_000, 4).tolist(), 16_001, 10**9):
        cut = decode(path, 16_000, max_samples)
        np.testing.assert_allclose(cut.waveform, whole[:max_samples], atol=ROUNDING)
        assert len(cut.waveform) == min(max_samples, len(whole))
        assert cut.seconds == pytest.approx(decoded.seconds)


def test_what_is_not_used_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_wav(tmp_path / "clip.wav", seconds=60, rate=8_000)
    asked_for = []
    read = soundfile.SoundFile.read

    def counted(file: soundfile.SoundFile, *, out: np.ndarray) -> np.ndarray:
        asked_for.append(len(out))
        return read(file, out=out)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    assert decode(path, 16_000, 16_000).seconds == 60
    assert asked_for == [frames_needed(16_000, 8_000, 16_000)]
    assert 8_000 <= asked_for[0] < 8_100


@pytest.mark.parametrize("suffix", FORMATS)
def test_bytes_are_as_good_as_a_path(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, noise(8_000), 22_050)
    for max_samples in (None, 1_000):
        from_path, from_bytes = (decode(audio, 16_000, max_samples) for audio in (path, path.read_bytes()))
        np.testing.assert_array_equal(from_bytes.waveform, from_path.waveform)
        assert from_bytes.seconds == from_path.seconds


# What is learned of it on the way


def levels_of(samples: np.ndarray) -> Levels:
    levels = Levels()
    mono(samples, levels)
    return levels


@pytest.mark.parametrize("suffix", FORMATS)
def test_levels_are_those_of_the_whole_file(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiocls.data.audio.BLOCK_VALUES", 3_000)
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, noise(22_050, 2), 22_050)
    samples = soundfile.read(path, dtype="float32")[0].astype(float)
    levels = decode(path, 16_000).levels
    assert levels.peak == np.abs(samples).max()
    assert levels.channels_energy == pytest.approx(np.square(samples).mean(axis=1).sum(), rel=1e-5)
    assert levels.mean_energy == pytest.approx(np.square(samples.mean(axis=1)).sum(), rel=1e-5)


@pytest.mark.parametrize(("lost_db", "is_cancelled"), [(0, False), (19, False), (21, True), (200, True)])
@pytest.mark.parametrize(("peak", "is_heard"), [(1, True), (0.0011, True), (0.0009, False)])
def test_channels_cancel_where_their_mean_is_20_db_below_them_and_they_are_not_silent(
    lost_db: float, is_cancelled: bool, peak: float, is_heard: bool
) -> None:
    same, other = noise(8_000, 2, seed=1).T
    # The mean of (s + d, d - s) is d, and the channels' energy, averaged, |s|^2 + |d|^2.
    wanted = np.square(other).sum() / (10 ** (lost_db / 10) - 1 + 1e-9)
    same *= np.sqrt(wanted / np.square(same).sum())
    samples = np.stack([same + other, same - other], axis=1)
    levels = levels_of(samples * (peak / np.abs(samples).max()))
    assert levels.is_cancelled is (is_cancelled and is_heard)


def test_channels_that_are_independent_or_dead_do_not_cancel() -> None:
    many = noise(8_000, 64)
    assert not levels_of(many).is_cancelled
    many[:, 1:] = 0
    assert not levels_of(many).is_cancelled
    assert not levels_of(np.zeros((8_000, 2))).is_cancelled
    assert not levels_of(many[:, 0]).is_cancelled


@pytest.mark.parametrize(("peak", "is_so"), [(1.0, False), (9.9, False), (-10.1, True), (32_767, True)])
def test_integer_scale_is_ten_times_full_scale(peak: float, is_so: bool) -> None:
    for channels in (1, 2):
        samples = noise(800, channels)
        samples[400, 0] = peak
        assert levels_of(samples).is_integer_scale is is_so


def test_levels_are_of_what_is_used(tmp_path: Path) -> None:
    late = noise(16_000, 2)
    late[8_000:] = 20_000 * np.array([1, -1])
    soundfile.write(tmp_path / "late.wav", late, 8_000, subtype="FLOAT")
    whole, first = (decode(tmp_path / "late.wav", 16_000, most).levels for most in (None, 15_000))
    assert whole.is_integer_scale and whole.is_cancelled
    assert not first.is_integer_scale and not first.is_cancelled


def with_unknown_length(path: Path) -> Path:
    """A FLAC as a program writes it that cannot go back to its beginning, whose frames are then 0."""
    content = bytearray(path.read_bytes())
    content[21:26] = bytes([content[21] & 0xF0]) + bytes(4)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_recording_goes_on_where_it_is_longer_than_what_was_read(rate: int, tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(rate), rate)
    assert not decode(path, 16_000).goes_on
    assert not decode(path, 16_000, 16_000).goes_on
    assert decode(path, 16_000, 8_000).goes_on
    with_unknown_length(path)
    assert decode(path, 16_000, 8_000).goes_on


# Which channel


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize(("channel", "number"), [("left", 0), ("right", 1), ("1", 0), ("2", 1), ("3", 2)])
def test_one_channel_is_what_a_file_of_it_alone_gives(
    channel: str, number: int, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(30_000, 3), 22_050)
    samples, rate = soundfile.read(path, dtype="float32")
    soundfile.write(tmp_path / "alone.wav", samples[:, number], rate, subtype="FLOAT")
    for max_samples in (None, 5_000):
        one = decode(path, 16_000, max_samples, channel=channel)
        alone = decode(tmp_path / "alone.wav", 16_000, max_samples)
        np.testing.assert_allclose(one.waveform, alone.waveform, atol=ROUNDING)
        assert one.channels == 3


def test_of_channels_that_cancel_one_is_heard(tmp_path: Path) -> None:
    samples = noise(8_000) * [[1, -1]]
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    assert decode(tmp_path / "a.wav", 16_000).levels.is_cancelled
    for channel, sign in (("left", 1), ("right", -1)):
        decoded = decode(tmp_path / "a.wav", 16_000, channel=channel)
        np.testing.assert_array_equal(decoded.waveform, sign * samples[:, 0].astype(np.float32))
        assert not decoded.levels.is_cancelled


def test_a_recording_of_one_channel_is_that_channel_and_one_that_is_lacking_is_said(tmp_path: Path) -> None:
    for channels in (1, 2):
        soundfile.write(tmp_path / f"{channels}.wav", noise(8_000, channels), 16_000)
    mono_file = decode(tmp_path / "1.wav", 16_000).waveform
    for channel in ("left", "right", "3"):
        np.testing.assert_array_equal(decode(tmp_path / "1.wav", 16_000, channel=channel).waveform, mono_file)
    with pytest.raises(BadAudio, match="has 2 channels, and so no --channel 3"):
        decode(tmp_path / "2.wav", 16_000, channel="3")


# What cannot be used


def broken_flac(path: Path) -> None:
    soundfile.write(path, noise(20_000), 16_000, format="FLAC")
    content = path.read_bytes()
    path.write_bytes(content[:60] + b"\0" * (len(content) - 60))


def of_samples(samples: Any, rate: int = 16_000, **options: str) -> Callable[[Path], object]:
    subtype = "FLOAT" if isinstance(samples, list) else None
    return lambda path: soundfile.write(
        path, samples, rate, **{"format": "WAV", "subtype": subtype} | options
    )


def of_bytes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {  # what: how it is made, why it is refused
    "broken.flac": (broken_flac, "."),
    "empty.wav": (of_bytes(b""), "is empty"),
    "text.wav": (of_bytes(b"hello\n" * 50), "is text, not audio"),
    "riff header alone.wav": (of_bytes(b"RIFF\x24\0\0\0WAVE"), "."),
    "no samples.wav": (of_samples(noise(0)), "no audio"),
    "directory": (Path.mkdir, "not a regular file"),
    "missing": (lambda path: None, "is not there"),
    "nan.wav": (of_samples([0, np.nan, 0]), "not finite"),
    "inf.wav": (of_samples([0, np.inf, 0]), "not finite"),
    "would overflow in a model.wav": (of_samples([0, -1e20, 0]), "1e\\+06 times full scale"),
    "slow.wav": (of_samples(noise(900), 2_000), "2000 Hz, outside 4000"),
    "fast.wav": (of_samples(noise(900), 400_000), "400000 Hz"),
    "44101 Hz.wav": (of_samples(noise(900), 44_101), "44101 Hz"),
    "channels.wav": (of_samples(noise(900, 65)), "65 channels"),
    "channels times rate.wav": (of_samples(noise(900, 64), 384_000), "64 channels at 384000 Hz"),
    "a.raw": (of_bytes(bytes(4_000)), "."),
    "rare format": (of_samples(noise(900), format="MAT5", subtype="FLOAT"), "not audio"),
    "rare codec": (of_samples(noise(900), 8_000, format="AU", subtype="G721_32"), "G721_32"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_used_is_bad_audio_that_says_why(tmp_path: Path, what: str) -> None:
    make, why = BAD[what]
    path = tmp_path / what
    make(path)
    for max_samples in (None, 1_600):
        with pytest.raises(BadAudio, match=why) as refused:
            decode(path, 16_000, max_samples)
        assert "\n" not in str(refused.value)
        assert str(tmp_path) not in str(refused.value)  # the caller names the file


def test_an_odd_rate_is_refused_before_its_filter_is_built(tmp_path: Path) -> None:
    # 16,000 filters of 44,000 values would be 2.8 GB.
    with pytest.raises(BadAudio, match="too odd"):
        decode(write_wav(tmp_path / "a.wav", seconds=1, rate=44_101), 16_000)
    assert len(decode(tmp_path / "a.wav", 44_101).waveform) == 44_101  # its own rate needs no filter


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_file_whose_name_is_not_unicode_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    shutil.copy(write_wav(tmp_path / "a.wav"), path)
    np.testing.assert_array_equal(decode(path, 16_000).waveform, decode(tmp_path / "a.wav", 16_000).waveform)


def test_a_header_that_promises_more_than_the_file_holds_gives_what_is_there(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "cut.wav", seconds=1, rate=16_000)
    path.write_bytes(path.read_bytes()[:16_044])  # half of it
    assert len(decode(path, 16_000).waveform) == 8_000


# What a hostile file may cost


def test_more_than_the_cap_is_refused_and_says_what_to_type_but_its_beginning_is_used(
    tmp_path: Path,
) -> None:
    path = write_wav(tmp_path / "long.wav", seconds=3, rate=8_000)
    with pytest.raises(BadAudio, match=r"longer than 2 s.*--max-decode-seconds.*--max-seconds"):
        decode(path, 16_000, max_decode_seconds=2)
    result = decode(path, 16_000, 16_000, max_decode_seconds=2)
    assert (len(result.waveform), result.seconds) == (16_000, 3)
    assert len(decode(path, 16_000, max_decode_seconds=3).waveform) == 48_000


def test_a_header_is_not_believed_when_it_claims_centuries(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(8_000), 16_000)
    content = bytearray(path.read_bytes())
    content[21:26] = bytes([content[21] | 15]) + b"\xff" * 4  # STREAMINFO's 36 bits of frames
    path.write_bytes(content)
    assert decode(path, 16_000, 4_000).seconds == 4_000 / 16_000


def test_a_broken_mp3_is_decoded_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(path, noise(32_000), 16_000)
    content = bytearray(path.read_bytes())
    for place in np.random.default_rng(0).integers(500, len(content), 300):
        content[place] = 255 - content[place]
    path.write_bytes(content)
    soundfile.read(path)
    assert capfd.readouterr().err  # libmpg123's words
    decode(path, 16_000)
    assert capfd.readouterr() == ("", "")
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"
