"""Bytes or a path -> a mono float32 waveform at one rate."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audiocls.config import TrainConfig
from audiocls.data.decoders import Reader, open_audio
from audiocls.data.limits import MAX_VALUE, BadAudio, TooLong
from audiocls.data.resampling import Waveform, frames_needed, resample_blocks
from audiocls.data.silence import sound_in
from audiocls.findings import CANCELLED_DB, INTEGER_SCALE, SILENCE_DBFS

MAX_DECODE_SECONDS = TrainConfig.max_decode_seconds
MAX_CLAIMED_SECONDS = 7 * 86_400  # a header that says more is not believed
BLOCK_VALUES = 2**18  # decoded at a time, over all channels


class DecodeOptions(NamedTuple):
    """How a recording is decoded: the arguments of `decode` and of `segments.cut` behind what is decoded."""

    sampling_rate: int  # Hz, of what comes out
    max_samples: int | None = None  # of a clip, at that rate; None: all
    max_decode_seconds: float = MAX_DECODE_SECONDS
    channel: str = "mean"  # see `chosen`
    trim_silence: bool = False


@dataclass
class Levels:
    """How loud a recording is before its channels are averaged, added up as `mono` averages them."""

    peak: float = 0.0  # the largest magnitude; full scale is 1
    # Sums of squares, 0 for mono:
    channels_energy: float = 0.0  # of each channel, averaged over the channels
    mean_energy: float = 0.0  # of the channels' mean

    @property
    def is_cancelled(self) -> bool:
        """Whether the channels, which are not silent, cancel when they are averaged."""
        is_heard = self.peak >= 10 ** (SILENCE_DBFS / 20)
        return is_heard and self.mean_energy < 10 ** (-CANCELLED_DB / 10) * self.channels_energy

    @property
    def is_integer_scale(self) -> bool:
        return self.peak > INTEGER_SCALE


@dataclass(frozen=True)
class Decoded:
    """A recording as the model takes it."""

    waveform: Waveform  # float32 [samples], at the rate asked for
    seconds: float  # length of the whole recording, used or not
    rate: int  # Hz, of the recording
    channels: int
    levels: Levels  # of what was read
    goes_on: bool  # whether the recording is longer than what was read
    notes: tuple[str, ...] = ()  # why that may not be all of it
    trimmed_seconds: float | None = None  # of silence, dropped from its ends; None where nothing is trimmed


def decode(
    audio: Path | bytes,
    sampling_rate: int,
    max_samples: int | None = None,
    max_decode_seconds: float = MAX_DECODE_SECONDS,
    channel: str = "mean",
    trim_silence: bool = False,
) -> Decoded:
    """The recording as mono float32 at `sampling_rate`, no longer than `max_samples`.

    Only the part that is used is decoded, and its samples are those that decoding everything would give.
    `channel` is which one is used of several (see `chosen`); `trim_silence` drops the silence at both ends.
    Raises BadAudio for what does not decode, holds no samples, values that are not finite, or more than
    `max_decode_seconds` of what is to be used, which is TooLong.
    """
    if trim_silence:
        return trimmed(
            decode(audio, sampling_rate, None, max_decode_seconds, channel), sampling_rate, max_samples
        )
    num_frames, levels = 0, Levels()

    def counted(blocks: Iterable[Waveform]) -> Iterator[Waveform]:
        nonlocal num_frames
        for block in blocks:
            num_frames += len(block)
            if num_frames > most:
                raise TooLong(max_decode_seconds)
            yield block

    with open_audio(audio, sampling_rate) as file:
        rate, channels, claimed = file.rate, file.channels, file.claimed
        wanted = frames_needed(max_samples, rate, sampling_rate)
        most = max_decode_seconds * rate
        # Ogg is slow to decode, and its length is not a claim but its last page's place.
        if file.is_length_sure and min(claimed, wanted) > most:
            raise TooLong(max_decode_seconds)
        pieces = list(resample_blocks(counted(blocks(file, levels, wanted, channel)), rate, sampling_rate))
        goes_on = num_frames == wanted and (claimed > num_frames or len(file.read(1)) > 0)
        notes = tuple(file.notes)
    if not num_frames:
        raise BadAudio("holds no audio")
    is_claimed = goes_on and num_frames < claimed <= MAX_CLAIMED_SECONDS * rate
    seconds = (claimed if is_claimed else num_frames) / rate
    waveform = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return Decoded(waveform[:max_samples], seconds, rate, channels, levels, goes_on, notes)


def trimmed(decoded: Decoded, sampling_rate: int, max_samples: int | None) -> Decoded:
    """A whole recording without the silence at its ends, and of that the first `max_samples`."""
    start, end = sound_in(decoded.waveform, sampling_rate)
    return replace(
        decoded,
        waveform=decoded.waveform[start:end][:max_samples].copy(),
        seconds=(end - start) / sampling_rate,
        goes_on=max_samples is not None and max_samples < end - start,
        trimmed_seconds=(len(decoded.waveform) - (end - start)) / sampling_rate,
    )


def blocks(
    file: Reader, levels: Levels, frames: float = math.inf, channel: str = "mean"
) -> Iterator[Waveform]:
    """The recording's first `frames` in mono as read, float32 [samples], a bounded part at a time.

    How loud it is goes into `levels`. Raises BadAudio for values that are not finite.
    """
    for read in raw_blocks(file, frames):
        yield mono(chosen(read, channel), levels)


def raw_blocks(file: Reader, frames: float = math.inf) -> Iterator[np.ndarray]:
    """The file's first `frames` as read, float32 [samples, channels], a bounded part at a time.

    What a header claims is never allocated.
    """
    while frames > 0:
        wanted = int(min(BLOCK_VALUES // file.channels, frames))
        read = file.read(wanted)
        if len(read):
            yield read
        if len(read) < wanted:  # the end: asking once more costs half as much as a short clip's decoding
            return
        frames -= wanted


def chosen(samples: np.ndarray, channel: str) -> np.ndarray:
    """Of [samples] or [samples, channels] the channel meant, [samples, 1]; all of them for the mean.

    That is left, right, or a number from 1 on. A recording of one channel is that. Raises BadAudio.
    """
    if channel == "mean" or samples.ndim == 1 or samples.shape[1] == 1:
        return samples
    number = {"left": 1, "right": 2}.get(channel) or int(channel)
    if number > samples.shape[1]:
        raise BadAudio(f"has {samples.shape[1]} channels, and so no --channel {channel}")
    return np.ascontiguousarray(samples[:, number - 1 : number])


def mono(samples: np.ndarray, levels: Levels, mean: Waveform | None = None) -> Waveform:
    """float32 [samples] of [samples] or [samples, channels]: the channels' mean, or `mean` where it is known.

    How loud they are goes into `levels`. Raises BadAudio for what is empty, not finite or absurdly large.
    """
    samples = np.asarray(samples, np.float32)
    if samples.size == 0:
        raise BadAudio("holds no audio")
    low, high = samples.min(), samples.max()  # each NaN where there is one
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BadAudio("holds samples that are not finite")
    if low < -MAX_VALUE or high > MAX_VALUE:
        raise BadAudio(f"holds samples beyond {MAX_VALUE:g} times full scale")
    levels.peak = max(levels.peak, float(high), -float(low))
    if samples.ndim == 1 or samples.shape[1] == 1:
        return samples.reshape(-1)
    mean = samples.mean(axis=1) if mean is None else mean
    levels.channels_energy += float(np.vdot(samples, samples)) / samples.shape[1]
    levels.mean_energy += float(np.vdot(mean, mean))
    return mean
