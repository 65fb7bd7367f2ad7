"""Decoding against soundfile and torchaudio.functional.resample of the whole file."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from data_helpers import noise, write_wav

from audiocls.data.audio import BadAudio, decode, mono
from audiocls.data.resampling import frames_needed, resample, resampled
from audiocls.torchaudio_guard import import_torchaudio

FORMATS = {  # suffix: the rates written, the least common ones included
    "wav": (8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000),
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

    for max_samples in (1, 399, 16_000, 16_001, 10**9):
        cut = decode(path, 16_000, max_samples)
        np.testing.assert_allclose(cut.waveform, whole[:max_samples], atol=ROUNDING)
        assert len(cut.waveform) == min(max_samples, len(whole))
        assert cut.seconds == pytest.approx(decoded.seconds)


@pytest.mark.parametrize("rate", [8_000, 11_025, 12_345, 16_000, 22_050, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("to_rate", [16_000, 24_000])
def test_the_part_that_is_heard_decides_its_samples(tmp_path: Path, rate: int, to_rate: int) -> None:
    path = write_wav(tmp_path / "clip.wav", seconds=0.6, rate=rate)
    whole = decode(path, to_rate).waveform
    generator = np.random.default_rng(rate)
    for max_samples in generator.integers(1, len(whole), size=8).tolist():
        np.testing.assert_allclose(
            decode(path, to_rate, max_samples).waveform, whole[:max_samples], atol=ROUNDING
        )


def test_what_is_not_heard_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_wav(tmp_path / "clip.wav", seconds=60, rate=8_000)
    asked_for = []
    read = soundfile.SoundFile.read

    def counted(file: soundfile.SoundFile, frames: int = -1, **options: object) -> np.ndarray:
        asked_for.append(frames)
        return read(file, frames, **options)

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


def test_stereo_is_the_mean_of_its_channels() -> None:
    samples = noise(100, channels=2)
    np.testing.assert_array_equal(mono(samples), samples.mean(axis=1))
    np.testing.assert_array_equal(mono(samples[:, 0]), samples[:, 0])
    # Opposite channels cancel: what a mean does, and a choice of one channel would not.
    np.testing.assert_array_equal(mono(np.stack([samples[:, 0], -samples[:, 0]], axis=1)), np.zeros(100))


def test_decode_reads_integers_as_fractions_of_full_scale(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([16_384, -32_768, 0], np.int16), 16_000)
    assert decode(tmp_path / "a.wav", 16_000).waveform.tolist() == [0.5, -1.0, 0.0]


# What cannot be used


def broken_flac(folder: Path) -> Path:
    path = folder / "broken.flac"
    soundfile.write(path, noise(20_000), 16_000)
    content = path.read_bytes()
    path.write_bytes(content[:60] + b"\0" * (len(content) - 60))
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def with_samples(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    soundfile.write(path, samples, rate, subtype="FLOAT" if samples.dtype == np.float32 else None)
    return path


BAD = {
    "broken flac": (broken_flac, "."),
    "empty file": (lambda folder: written(folder / "a.wav", b""), "does not decode"),
    "text named .wav": (lambda folder: written(folder / "a.wav", b"hello\n" * 50), "does not decode"),
    "riff header alone": (lambda folder: written(folder / "a.wav", b"RIFF\x24\0\0\0WAVE"), "."),
    "no samples": (lambda folder: with_samples(folder / "a.wav", noise(0)), "no audio"),
    "directory": (lambda folder: folder, "not a regular file"),
    "missing": (lambda folder: folder / "nowhere.wav", "is not there"),
    "nan": (
        lambda folder: with_samples(folder / "a.wav", np.array([0, np.nan, 0], np.float32)),
        "not finite",
    ),
    "inf": (
        lambda folder: with_samples(folder / "a.wav", np.array([0, np.inf, 0], np.float32)),
        "not finite",
    ),
    "slow": (lambda folder: with_samples(folder / "a.wav", noise(900), 2_000), "2000 Hz, outside 4000"),
    "fast": (lambda folder: with_samples(folder / "a.wav", noise(900), 400_000), "400000 Hz"),
    "44101 Hz": (lambda folder: with_samples(folder / "a.wav", noise(900), 44_101), "44101 Hz"),
    "channels": (lambda folder: with_samples(folder / "a.wav", noise(900, 65)), "65 channels"),
    "m4a": (lambda folder: written(folder / "a.m4a", b"\0\0\0 ftypM4A "), "ffmpeg"),
    "raw": (lambda folder: written(folder / "a.raw", bytes(4_000)), "."),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_used_is_bad_audio_that_says_why(tmp_path: Path, what: str) -> None:
    make, why = BAD[what]
    path = make(tmp_path)
    for max_samples in (None, 1_600):
        with pytest.raises(BadAudio, match=why) as refused:
            decode(path, 16_000, max_samples)
        assert "\n" not in str(refused.value)
        assert str(tmp_path) not in str(refused.value)  # the caller names the file


def test_an_odd_rate_is_refused_before_its_filter_is_built(tmp_path: Path) -> None:
    # 16,000 filters of 44,000 values would be 2.8 GB.
    with pytest.raises(BadAudio, match="too odd"):
        decode(with_samples(tmp_path / "a.wav", noise(900), 44_101), 16_000)
    assert len(decode(tmp_path / "a.wav", 44_101).waveform) == 900  # its own rate needs no filter


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


def test_more_than_the_cap_is_refused_and_says_what_to_type_but_its_beginning_is_heard(
    tmp_path: Path,
) -> None:
    path = write_wav(tmp_path / "long.wav", seconds=3, rate=8_000)
    with pytest.raises(BadAudio, match=r"longer than 2 s.*--max-decode-seconds.*--max-seconds"):
        decode(path, 16_000, max_decode_seconds=2)
    heard = decode(path, 16_000, 16_000, max_decode_seconds=2)
    assert (len(heard.waveform), heard.seconds) == (16_000, 3)
    assert len(decode(path, 16_000, max_decode_seconds=3).waveform) == 48_000


def test_a_header_is_not_believed_when_it_claims_centuries(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(8_000), 16_000)
    content = bytearray(path.read_bytes())
    content[21:26] = bytes([content[21] | 15]) + b"\xff" * 4  # STREAMINFO's 36 bits of frames
    path.write_bytes(content)
    assert decode(path, 16_000, 4_000).seconds == 4_000 / 16_000


@pytest.mark.parametrize(("from_rate", "to_rate"), [(44_100, 16_000), (8_000, 16_000), (48_000, 16_000)])
@pytest.mark.parametrize("frames", [1, 999, 30_000])
def test_resampling_in_pieces_is_resampling_at_once(
    from_rate: int, to_rate: int, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiocls.data.resampling.PIECE_SAMPLES", 1_000)
    whole = noise(frames)[:, 0]
    pieces = list(resampled(np.array_split(whole, frames // 300 + 1), from_rate, to_rate))
    assert len(pieces) > 5 or frames < 30_000
    np.testing.assert_allclose(np.concatenate(pieces), resample(whole, from_rate, to_rate), atol=ROUNDING)


@pytest.mark.parametrize(
    ("format", "subtype", "rate", "channels", "why"),
    [
        ("MAT5", "FLOAT", 16_000, 1, "MAT5 with FLOAT.*ffmpeg"),
        ("AU", "G721_32", 8_000, 1, "G721_32"),
        ("WAV", "PCM_16", 384_000, 64, "64 channels at 384000 Hz"),
    ],
)
def test_rare_codecs_and_absurd_formats_are_refused(
    tmp_path: Path, format: str, subtype: str, rate: int, channels: int, why: str
) -> None:
    soundfile.write(tmp_path / "a.wav", noise(900, channels), rate, format=format, subtype=subtype)
    with pytest.raises(BadAudio, match=why):
        decode(tmp_path / "a.wav", 16_000)


def test_values_that_would_overflow_in_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadAudio, match="1e\\+06 times full scale"):
        decode(with_samples(tmp_path / "a.wav", np.array([0, -1e20, 0], np.float32)), 16_000)


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
