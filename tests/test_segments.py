"""Clips cut out of longer recordings: each is what a file of its own would be, and each file is read once."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from data_helpers import file_clips, noise

from audiocls.data import audio, decoding, segments
from audiocls.data.audio import Decoded, DecodeOptions, decode
from audiocls.data.cache import decode_all
from audiocls.data.clips import Clip, FileAudio, Segment, Span
from audiocls.data.limits import BadAudio
from audiocls.data.measures import measure
from audiocls.data.segments import cut

RATE = 16_000  # the model's
MOST_SECONDS = 600.0
FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}


def write(path: Path, seconds: float, rate: int, channels: int = 1, seed: int = 0) -> Path:
    soundfile.write(
        path, noise(round(seconds * rate), channels, seed), rate, subtype=FORMATS[path.suffix[1:]]
    )
    return path


def parts(path: Path, spans: list[Span], max_samples: int | None = None, **limits: Any) -> dict[Span, Any]:
    most = limits.get("most", MOST_SECONDS)
    found = list(cut(FileAudio(str(path)).read, spans, RATE, max_samples, most))
    assert len(found) == len(dict(found)) == len(set(spans))
    return dict(found)


def alone(path: Path, span: Span, folder: Path, max_samples: int | None = None) -> Decoded:
    """The span written to a float file of its own, out of all that soundfile reads, and that file decoded."""
    # Not soundfile.read, which seeks: after a seek, be it to 0, MP3 of low rates differs in its last bit.
    with soundfile.SoundFile(path) as file:
        frames, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    stop = None if span.end is None else round(span.end * rate)
    own = folder / "own.wav"
    soundfile.write(own, frames[round(span.start * rate) : stop], rate, subtype="FLOAT")
    return decode(own, RATE, max_samples)


def assert_same(one: Decoded, other: Decoded) -> None:
    np.testing.assert_array_equal(one.waveform, other.waveform)
    assert one.waveform.dtype == np.float32
    assert measure(one, RATE) == measure(other, RATE)
    assert (one.seconds, one.rate, one.channels) == (other.seconds, other.rate, other.channels)
    assert one.goes_on == other.goes_on
    assert one.levels.peak == other.levels.peak
    # Sums over blocks that begin elsewhere: float32 dot products, in another order.
    assert one.levels.channels_energy == pytest.approx(other.levels.channels_energy, rel=1e-4)
    assert one.levels.mean_energy == pytest.approx(other.levels.mean_energy, rel=1e-4)


SPANS = [
    Span(0.5, 1.7),
    Span(0.0, 0.25),
    Span(1.234567, 1.3),  # within others
    Span(0.1, 3.9),  # over all of them
    Span(1.7, 2.0),  # beginning where another one ends
    Span(3.99, None),
    Span(0.5, 1.7000001),
    Span(0.0, None),
]


@pytest.mark.parametrize("max_samples", [None, 4_000])
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_a_segment_is_bit_by_bit_what_a_file_of_its_frames_is(
    rate: int, channels: int, suffix: str, max_samples: int | None, tmp_path: Path
) -> None:
    path = write(tmp_path / f"long.{suffix}", 4.1, rate, channels)
    found = parts(path, SPANS, max_samples)
    for span in SPANS:
        assert_same(found[span], alone(path, span, tmp_path, max_samples))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_soundfile_s_own_start_and_stop_give_the_same_frames(subtype: str, tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, noise(40_000, 3), 22_050, subtype=subtype)
    frames, _ = soundfile.read(path, start=11_025, stop=round(1.37 * 22_050), dtype="float32", always_2d=True)
    soundfile.write(tmp_path / "own.wav", frames, 22_050, subtype="FLOAT")
    found = parts(path, [Span(0.5, 1.37)])
    assert_same(found[Span(0.5, 1.37)], decode(tmp_path / "own.wav", RATE))


@pytest.mark.parametrize("block", [64, 1_000])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_many_segments_in_any_order_and_over_blocks_that_begin_anywhere(
    block: int, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "BLOCK_VALUES", block)
    path = write(tmp_path / "long.wav", 1, 8_000, channels)
    generator = random.Random(block + channels)
    starts = [generator.uniform(0, 0.9) for _ in range(100)]
    spans = [Span(start, start + generator.uniform(0.001, 0.3)) for start in starts]
    found = parts(path, spans)
    for span in spans:
        within = Span(span.start, min(1.0, span.end or 1.0))
        np.testing.assert_array_equal(found[span].waveform, alone(path, within, tmp_path).waveform)


def test_a_file_is_opened_once_and_is_not_read_beyond_its_last_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "long.wav", 60, 16_000)
    read: list[int] = []
    blocks = segments.raw_blocks

    def counted(*arguments: Any) -> Any:
        for block in blocks(*arguments):
            read.append(len(block))
            yield block

    monkeypatch.setattr(segments, "raw_blocks", counted)
    spans = [Span(number / 10, number / 10 + 1) for number in range(100)]
    random.Random(0).shuffle(spans)
    clips = [Clip(str(span), Segment(FileAudio(str(path)), *span), "a") for span in spans]
    waveforms = decode_all(clips, DecodeOptions(RATE), tmp_path / "cache")
    assert sum(read) == round(10.9 * 16_000)
    for index, span in enumerate(spans):
        np.testing.assert_array_equal(waveforms[index], alone(path, span, tmp_path).waveform)


def test_the_memory_is_that_of_the_segments_in_reach_not_of_the_file(tmp_path: Path) -> None:
    import tracemalloc

    path = write(tmp_path / "long.wav", 300, 16_000)
    spans = [Span(float(number), number + 2.0) for number in range(298)]
    clips = [Clip(str(span), Segment(FileAudio(str(path)), *span), "a") for span in spans]
    decode_all(clips[:2], DecodeOptions(RATE), tmp_path / "first")  # what is imported and kept for good
    tracemalloc.start()
    decode_all(clips, DecodeOptions(RATE), tmp_path / "cache")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 38 MB of segments. Two lists of CHUNK_SAMPLES, 4 MB each, the next ones, and blocks of 1 MB.
    assert peak < 15e6


# What cannot be used


def test_a_segment_beyond_the_end_cannot_be_used_and_one_over_the_end_is_used_up_to_it(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "long.wav", 10, 8_000)
    found = parts(
        path, [Span(12, 13), Span(9.5, 12), Span(160_000, 176_000), Span(10, None), Span(1, 1.00001)]
    )
    assert str(found[Span(12, 13)]) == "begins at 12 s, after its end at 10 s"
    assert str(found[Span(10, None)]) == "begins at 10 s, at its end at 10 s"
    assert "are these milliseconds, or numbers of samples?" in str(found[Span(160_000, 176_000)])
    assert found[Span(9.5, 12)].seconds == 0.5
    assert str(found[Span(1, 1.00001)]) == "holds no audio"


def test_what_is_wrong_with_a_part_of_a_file_is_wrong_with_the_segments_of_that_part(tmp_path: Path) -> None:
    samples = noise(40_000)
    samples[20_000] = np.nan
    soundfile.write(tmp_path / "long.wav", samples, 8_000, subtype="FLOAT")
    found = parts(tmp_path / "long.wav", [Span(0, 2), Span(2, 3), Span(3, 5)])
    assert isinstance(found[Span(0, 2)], Decoded)
    assert isinstance(found[Span(3, 5)], Decoded)
    assert str(found[Span(2, 3)]) == "holds samples that are not finite"


def test_a_file_that_does_not_decode_is_an_error_of_each_of_its_segments(tmp_path: Path) -> None:
    (tmp_path / "long.wav").write_text("no audio")
    found = parts(tmp_path / "long.wav", [Span(0, 1), Span(1, 2)])
    assert all("is text" in str(error) for error in found.values())
    absent = parts(tmp_path / "absent.wav", [Span(0, 1)])
    assert str(absent[Span(0, 1)]) == "is not there"


def test_the_limit_of_what_is_decoded_is_of_a_segment_not_of_where_it_lies(tmp_path: Path) -> None:
    path = write(tmp_path / "long.wav", 30, 8_000)
    spans = [Span(25, 26), Span(0, 6), Span(10, None)]
    found = parts(path, spans, most=5)
    assert isinstance(found[Span(25, 26)], Decoded)
    assert "is longer than 5 s" in str(found[Span(0, 6)])
    assert "is longer than 5 s" in str(found[Span(10, None)])
    found = parts(path, spans, max_samples=4 * RATE, most=5)
    assert {span: one.seconds for span, one in found.items()} == {spans[0]: 1, spans[1]: 6, spans[2]: 20}
    assert all(one.goes_on for span, one in found.items() if span != spans[0])


def test_no_more_of_a_file_is_decoded_than_a_bound_to_come_to_a_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "FURTHEST_SECONDS", 20)
    path = write(tmp_path / "long.wav", 60, 8_000)
    found = parts(path, [Span(19, 23), Span(50, 51)])
    assert found[Span(19, 23)].seconds == 4
    assert str(found[Span(50, 51)]) == "begins at 50 s, and no more than 20 s are decoded"


# The cache


def test_the_cache_keeps_segments_under_their_own_numbers_also_beside_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, other = write(tmp_path / "long.wav", 3, 8_000), write(tmp_path / "other.flac", 2, 44_100, 2)
    whole = write(tmp_path / "whole.wav", 1, 8_000, seed=5)
    spans = [Span(2, 3), Span(0.5, 1), Span(0.7, 1.1), Span(0.5, 1)]
    clips = [
        *(
            Clip(f"{path}{span}", Segment(FileAudio(str(path)), *span), "a")
            for span in spans
            for path in (long, other)
        ),
        *file_clips([whole, long]),
    ]
    waveforms = decode_all(clips, DecodeOptions(RATE), tmp_path / "cache")
    assert list(waveforms.errors) == [1]
    assert waveforms.errors[1] == "begins at 2 s, at its end at 2 s"

    def nothing(*_: Any) -> Any:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "cut", nothing)
        patch.setattr(decoding, "decode", nothing)
        again = decode_all(clips, DecodeOptions(RATE), tmp_path / "cache")
    for index, clip in enumerate(clips):
        if index == 1:
            continue
        span = clip.audio.span if isinstance(clip.audio, Segment) else Span(0, None)
        path = clip.audio.recording.path if isinstance(clip.audio, Segment) else clip.audio.path
        expected = alone(Path(path), span, tmp_path)
        np.testing.assert_array_equal(again[index], expected.waveform)
        np.testing.assert_array_equal(waveforms.decode(index).waveform, expected.waveform)
        assert again.seconds[index] == expected.seconds
        assert again.measured[index] == measure(expected, RATE)
    assert again.sound_of(2) == again.sound_of(6) != again.sound_of(4)


def test_another_span_is_another_cache_and_the_same_one_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "long.wav", 3, 8_000)
    clips = [Clip("a", Segment(FileAudio(str(path)), 0, end), "a") for end in (1, 2)]
    first = [decode_all([clip], DecodeOptions(RATE), tmp_path / "cache")[0] for clip in clips]
    assert [len(one) for one in first] == [RATE, 2 * RATE]
    assert len(list((tmp_path / "cache" / "waveforms").iterdir())) == 2


def test_without_a_cache_a_segment_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "long.wav", 3, 8_000)
    (tmp_path / "file").touch()
    clips = [
        Clip("a", Segment(FileAudio(str(path)), 1, 2), "a"),
        Clip("b", Segment(FileAudio(str(path)), 5, 6), "a"),
    ]
    waveforms = decode_all(clips, DecodeOptions(RATE), tmp_path / "file" / "cache")
    assert waveforms.cache is None
    np.testing.assert_array_equal(waveforms[0], alone(path, Span(1, 2), tmp_path).waveform)
    with pytest.raises(BadAudio, match="after its end"):
        waveforms[1]
