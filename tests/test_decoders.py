"""Recordings that end badly: every sample that decodes is used, and what was not is said."""

import io
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from data_helpers import noise
from encoded import RATE, stumbling, tone

from audiocls.data import ffmpeg
from audiocls.data.audio import Decoded, decode
from audiocls.data.limits import BadAudio
from audiocls.data.signatures import MP3, format_of

KINDS = {  # name: libsndfile's format and codec
    "wav": ("WAV", "PCM_16"),
    "ima.wav": ("WAV", "IMA_ADPCM"),
    "wavex": ("WAVEX", "PCM_24"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "ULAW"),
    "caf": ("CAF", "ALAC_16"),
    "nist": ("NIST", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", None),
}
LONG = 10 * RATE


def swell(num_samples: int) -> np.ndarray:
    """float32 [samples] of noise that swells and sinks: compressed, each second takes its share of bytes."""
    return noise(num_samples)[:, 0] * np.abs(np.sin(np.pi * np.arange(num_samples) / RATE)).astype(np.float32)


def written(samples: np.ndarray, kind: str = "wav", rate: int = RATE) -> bytes:
    content = io.BytesIO()
    format, subtype = KINDS[kind]
    soundfile.write(content, samples, rate, format=format, subtype=subtype)
    return content.getvalue()


@pytest.fixture(params=[True, False], ids=["with FFmpeg", "without"])
def has_ffmpeg(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(ffmpeg, "is_installed", lambda: request.param)
    return request.param


def decoded_both_ways(content: bytes, tmp_path: Path) -> Decoded:
    """As bytes, which must be as good as the file."""
    (tmp_path / "a.wav").write_bytes(content)
    from_file, from_bytes = (decode(audio, RATE) for audio in (tmp_path / "a.wav", content))
    np.testing.assert_array_equal(from_file.waveform, from_bytes.waveform)
    assert from_file.notes == from_bytes.notes
    return from_file


@pytest.mark.parametrize("num_samples", [1_000, LONG])
@pytest.mark.parametrize("kind", KINDS)
def test_a_good_file_is_read_without_a_word(
    kind: str, num_samples: int, has_ffmpeg: bool, tmp_path: Path
) -> None:
    content = written(swell(num_samples), kind)
    decoded = decoded_both_ways(content, tmp_path)
    expected, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    np.testing.assert_allclose(decoded.waveform, expected, atol=1e-7)  # asked for in blocks of other lengths
    assert decoded.notes == ()


# Lengths that headers do not know


def test_a_flac_of_unknown_length_gives_all_its_samples(has_ffmpeg: bool, tmp_path: Path) -> None:
    content = bytearray(written(swell(LONG), "flac"))
    content[21:26] = bytes([content[21] & 0xF0]) + bytes(4)  # as a pipe is written to
    decoded = decoded_both_ways(bytes(content), tmp_path)
    np.testing.assert_array_equal(decoded.waveform, decode(written(swell(LONG), "flac"), RATE).waveform)
    assert decoded.notes == ()


def wav(*chunks: tuple[bytes, int | None, bytes], riff_size: int | None = None) -> bytes:
    """A WAV file of chunks: name, size (None: the true one), content."""
    body = b"WAVE"
    for name, size, content in chunks:
        body += name + struct.pack("<I", len(content) if size is None else size) + content
        body += bytes(len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body) if riff_size is None else riff_size) + body


SAMPLES = (32_767 * tone(8_001)).astype("<i2")
FORMAT = (b"fmt ", None, struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16))
INFO = (b"LIST", None, b"INFOISFT\6\0\0\0noise\0")


@pytest.mark.parametrize("riff_size", [0, 36, 2**32 - 1])
@pytest.mark.parametrize("before", [(), (INFO,)], ids=["plain", "LIST"])
def test_a_wav_whose_recorder_never_wrote_its_size_gives_what_follows(
    before: tuple, riff_size: int, has_ffmpeg: bool, tmp_path: Path
) -> None:
    content = wav(FORMAT, *before, (b"data", 0, SAMPLES.tobytes()), riff_size=riff_size)
    decoded = decoded_both_ways(content, tmp_path)
    np.testing.assert_array_equal(decoded.waveform, SAMPLES / np.float32(32_768))
    assert decoded.notes == ("its header says that it is empty: all that follows is read",)


@pytest.mark.parametrize("size", [2 * len(SAMPLES) + 2, 2**31, 2**32 - 1])
def test_a_wav_whose_header_promises_more_gives_what_is_there(
    size: int, has_ffmpeg: bool, tmp_path: Path
) -> None:
    content = wav(FORMAT, (b"data", size, SAMPLES.tobytes()), riff_size=min(size + 36, 2**32 - 1))
    np.testing.assert_array_equal(decoded_both_ways(content, tmp_path).waveform, SAMPLES / np.float32(32_768))


