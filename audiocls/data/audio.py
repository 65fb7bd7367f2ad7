"""Bytes or a path -> a mono float32 waveform at one rate (soundfile decodes)."""

import contextlib
import io
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from audiocls.config import TrainConfig
from audiocls.data.resampling import Waveform, filter_half_width, frames_needed, resample_blocks
from audiocls.findings import CANCELLED_DB, INTEGER_SCALE, SILENCE_DBFS
from audiocls.storage import NotRegular, open_regular
from audiocls.streams import quiet_stderr

# What libsndfile reads, and what people keep beside it: the latter are refused by name, not overlooked.
READABLE = set("aif aifc aiff au caf flac mp2 mp3 mpga nist oga ogg opus rf64 snd sph w64 wav wave".split())
AUDIO_SUFFIXES = READABLE | set(
    "3gp 3gpp aac ac3 amr ape awb m4a m4b mka mov mp4 mpc spx tta webm wma wv".split()
)

# What of libsndfile's is decoded, after its names: the containers and codecs of recordings, and no rarities.
CONTAINERS = set("AIFF AU CAF FLAC MP3 NIST OGG RF64 W64 WAV WAVEX".split())
CODECS = set(
    "ALAC_16 ALAC_20 ALAC_24 ALAC_32 ALAW DOUBLE FLOAT GSM610 IMA_ADPCM MPEG_LAYER_I MPEG_LAYER_II "
    "MPEG_LAYER_III MS_ADPCM OPUS PCM_16 PCM_24 PCM_32 PCM_S8 PCM_U8 ULAW VORBIS".split()
)

MIN_RATE, MAX_RATE = 4_000, 384_000
MAX_CHANNELS = 64
MAX_VALUES_PER_SECOND = 64 * 16_000  # 64 channels at 16 kHz, 10 at 96 kHz, 2 at 384 kHz
MAX_VALUE = 1e6  # of full scale: beyond it, float32 overflows when a model squares and sums
MAX_DECODE_SECONDS = TrainConfig.max_decode_seconds
MAX_CLAIMED_SECONDS = 7 * 86_400  # a header that says more is not believed
MAX_KERNEL_VALUES = 20_000_000  # of the resampler, 80 MB
BLOCK_VALUES = 2**18  # decoded at a time, over all channels
NOT_THERE = "is not there"


class BadAudio(ValueError):
    """This recording cannot be used; the message says why, without its name."""


class UnreadableAudio(BadAudio):
    """This recording could not be read now, but another time it may."""


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


def decode(
    audio: Path | bytes,
    sampling_rate: int,
    max_samples: int | None = None,
    max_decode_seconds: float = MAX_DECODE_SECONDS,
) -> Decoded:
    """The recording as mono float32 at `sampling_rate`, no longer than `max_samples`.

    Only the part that is used is decoded, and its samples are those that decoding everything would give.
    Raises BadAudio for what does not decode, holds no samples, values that are not finite, or more than
    `max_decode_seconds` of what is to be used.
    """
    num_frames, levels = 0, Levels()
    too_long = BadAudio(
        f"is longer than {max_decode_seconds:g} s, the most that is decoded: raise --max-decode-seconds, or "
        "use only its beginning with --max-seconds"
    )

    def counted(blocks: Iterable[Waveform]) -> Iterator[Waveform]:
        nonlocal num_frames
        for block in blocks:
            num_frames += len(block)
            if num_frames > most:
                raise too_long
            yield block

    with open_audio(audio, sampling_rate) as file:
        rate, channels, claimed = file.samplerate, file.channels, file.frames
        wanted = frames_needed(max_samples, rate, sampling_rate)
        most = max_decode_seconds * rate
        # OGG is slow to decode, and its length is not a claim but its last page's place.
        if file.format == "OGG" and min(claimed, wanted) > most:
            raise too_long
        pieces = list(resample_blocks(counted(blocks(file, levels, wanted)), rate, sampling_rate))
    if not num_frames:
        raise BadAudio("holds no audio")
    # A header may promise more or less than the file holds.
    goes_on = num_frames == wanted and claimed > num_frames
    seconds = (claimed if goes_on and claimed <= MAX_CLAIMED_SECONDS * rate else num_frames) / rate
    waveform = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return Decoded(waveform[:max_samples], seconds, rate, channels, levels, goes_on)


