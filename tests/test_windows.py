"""Long recordings: read in blocks, cut into windows, each scored as if it had been given alone."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from data_helpers import noise
from test_architectures import LABELS, classifier_of, waveforms

from audiocls.data.audio import Levels, decode
from audiocls.data.limits import BadAudio
from audiocls.data.resampling import resample, resample_blocks
from audiocls.errors import UserError
from audiocls.inference.classifier import Classifier, Prediction
from audiocls.inference.recordings import ReadOptions, in_blocks
from audiocls.inference.windows import first, windows

RATE = 16_000


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return classifier_of("wav2vec2")


def in_pieces(waveform: np.ndarray, *lengths: int) -> list[np.ndarray]:
    return np.split(waveform, np.cumsum(lengths)[np.cumsum(lengths) < len(waveform)])


# Resampling


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 12_345, 384_000])
@pytest.mark.parametrize("lengths", [(1, 10, 7_000, 40_000), (20_000,) * 9, ()])
def test_resampling_in_blocks_gives_what_resampling_at_once_gives(
    rate: int, lengths: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiocls.data.resampling.PIECE_SAMPLES", 1_000)
    for num_samples in (1, 500, 50_001):
        waveform = noise(num_samples)[:, 0]
        blocks = list(resample_blocks(in_pieces(waveform, *lengths), rate, RATE))
        expected = resample(waveform, rate, RATE)
        np.testing.assert_allclose(np.concatenate(blocks), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rate", "channels", "format"), [(44_100, 2, "FLAC"), (48_000, 1, "WAV"), (16_000, 1, "OGG")]
)
def test_a_file_in_blocks_is_the_decoded_file(rate: int, channels: int, format: str, tmp_path: Path) -> None:
    path = tmp_path / "long"
    soundfile.write(path, noise(600_001, channels), rate, format=format)
    blocks = list(in_blocks(path, ReadOptions(RATE, 400, None), Levels(), []))
    assert len(blocks) > 1
    np.testing.assert_allclose(np.concatenate(blocks), decode(path, RATE).waveform, rtol=0, atol=1e-6)


def test_first_ends_at_the_sample_and_reads_no_further() -> None:
    def blocks():  # type: ignore[no-untyped-def]
        yield np.arange(4)
        yield np.arange(4, 8)
        raise AssertionError("read on")

    assert np.concatenate(list(first(blocks(), 7))).tolist() == list(range(7))
    assert np.concatenate(list(first(blocks(), 8))).tolist() == list(range(8))
    assert np.concatenate(list(first([np.arange(4)], None))).tolist() == list(range(4))


# Where windows lie


@pytest.mark.parametrize(
    ("samples", "window", "hop", "expected"),
    [
        (10, 4, 3, [(0, 4), (3, 7), (6, 10)]),  # the last one ends with the recording
        (12, 4, 3, [(0, 4), (3, 7), (6, 10), (8, 12)]),  # it is moved back to do so
        (10, 4, 4, [(0, 4), (4, 8), (6, 10)]),
        (4, 4, 4, [(0, 4)]),
        (3, 4, 4, [(0, 3)]),  # shorter than one window: one window, as long as it is
        (11, 2, 5, [(0, 2), (5, 7), (9, 11)]),  # with gaps
        (9, 2, 5, [(0, 2), (5, 7)]),  # a gap at the end stays one
        (10, 4, 2.5, [(0, 4), (2, 6), (5, 9), (6, 10)]),  # starts do not drift: 2.5 and 7.5 are rounded
    ],
)
@pytest.mark.parametrize("block", [1, 3, 100])
def test_where_windows_begin_and_end(
    samples: int, window: int, hop: float, expected: list, block: int
) -> None:
    waveform = np.arange(samples, dtype=np.float32)
    blocks = [waveform[start : start + block] for start in range(0, samples, block)]
    found = list(windows(blocks, 1, window, hop))
    assert [(start, start + len(piece)) for start, piece in found] == expected
    for start, piece in found:
        assert piece.tolist() == waveform[start : start + len(piece)].tolist()


def test_no_samples_are_no_window() -> None:
    with pytest.raises(BadAudio, match="no audio"):
        list(windows([], RATE, 1, 1))


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    """Five minutes of 44.1 kHz are 53 MB as float32; the windows pass in a few."""
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 44_100, 1) as file:
        for _ in range(10):
            file.write(np.zeros(30 * 44_100, np.float32))
    tracemalloc.start()
    piece = in_blocks(tmp_path / "long.flac", ReadOptions(RATE, 400, None), Levels(), [])
    count = sum(1 for _ in windows(piece, RATE, 5, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 296
    assert peak < 10e6


# Scores


@pytest.mark.parametrize("name", ["wav2vec2", "data2vec-audio", "whisper"])
@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_a_window_scores_as_that_slice_alone(name: str, rate: int, tmp_path: Path) -> None:
    classifier = classifier_of(name)
    soundfile.write(tmp_path / "a.wav", 0.1 * waveforms(3 * rate)[0], rate, subtype="FLOAT")
    waveform = decode(tmp_path / "a.wav", RATE).waveform
    *found, whole = classifier(
        [tmp_path / "a.wav"], window_seconds=0.8, hop_seconds=0.3, batch_size=3, top_k=3
    )
    assert [one.start for one in found] == pytest.approx([*(0.3 * k for k in range(8)), 2.2])
    for one in found:
        assert one.start is not None and one.end is not None
        part = waveform[round(one.start * RATE) : round(one.end * RATE)]
        (alone,) = classifier([part], sampling_rate=RATE, top_k=3)
        assert dict(one.scores) == pytest.approx(dict(alone.scores), abs=1e-5)
    assert (whole.start, whole.end, whole.num_windows) == (None, None, 9)
    scores = [[dict(one.scores)[label] for label in LABELS] for one in found]
    assert [dict(whole.scores)[label] for label in LABELS] == pytest.approx(np.mean(scores, axis=0).tolist())


def test_aggregates_are_those_of_numpy(classifier: Classifier) -> None:
    time = np.arange(8_000) / RATE
    tones = [np.sin(2 * np.pi * pitch * time) for pitch in (50, 300, 2_000, 6_000)]
    waveform = np.concatenate([*tones, *waveforms(18_000)]).astype(np.float32)
    options = {"sampling_rate": RATE, "window_seconds": 0.25, "top_k": 3}
    found = {how: classifier(waveform, aggregate=how, **options) for how in ("mean", "max", "vote")}
    scores = np.array([[dict(one.scores)[label] for label in LABELS] for one in found["mean"][:-1]])
    votes = np.bincount(scores.argmax(axis=1), minlength=3) / len(scores)
    assert len(np.unique(scores.argmax(axis=1))) > 1
    for how, expected in (("mean", scores.mean(axis=0)), ("max", scores.max(axis=0)), ("vote", votes)):
        assert [dict(found[how][-1].scores)[label] for label in LABELS] == pytest.approx(expected.tolist())


def test_several_recordings_in_windows_keep_apart(classifier: Classifier) -> None:
    clips = waveforms(20_000, 5_000, 33_000)
    options = {"sampling_rate": RATE, "window_seconds": 0.5}
    together = classifier(clips, batch_size=4, **options)
    apart = [one for clip in clips for one in classifier([clip], **options)]
    assert [about(one) for one in together] == [about(one) for one in apart]
    for one, other in zip(together, apart, strict=True):
        assert dict(one.scores) == pytest.approx(dict(other.scores), abs=1e-5)


def about(prediction: Prediction) -> tuple:
    return prediction.start, prediction.end, prediction.num_windows


def test_a_recording_shorter_than_a_window_scores_as_without_windows(classifier: Classifier) -> None:
    clips = waveforms(9_000)
    window, whole = classifier(clips, sampling_rate=RATE, window_seconds=1)
    (alone,) = classifier(clips, sampling_rate=RATE)
    assert (window.start, window.end, whole.num_windows) == (0, 9_000 / RATE, 1)
    assert dict(window.scores) == pytest.approx(dict(alone.scores))
    assert dict(whole.scores) == pytest.approx(dict(alone.scores))


def test_max_seconds_ends_the_windows(classifier: Classifier, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 0.1 * waveforms(40_000)[0], 8_000)
    *found, _ = classifier(tmp_path / "a.wav", window_seconds=0.5, max_seconds=1.2)
    assert [(one.start, one.end) for one in found] == [(0, 0.5), (0.5, 1), (0.7, 1.2)]


def test_a_file_that_breaks_off_gives_its_windows_and_then_a_refusal(
    classifier: Classifier, tmp_path: Path
) -> None:
    samples = noise(2_000_000)
    samples[1_500_000] = np.nan
    soundfile.write(tmp_path / "broken.wav", samples, RATE, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "good.wav", noise(8_000), RATE)
    found = classifier([tmp_path / name for name in ("broken.wav", "text.wav", "good.wav")], window_seconds=5)
    *windows, broken, text, _, good = found
    assert len(windows) > 3
    assert all(one.error is None for one in windows)
    assert broken.error is not None and broken.start is None and broken.scores == []
    assert text.error is not None and "is text" in text.error
    assert good.num_windows == 1 and good.scores


def test_a_damaged_file_is_classified_by_what_decodes_and_a_note_says_how_much(
    classifier: Classifier, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "long.flac", noise(2_000_000), RATE)
    content = (tmp_path / "long.flac").read_bytes()
    half = len(content) // 2
    (tmp_path / "broken.flac").write_bytes(content[:half] + bytes(half))
    for options in ({"window_seconds": 5.0}, {}):
        *_, whole = classifier(tmp_path / "broken.flac", **options)
        assert whole.error is None and whole.scores
        assert any(note.startswith("damaged: 62.5 s of its 125.0 s are read") for note in whole.notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window_seconds": 0.001}, "takes 0.025 s or more"),
        ({"window_seconds": 1, "hop_seconds": 0}, "hop"),
        ({"hop_seconds": 1}, "window"),
        ({"window_seconds": 1, "aggregate": "median"}, "mean, max, vote"),
    ],
)
def test_windows_that_mean_nothing_are_refused(classifier: Classifier, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        classifier(["a.wav"], **options)


def test_a_window_longer_than_the_model_takes_is_refused() -> None:
    with pytest.raises(UserError, match=r"window is 3 s: the model takes 0\.025 s to 2 s"):
        classifier_of("whisper")(["a.wav"], window_seconds=3)


def test_between_windows_standard_error_is_where_it_was(
    classifier: Classifier, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.wav", noise(3 * RATE), RATE)
    for number, _ in enumerate(classifier.stream(tmp_path / "a.wav", window_seconds=1)):
        os.write(2, b"%d" % number)
    assert capfd.readouterr().err == "0123"
