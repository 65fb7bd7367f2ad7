"""A recording in any form -> the file, or the samples and their rate, that it holds."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from audiocls.data.clips import Audio, Clip, Segment
from audiocls.data.limits import BadAudio
from audiocls.errors import UserError, named, reason
from audiocls.inference.options import whole_number


@runtime_checkable
class AudioDecoder(Protocol):
    """torchcodec's, which `datasets` gives where it is installed."""

    def get_all_samples(self) -> Any:
        """An object with `data`, a tensor [channels, samples], and `sample_rate`."""


Encoded = Path | bytes  # a file, or what is in it
Array = np.ndarray | Tensor  # a waveform, [samples] or [samples, channels]


@dataclass(frozen=True)
class Segments:
    """Clips that are parts of one recording, which is read once for them all."""

    recording: Audio
    clips: list[Clip]


# A str is a path, a Clip one of a data set.
Recording = str | Encoded | Array | dict | AudioDecoder | Clip | Segments


class Sampled(NamedTuple):
    """A waveform whose rate is known."""

    samples: Array
    rate: int  # Hz


def by_recording(clips: Iterable[Clip]) -> Iterator[Clip | Segments]:
    """The clips in their order; the segments of a recording all together, where the first of them is."""
    clips = list(clips)
    members: dict[Audio, list[Clip]] = defaultdict(list)
    for clip in clips:
        if isinstance(clip.audio, Segment):
            members[clip.audio.recording].append(clip)
    for clip in clips:
        if not isinstance(clip.audio, Segment):
            yield clip
        elif some := members.pop(clip.audio.recording, None):
            yield Segments(clip.audio.recording, some)


def path_of(recording: Recording) -> str | None:
    match recording:
        case Clip():
            return recording.path
        case str() | Path():
            return str(recording)
        case {"path": str() | Path() as path}:
            return str(path)
    return None


def audio_of(recording: Recording, waveform_rate: int | None) -> Encoded | Sampled:
    """Where the recording's samples are; arrays without a rate of their own have `waveform_rate`, in Hz.

    Raises UserError where it is no recording, BadAudio where it cannot be had.
    """
    match recording:
        case Clip(audio=audio) if not isinstance(audio, Segment):
            return audio.read()
        case bytes():
            return recording
        case str() | Path():
            return Path(recording)
        case np.ndarray() | Tensor():
            if waveform_rate is None:
                raise UserError("A waveform does not know its rate: give sampling_rate=, in Hz.")
            return Sampled(recording, waveform_rate)
        case dict():
            return audio_of_dict(recording, waveform_rate)
        case AudioDecoder():
            try:
                decoded = recording.get_all_samples()
            except (RuntimeError, ValueError) as error:
                raise BadAudio(f"does not decode: {reason(error)}") from None
            return with_own_rate(decoded.data.T, decoded.sample_rate, waveform_rate)
    raise UserError(
        f"A recording cannot be of type {type(recording).__name__}: give a path, a file's bytes, a waveform "
        "(a NumPy array or a tensor), or a dict with 'array' and 'sampling_rate'."
    )


def audio_of_dict(audio: dict, waveform_rate: int | None) -> Encoded | Sampled:
    """A dict's waveform and rate, as transformers' pipeline takes one, or its file, as in `datasets`."""
    key = next((key for key in ("raw", "array", "bytes", "path") if audio.get(key) is not None), None)
    match key, audio.get(key):
        case "raw" | "array", np.ndarray() | Tensor() as samples:
            if "sampling_rate" not in audio:
                raise UserError(f"A dict with {key!r} does not know its rate: add 'sampling_rate', in Hz.")
            return with_own_rate(samples, audio["sampling_rate"], waveform_rate)
        case "bytes", bytes() as content:
            return content
        case "path", str() | Path() as path:
            return Path(path)
    has = named([f"{key!r} ({type(value).__name__})" for key, value in audio.items()]) or "nothing"
    raise UserError(
        "A dict needs 'array' or 'raw' (a NumPy array or a tensor) and 'sampling_rate', or 'bytes', or "
        f"'path': this one has {has}."
    )


def with_own_rate(samples: Array, own_rate: Any, waveform_rate: int | None) -> Sampled:
    """A waveform that came with its rate. Raises UserError where `waveform_rate` is another one."""
    rate = whole_number("A recording's own sampling_rate", own_rate)
    if waveform_rate not in (None, rate):
        raise UserError(
            f"A recording's own sampling_rate is {rate} Hz, and sampling_rate= says {waveform_rate} Hz: "
            "leave out sampling_rate=, or correct the recording's."
        )
    return Sampled(samples, rate)


def as_float(recording: Array) -> np.ndarray:
    """float32 of any float, and of int16 and int32 scaled to [-1, 1) as a file's samples are."""
    if isinstance(recording, Tensor) and (recording.layout is not torch.strided or recording.is_meta):
        raise BadAudio("is no plain tensor")
    if isinstance(recording, Tensor):
        recording = (recording.float() if recording.is_floating_point() else recording).detach().cpu().numpy()
    if recording.dtype in (np.int16, np.int32):
        return (recording / -float(np.iinfo(recording.dtype).min)).astype(np.float32)
    if recording.dtype.kind != "f":
        raise BadAudio(f"has dtype {recording.dtype}: give floats in [-1, 1], int16 or int32")
    return recording.astype(np.float32, copy=False)
