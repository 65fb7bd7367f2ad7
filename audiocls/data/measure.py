"""What the data audit asks of a clip, measured while it is decoded anyway."""

import hashlib
import zlib
from dataclasses import dataclass

import numpy as np

from audiocls.data.resampling import Waveform

SILENCE_DBFS = -60.0  # a stretch is silent below this root mean square, of full scale
STRETCH_SECONDS = 0.02
FULL_SCALE = 0.999
CLIPPED_SAMPLES = 3  # in a row at full scale: a peak that was merely made as loud as can be has fewer


@dataclass(frozen=True)
class Measured:
    """One clip as far as it is heard, at the model's rate; rate and channels are the recording's own."""

    rate: int  # Hz
    channels: int
    silent_share: float  # of its stretches of 20 ms
    is_clipped: bool
    digest: str  # of the sound: equal for equal samples, whatever the format


def measure(waveform: Waveform, sampling_rate: int, rate: int, channels: int) -> Measured:
    """The measures of `waveform`, float32 [samples] of at least one sample, at `sampling_rate`."""
    stretch = round(STRETCH_SECONDS * sampling_rate)
    starts = np.arange(0, len(waveform), stretch)
    energy = np.add.reduceat(np.square(waveform), starts)
    power = energy / np.minimum(stretch, len(waveform) - starts)
    loud = np.abs(waveform) >= FULL_SCALE
    in_a_row = np.convolve(loud, np.ones(CLIPPED_SAMPLES, int)) if loud.any() else loud
    return Measured(
        rate,
        channels,
        silent_share=float(np.mean(power < 10 ** (SILENCE_DBFS / 10))),
        is_clipped=bool(in_a_row.max() >= CLIPPED_SAMPLES),
        # A checksum of the samples, much cheaper than a hash of them all, and one of each stretch's energy.
        digest=hashlib.sha256(b"%d" % zlib.crc32(waveform.data) + energy.tobytes()).hexdigest()[:32],
    )