@contextlib.contextmanager
def open_audio(audio: Path | bytes, to_rate: int) -> Iterator[soundfile.SoundFile]:
    """A recording that can be resampled to `to_rate`, open to be read; what goes wrong within is BadAudio."""
    if isinstance(audio, Path) and "\0" in str(audio):
        raise BadAudio("has a NUL in its name")
    try:
        with io.BytesIO(audio) if isinstance(audio, bytes) else open_regular(audio) as content:
            # A file by its descriptor: libsndfile then reads it without Python, and closes what it is given.
            source = content if isinstance(content, io.BytesIO) else os.dup(content.fileno())
            with quiet_stderr():
                file = soundfile.SoundFile(source)
            with file:
                if file.format not in CONTAINERS or file.subtype not in CODECS:
                    raise BadAudio(
                        f"is {file.format} with {file.subtype}, which is not read here "
                        "(convert it: ffmpeg -i FILE FILE.wav)"
                    )
                check_format(file.samplerate, file.channels, to_rate)
                yield file
    except FileNotFoundError:
        raise BadAudio(NOT_THERE) from None
    except NotRegular:
        raise BadAudio("is not a regular file") from None
    except OSError as error:
        raise UnreadableAudio(f"cannot be read: {(error.strerror or str(error)).lower()}") from None
    except soundfile.LibsndfileError as error:
        kind = UnreadableAudio if error.code == 2 else BadAudio  # 2: the system failed, not the format
        why = error.error_string.strip().rstrip(".").lower().removeprefix("error : ")
        suffix = audio.suffix[1:].lower() if isinstance(audio, Path) else ""
        if suffix in AUDIO_SUFFIXES - READABLE:
            why += f" (libsndfile reads no .{suffix}; convert it: ffmpeg -i FILE FILE.wav)"
        raise kind(f"does not decode: {why}") from None


def blocks(file: soundfile.SoundFile, levels: Levels, frames: float = math.inf) -> Iterator[Waveform]:
    """The file's first `frames` in mono as read, float32 [samples], a bounded part at a time.

    How loud it is goes into `levels`. What a header claims is never allocated. Raises BadAudio for values
    that are not finite.
    """
    while frames > 0:
        wanted = int(min(BLOCK_VALUES // file.channels, frames))
        with quiet_stderr():
            read = file.read(wanted, dtype="float32", always_2d=True)
        if len(read):
            yield mono(read, levels)
        if len(read) < wanted:  # the end: asking once more costs half as much as a short clip's decoding
            return
        frames -= wanted


def mono(samples: np.ndarray, levels: Levels) -> Waveform:
    """float32 [samples] of [samples] or [samples, channels]: the channels' mean.

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
    mean = samples.mean(axis=1)
    levels.channels_energy += float(np.vdot(samples, samples)) / samples.shape[1]
    levels.mean_energy += float(np.vdot(mean, mean))
    return mean


def check_format(rate: int, channels: int, to_rate: int) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise BadAudio(f"has a rate of {rate} Hz, outside {MIN_RATE} to {MAX_RATE} Hz")
    if channels > MAX_CHANNELS:
        raise BadAudio(f"has {channels} channels, more than {MAX_CHANNELS}")
    if channels * rate > MAX_VALUES_PER_SECOND:
        raise BadAudio(f"has {channels} channels at {rate} Hz, too many at such a rate")
    divisor = math.gcd(rate, to_rate)
    # One filter for each of the new rate's phases, as long as the old rate's period and more.
    width = filter_half_width(rate, to_rate)
    if rate != to_rate and (to_rate // divisor) * (2 * width + rate // divisor) > MAX_KERNEL_VALUES:
        convert = f"ffmpeg -i FILE -ar {to_rate} FILE.wav"
        raise BadAudio(f"has a rate of {rate} Hz, too odd beside {to_rate} Hz (convert it: {convert})")


def check_length(num_samples: int, min_samples: int, sampling_rate: int) -> None:
    if num_samples < min_samples:
        milliseconds = 1000 * min_samples / sampling_rate
        raise BadAudio(f"is shorter than what the model needs, {milliseconds:.0f} ms")
