"""A recording in any form -> the pieces of it that are classified: the whole, or windows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from audiocls.data.audio import (
    MAX_DECODE_SECONDS,
    BadAudio,
    blocks,
    check_format,
    check_length,
    decode,
    mono,
    open_audio,
)
from audiocls.data.clips import Clip
from audiocls.data.resampling import Waveform, resample, resample_blocks
from audiocls.errors import UserError, one_line
from audiocls.inference.windows import first, windows

Encoded = Path | bytes  # a file, or what is in it
Array = np.ndarray | Tensor  # a waveform, [samples] or [samples, channels]
Recording = str | Encoded | Array | Clip  # a str is a path, a Clip one of a data set


@dataclass(frozen=True)
class ReadOptions:
    """How a recording is read: rate, limits, windows."""

    rate: int  # the model's sampling rate, in Hz
    min_samples: int  # at that rate
    max_samples: int | None  # at that rate; None: all
    waveform_rate: int | None = None  # of arrays, in Hz
    max_decode_seconds: float = MAX_DECODE_SECONDS  # of a recording that is not read in windows
    windows: tuple[float, float] | None = None  # seconds of each, and from one's start to the next one's


@dataclass(frozen=True)
class Prediction:
    """What a recording, or a window of it, was taken for; or why it could not be used."""

    path: str | None  # as given; None for a waveform or bytes
    scores: list[tuple[str, float]]  # (label, score), best first; empty where refused
    error: str | None = None
    start: float | None = None  # of a window, in seconds; None: this is about the whole recording
    end: float | None = None
    num_windows: int | None = None  # whose scores were put together
    true_label: str | None = None  # of a data set's clip

    @property
    def label(self) -> str | None:
        return self.scores[0][0] if self.scores else None

    @property
    def score(self) -> float | None:
        return self.scores[0][1] if self.scores else None


# A Prediction still without scores, and the waveform to score, at the model's rate: None for a recording that
# is refused, and last for one whose windows have come before.
Piece = tuple[Prediction, Waveform | None]


def pieces_of(recording: Recording, options: ReadOptions) -> Iterator[Piece]:
    """The recording's windows, where `options` has windows, and last the whole recording.

    What is wrong with it is the last one's `error`. Raises UserError where it is no recording at all, or an
    array whose rate is not known.
    """
    whole, audio = Prediction(None, []), recording
    match recording:
        case Clip():
            whole = Prediction(recording.path, [], true_label=recording.label)
        case str() | Path():
            whole, audio = Prediction(str(recording), []), Path(recording)
    if not isinstance(audio, Encoded | Array | Clip):
        raise UserError(
            f"A {type(recording).__name__} is no recording: give a path, a file's bytes, or a waveform "
            "(a NumPy array or a tensor)."
        )
    try:
        if isinstance(audio, Clip):
            audio = audio.audio.read()
        if options.windows is None:
            waveform = read(audio, options)
            check_length(len(waveform), options.min_samples, options.rate)
            yield whole, waveform
            return
        used = first(in_blocks(audio, options), options.max_samples)
        for start, window in windows(used, options.rate, *options.windows):
            check_length(len(window), options.min_samples, options.rate)
            end = start + len(window)
            yield replace(whole, start=start / options.rate, end=end / options.rate), window
    except BadAudio as error:
        whole = replace(whole, error=str(error))
    except UnicodeEncodeError:
        whole = replace(whole, path=one_line(str(whole.path)), error="has a name that no file can have")
    yield whole, None


def read(audio: Encoded | Array, options: ReadOptions) -> Waveform:
    """What is used of the recording, float32 [samples] at the model's rate. Raises BadAudio."""
    if isinstance(audio, Array):
        return from_array(audio, options)[: options.max_samples]
    return decode(audio, options.rate, options.max_samples, options.max_decode_seconds).waveform


def in_blocks(audio: Encoded | Array, options: ReadOptions) -> Iterator[Waveform]:
    """All of the recording at the model's rate, in blocks. Raises BadAudio."""
    if isinstance(audio, Array):
        yield from_array(audio, options)
        return
    with open_audio(audio, options.rate) as file:
        yield from resample_blocks(blocks(file), file.samplerate, options.rate)


def from_array(recording: Array, options: ReadOptions) -> Waveform:
    """float32 [samples] at the model's rate. Raises BadAudio."""
    if options.waveform_rate is None:
        raise UserError("A waveform does not know its rate: give sampling_rate=, in Hz.")
    samples = as_float(recording)
    shape = list(samples.shape)
    if not 1 <= len(shape) <= 2:
        raise BadAudio(f"has shape {shape}: a waveform is [samples] or [samples, channels]")
    channels = 1 if len(shape) == 1 else shape[1]
    if channels > shape[0] > 0:
        raise BadAudio(
            f"has shape {shape}, {channels} channels as [samples, channels]: turn one as torchaudio loads it "
            "(waveform.T), give several as a list (list(waveforms))"
        )
    check_format(options.waveform_rate, channels, options.rate)
    return resample(mono(samples), options.waveform_rate, options.rate)


def as_float(recording: Array) -> np.ndarray:
    """float32 of any float, and of int16 and int32 scaled to [-1, 1) as a file's samples are."""
    if isinstance(recording, Tensor):
        recording = (recording.float() if recording.is_floating_point() else recording).detach().cpu().numpy()
    if recording.dtype in (np.int16, np.int32):
        return (recording / -float(np.iinfo(recording.dtype).min)).astype(np.float32)
    if recording.dtype.kind != "f":
        raise BadAudio(f"has dtype {recording.dtype}: give floats in [-1, 1], int16 or int32")
    return recording.astype(np.float32, copy=False)
