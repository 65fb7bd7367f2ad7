"""What is measured of the part of a recording that is used: silence, clipping, scale, a digest."""

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from audiocls.data.audio import Decoded
from audiocls.data.resampling import Waveform
from audiocls.findings import CLIPPED_SAMPLES, FULL_SCALE, SILENCE_DBFS

STRETCH_SECONDS = 0.02
SILENT_POWER = 10 ** (SILENCE_DBFS / 10)


class Measured(NamedTuple):
    """What is used of one clip, at the model's rate; rate and channels are the recording's own."""

    rate: int  # Hz
    channels: int
    silent_share: float  # of its stretches of 20 ms
    is_clipped: bool
    is_cancelled: bool  # its channels are, by each other
    is_integer_scale: bool
    digest: str  # of the sound: equal for equal samples, whatever the format


def measure(decoded: Decoded, sampling_rate: int) -> Measured:
    """The measures of a recording of at least one sample, decoded at `sampling_rate`."""
    waveform, levels = decoded.waveform, decoded.levels
    power = stretch_power(waveform, sampling_rate)
    loud = np.abs(waveform) >= FULL_SCALE
    in_a_row = np.convolve(loud, np.ones(CLIPPED_SAMPLES, int)) if loud.any() else loud
    return Measured(
        decoded.rate,
        decoded.channels,
        silent_share=float(np.mean(power < SILENT_POWER)),
        # At integer scale nearly everything is beyond full scale, and nothing is known of clipping.
        is_clipped=bool(in_a_row.max() >= CLIPPED_SAMPLES) and not levels.is_integer_scale,
        is_cancelled=levels.is_cancelled,
        is_integer_scale=levels.is_integer_scale,
        # A checksum of the samples, much cheaper than a hash of them all, and one of each stretch's power.
        digest=hashlib.sha256(b"%d" % zlib.crc32(waveform.data) + power.tobytes()).hexdigest()[:32],
    )


def stretch_power(waveform: Waveform, sampling_rate: int) -> np.ndarray:
    """The mean square of each stretch of 20 ms, float64 [stretches]; the last one may be shorter."""
    stretch = stretch_samples(sampling_rate)
    starts = np.arange(0, len(waveform), stretch)
    return np.add.reduceat(np.square(waveform), starts) / np.minimum(stretch, len(waveform) - starts)


def stretch_samples(sampling_rate: int) -> int:
    return round(STRETCH_SECONDS * sampling_rate)


class SilenceWatch:
    """Whether all stretches of a recording are silent, be it given whole or in blocks as they are read."""

    def __init__(self, sampling_rate: int) -> None:
        self.sampling_rate = sampling_rate
        self.is_silent = True

    def listen(self, waveform: Waveform) -> None:
        self.is_silent &= bool((stretch_power(waveform, self.sampling_rate) < SILENT_POWER).all())

    def passing(self, blocks: Iterable[Waveform]) -> Iterator[Waveform]:
        """The blocks as they come, listened to until something is heard."""
        stretch = stretch_samples(self.sampling_rate)
        rest = np.zeros(0, np.float32)  # of a stretch that goes on in the next block
        for block in blocks:
            yield block
            if self.is_silent:
                rest = np.concatenate([rest, block])
                end = len(rest) // stretch * stretch
                self.listen(rest[:end])
                rest = rest[end:]
        self.listen(rest)
