"""A recording in any form -> the pieces of it that are classified: the whole, or windows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
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
from audiocls.data.resampling import Waveform, resample, resampled
from audiocls.errors import UserError, one_line
from audiocls.inference.windows import first, windows

# A path, an encoded file's bytes, a waveform [samples] or [samples, channels], or a data set's clip.
Recording = str | Path | bytes | np.ndarray | Tensor | Clip


@dataclass(frozen=True)
class Hearing:
    """What is heard of recordings."""

    rate: int  # the model's sampling rate, in Hz
    min_samples: int  # at that rate
    max_samples: int | None  # at that rate; None: all
    waveform_rate: int | None = None  # of arrays, in Hz
    max_decode_seconds: float = MAX_DECODE_SECONDS  # of a recording that is not heard in windows
    window_seconds: float | None = None  # None: no windows
    hop_seconds: float = 0.0


@dataclass(frozen=True)
class Piece:
    """What is classified at once; a recording in windows ends with a piece that has no waveform."""

    path: str | None  # as given; None for an array or bytes
    true_label: str | None = None
    waveform: Waveform | None = None  # float32 [samples], at the model's rate
    start: float | None = None  # of a window, in seconds
    end: float | None = None
    error: str | None = None  # why (the rest of) the recording cannot be used


def pieces_of(recording: Recording, hearing: Hearing) -> Iterator[Piece]:
    """The recording's pieces, one after another; what is wrong with it is the last one's `error`.

    Raises UserError where it is no recording at all, or an array whose rate is not known.
    """
    match recording:
        case Clip():
            last = Piece(recording.path, recording.label)
        case str() | Path():
            last = Piece(str(recording))
        case _:
            last = Piece(None)
    try:
        if hearing.window_seconds is None:
            waveform = whole(recording, hearing)
            check_length(len(waveform), hearing.min_samples, hearing.rate)
            last = replace(last, waveform=waveform)
        else:
            heard = first(in_blocks(recording, hearing), hearing.max_samples)
            for start, window in windows(heard, hearing.rate, hearing.window_seconds, hearing.hop_seconds):
                check_length(len(window), hearing.min_samples, hearing.rate)
                seconds = start / hearing.rate, (start + len(window)) / hearing.rate
                yield Piece(last.path, last.true_label, window, *seconds)
    except BadAudio as error:
        last = replace(last, error=str(error))
    except UnicodeEncodeError:
        last = replace(last, path=one_line(str(last.path)), error="has a name that no file can have")
    yield last


def whole(recording: Recording, hearing: Hearing) -> Waveform:
    """What is heard of the recording, at the model's rate. Raises BadAudio."""
    if isinstance(recording, np.ndarray | Tensor):
        return from_array(recording, hearing)[: hearing.max_samples]
    return decode(encoded(recording), hearing.rate, hearing.max_samples, hearing.max_decode_seconds).waveform


def in_blocks(recording: Recording, hearing: Hearing) -> Iterator[Waveform]:
    """All of the recording at the model's rate, in blocks. Raises BadAudio."""
    if isinstance(recording, np.ndarray | Tensor):
        yield from_array(recording, hearing)
        return
    with open_audio(encoded(recording), hearing.rate) as file:
        yield from resampled(blocks(file), file.samplerate, hearing.rate)


def encoded(recording: str | Path | bytes | Clip) -> Path | bytes:
    match recording:
        case Clip():
            return recording.audio.read()
        case bytes() | Path():
            return recording
        case str():
            return Path(recording)
    raise UserError(
        f"A {type(recording).__name__} is no recording: give a path, a file's bytes, or a waveform "
        "(a NumPy array or a tensor)."
    )


def from_array(recording: np.ndarray | Tensor, hearing: Hearing) -> Waveform:
    """float32 [samples] at the model's rate. Raises BadAudio."""
    if hearing.waveform_rate is None:
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
    check_format(hearing.waveform_rate, channels, hearing.rate)
    return resample(mono(samples), hearing.waveform_rate, hearing.rate)


def as_float(recording: np.ndarray | Tensor) -> np.ndarray:
    """float32 of any float, and of int16 and int32 scaled to [-1, 1) as a file's samples are."""
    if isinstance(recording, Tensor):
        recording = recording.detach().cpu()
        recording = (recording.float() if recording.dtype == torch.bfloat16 else recording).numpy()
    if recording.dtype in (np.int16, np.int32):
        return (recording / -float(np.iinfo(recording.dtype).min)).astype(np.float32)
    if recording.dtype.kind != "f":
        raise BadAudio(f"has dtype {recording.dtype}: give floats in [-1, 1], int16 or int32")
    return recording.astype(np.float32, copy=False)