@pytest.mark.parametrize("riff_size", [None, 0])
def test_a_wav_that_is_empty_is_no_sound_whatever_chunks_follow(
    riff_size: int | None, has_ffmpeg: bool
) -> None:
    for after in ((), (INFO,), (INFO, INFO)):
        with pytest.raises(BadAudio, match="holds no audio"):
            decode(wav(FORMAT, (b"data", 0, b""), *after, riff_size=riff_size), RATE)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_wav_that_is_cut_off_is_said_to_be(bits: int, has_ffmpeg: bool, tmp_path: Path) -> None:
    content = written(swell(LONG)) if bits == 16 else written8(swell(LONG))
    decoded = decoded_both_ways(content[: len(content) // 2], tmp_path)
    assert len(decoded.waveform) == pytest.approx(LONG / 2, abs=50)
    assert decoded.notes == ("cut off: 5.0 s of its 10.0 s are there",)


def test_samples_behind_the_end_that_the_header_says_are_spoken_of(has_ffmpeg: bool) -> None:
    """A recorder that goes on without going back to its header; they may be anything."""
    content = wav(FORMAT, (b"data", len(SAMPLES), SAMPLES.tobytes()), riff_size=len(SAMPLES) + 36)
    decoded = decode(content, RATE)
    assert len(decoded.waveform) == len(SAMPLES) // 2
    assert decoded.notes == (f"{len(SAMPLES):,} bytes lie behind its end, which are not read",)


# Joined files


@pytest.mark.parametrize("count", [2, 3])
def test_wavs_that_are_joined_are_all_read(count: int, has_ffmpeg: bool, tmp_path: Path) -> None:
    one = wav(FORMAT, INFO, (b"data", None, SAMPLES.tobytes()), INFO)
    decoded = decoded_both_ways(count * one, tmp_path)
    np.testing.assert_array_equal(decoded.waveform, np.tile(SAMPLES / np.float32(32_768), count))
    assert decoded.notes == (f"{count} recordings are joined in its file: all are read",)


def written8(samples: np.ndarray) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, RATE, format="WAV", subtype="PCM_U8")
    return content.getvalue()


def test_wavs_may_be_joined_in_any_way(has_ffmpeg: bool, tmp_path: Path) -> None:
    """Without the byte that makes a length even, with zeros between them, and of lengths that nobody knew."""
    odd = wav((b"fmt ", None, struct.pack("<HHIIHH", 1, 1, RATE, RATE, 1, 8)), (b"data", None, bytes(8_001)))
    plain = wav(FORMAT, (b"data", None, SAMPLES.tobytes()))
    piped = wav(FORMAT, (b"data", 2**32 - 1, SAMPLES.tobytes()), riff_size=2**32 - 1)
    for content, num_samples in (
        (2 * odd, 16_002),
        (2 * odd[:-1], 16_002),
        (plain + bytes(512) + plain, 16_002),
        (2 * piped, 16_002),
        (500 * wav(FORMAT, (b"data", None, SAMPLES[:100].tobytes())), 50_000),
    ):
        decoded = decoded_both_ways(content, tmp_path)
        assert len(decoded.waveform) == num_samples
        assert "recordings are joined in its file: all are read" in decoded.notes[0]


def test_of_joined_wavs_those_of_another_format_are_named(has_ffmpeg: bool, tmp_path: Path) -> None:
    content = written(tone(RATE)) + written(tone(RATE), rate=8_000)
    decoded = decoded_both_ways(content, tmp_path)
    np.testing.assert_array_equal(decoded.waveform, decode(written(tone(RATE)), RATE).waveform)
    assert decoded.notes == ("a recording of another format follows in its file, which is not read",)


@pytest.mark.parametrize("num_samples", [4_000, LONG])
@pytest.mark.parametrize("kind", ["flac", "vorbis", "mp3"])
def test_other_files_that_are_joined_are_both_read_or_it_is_said(
    kind: str, num_samples: int, has_ffmpeg: bool, tmp_path: Path
) -> None:
    content = written(swell(num_samples), kind)
    alone = decode(content, RATE).waveform
    both = decoded_both_ways(2 * content, tmp_path)
    np.testing.assert_array_equal(both.waveform[:num_samples], alone)
    said = f"more follows in its file behind its end at {num_samples / RATE:.1f} s, and "
    assert both.notes[0].startswith(said)
    if has_ffmpeg:
        # And some of the second one's encoder's delay, which FFmpeg drops at a file's beginning alone.
        spare = {"mp3": 3 * 1_152, "vorbis": 1_024}.get(kind, 0)
        assert 2 * num_samples <= len(both.waveform) <= 2 * num_samples + spare
    else:
        assert len(both.waveform) == num_samples
        assert both.notes[0].endswith(f"is not read (FFmpeg may read more: {ffmpeg.TO_INSTALL})")


@pytest.mark.parametrize(("rate", "is_read"), [(48_000, True), (16_000, False)])
def test_joined_opus_is_read_at_its_own_rate_alone(rate: int, is_read: bool, tmp_path: Path) -> None:
    """FFmpeg gives all Opus at 48 kHz, libsndfile at the rate that it was made from."""
    both = decoded_both_ways(2 * written(swell(LONG), "opus", rate), tmp_path)
    length = LONG * RATE // rate
    assert len(both.waveform) == pytest.approx((1 + is_read) * length, abs=400)
    assert both.notes[0].endswith("is read, too" if is_read else "is not read")


@pytest.mark.parametrize(
    "chunk", [b"data" + bytes(4), b"RIFF\x04\0\0\0WAVEdata" + bytes(4), b"fact" + bytes(4)]
)
def test_a_wav_of_very_many_chunks_is_not_looked_at_for_ever(chunk: bytes) -> None:
    content = wav(FORMAT, (b"data", None, SAMPLES.tobytes()), riff_size=0) + 50_000 * chunk
    began = time.monotonic()
    decoded = decode(content, RATE)
    assert time.monotonic() - began < 10  # each looking at all that follow it would take an hour
    assert decoded.waveform[: len(SAMPLES)].tolist() == (SAMPLES / np.float32(32_768)).tolist()
    assert decoded.notes


# Damage


@pytest.mark.parametrize("kind", ["flac", "vorbis", "opus", "mp3"])
def test_what_decodes_of_a_damaged_file_is_used_and_its_length_said(
    kind: str, has_ffmpeg: bool, tmp_path: Path
) -> None:
    content = written(swell(LONG), kind)
    whole = decode(content, RATE).waveform
    decoded = decoded_both_ways(stumbling(content, len(content) // 20), tmp_path)
    half = int(0.35 * LONG)
    np.testing.assert_array_equal(decoded.waveform[:half], whole[:half])
    least = 0.4 if not has_ffmpeg and kind == "flac" else 0.75  # a page of Ogg holds a second
    assert least * LONG < len(decoded.waveform) < LONG
    assert decoded.notes[0].startswith(ffmpeg.damage_note(len(decoded.waveform) / RATE, 10.0))


@pytest.mark.parametrize("kind", ["flac", "mp3"])
def test_where_ffmpeg_reads_on_nothing_is_lost_or_repeated_but_the_damage(kind: str) -> None:
    content = written(swell(LONG), kind)
    whole = decode(content, RATE).waveform
    found = decode(stumbling(content, 5_000), RATE).waveform
    start = 6 * RATE  # behind the damage
    lost = int(np.correlate(whole[start : start + 4 * RATE], found[start : start + RATE]).argmax())
    assert 0 < lost < 2 * RATE
    # Two decoders of MP3 differ by float32's rounding.
    end = min(len(found), LONG - lost)
    np.testing.assert_allclose(found[start:end], whole[start + lost : end + lost], atol=1e-5)
    assert end + lost > LONG - 1_152


@pytest.mark.parametrize("kind", ["flac", "mp3"])
def test_a_file_that_is_cut_gives_what_is_there(kind: str, has_ffmpeg: bool, tmp_path: Path) -> None:
    content = written(swell(LONG), kind)
    decoded = decoded_both_ways(content[: len(content) // 2], tmp_path)
    assert 0.4 * LONG < len(decoded.waveform) < 0.6 * LONG
    assert decoded.notes[0].startswith(ffmpeg.damage_note(len(decoded.waveform) / RATE, 10.0))


def test_a_file_that_does_not_decode_from_its_beginning_on_is_refused(has_ffmpeg: bool) -> None:
    content = written(swell(LONG), "flac")
    with pytest.raises(BadAudio, match=r"^does not decode: flac decoder lost sync$"):
        decode(content[:60] + bytes(len(content) - 60), RATE)


# What a file is


@pytest.mark.parametrize(
    ("begins", "says"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Not found", "is a web page"),
        (b"\xef\xbb\xbf\n <HTML>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b'{"error": "forbidden"}', "is text"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(200)), "is a picture"),
        (b"PK\x03\x04" + bytes(range(200)), "is an archive"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "is a NumPy array"),
        (b"#EXTM3U\nhttp://127.0.0.1/a.ts\n", "is a playlist"),
        (bytes(5_000), "is of no format: it begins with zeros"),
        (bytes(range(1, 200)), "is of no format known here"),
    ],
)
@pytest.mark.parametrize("suffix", ["wav", "mp3", "m4a"])
def test_the_first_bytes_say_what_is_no_recording(
    begins: bytes, says: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(begins)
    with pytest.raises(BadAudio, match=says) as refused:
        decode(path, RATE)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("suffix", ["wav", "flac", "m4a", "txt", ""])
@pytest.mark.parametrize("kind", KINDS)
def test_the_name_does_not_matter(kind: str, suffix: str, tmp_path: Path) -> None:
    content = written(tone(4_000), kind)
    (tmp_path / f"a.{suffix}").write_bytes(content)
    renamed = decode(tmp_path / f"a.{suffix}", RATE)
    np.testing.assert_array_equal(renamed.waveform, decode(content, RATE).waveform)


@pytest.mark.parametrize("tag_bytes", [200, 20_000])
def test_a_tag_before_an_mp3_is_passed_over(tag_bytes: int, has_ffmpeg: bool, tmp_path: Path) -> None:
    size = bytes([0, 0, tag_bytes >> 7 & 127, tag_bytes & 127])
    size = bytes([tag_bytes >> 21 & 127, tag_bytes >> 14 & 127, *size[2:]])
    content = b"ID3\x04\x00\x00" + size + bytes(tag_bytes) + written(swell(LONG), "mp3")
    assert format_of(io.BytesIO(content)) == (MP3, 10 + tag_bytes)
    decoded = decoded_both_ways(content, tmp_path)
    assert len(decoded.waveform) == LONG and decoded.notes == ()


@pytest.mark.parametrize("tag", [b"TAG" + bytes(125), b"APETAGEX" + bytes(50_000)], ids=["ID3v1", "APE"])
def test_a_tag_behind_an_mp3_is_no_recording(tag: bytes, has_ffmpeg: bool, tmp_path: Path) -> None:
    decoded = decoded_both_ways(written(swell(LONG), "mp3") + tag, tmp_path)
    assert len(decoded.waveform) == LONG and decoded.notes == ()


@pytest.mark.parametrize(("channels", "tag"), [(0, 1), (65_535, 1), (1, 0x11)])
def test_a_header_that_makes_no_sense_is_refused_by_either_decoder(
    channels: int, tag: int, has_ffmpeg: bool
) -> None:
    format = struct.pack("<HHIIHH", tag, channels, RATE, 2 * RATE, 0, 16)
    with pytest.raises(BadAudio):
        decode(wav((b"fmt ", None, format), (b"data", None, SAMPLES.tobytes())), RATE)


# How long it is said to be


def test_whether_a_recording_goes_on_does_not_hang_on_a_guess(has_ffmpeg: bool) -> None:
    """Of an MP3 of changing bit rate that does not say its length, it is guessed from the first frames."""
    loud, quiet = swell(LONG), swell(LONG) * np.float32(1e-3)
    for samples in (np.concatenate([loud, quiet]), np.concatenate([quiet, loud])):
        content = io.BytesIO()
        soundfile.write(content, samples, RATE, format="MP3", bitrate_mode="VARIABLE")
        whole = content.getvalue()
        guessed = whole[whole.index(b"\xff\xf3", 100) :]  # without its first frame
        first = decode(guessed, RATE, 2 * RATE)
        assert first.goes_on and first.seconds == 2
        if has_ffmpeg:
            everything = decode(guessed, RATE)
            assert len(everything.waveform) == pytest.approx(2 * LONG, abs=3_000)
            assert everything.notes == () and not everything.goes_on


def test_a_recording_of_exactly_what_is_used_does_not_go_on(has_ffmpeg: bool) -> None:
    unsaid = bytearray(written(swell(RATE), "flac"))
    unsaid[21:26] = bytes([unsaid[21] & 0xF0]) + bytes(4)
    for content in (bytes(unsaid), written(swell(RATE), "flac"), written(swell(RATE), "vorbis")):
        assert not decode(content, RATE, RATE).goes_on
    assert decode(3 * written(swell(RATE), "flac"), RATE, RATE).goes_on is has_ffmpeg


def test_a_flac_behind_a_tag_is_one_recording(has_ffmpeg: bool, tmp_path: Path) -> None:
    content = b"ID3\x04\x00\x00\x00\x00\x01\x48" + bytes(200) + written(tone(4_000), "flac")
    decoded = decoded_both_ways(content, tmp_path)
    assert len(decoded.waveform) == 4_000 and decoded.notes == ()


def test_an_mp3_behind_zeros_is_read_where_ffmpeg_is(has_ffmpeg: bool) -> None:
    for num_zeros in (1, 100, 3_000):
        content = bytes(num_zeros) + written(swell(LONG), "mp3")
        if has_ffmpeg:
            assert len(decode(content, RATE).waveform) == pytest.approx(LONG, abs=3_000)
        else:
            with pytest.raises(BadAudio, match="is MP3 behind other bytes"):
                decode(content, RATE)
