"""What is measured of the part of a recording that is used: silence, clipping, scale, a digest."""

import hashlib
import zlib
from typing import NamedTuple

import numpy as np

from audiocls.data.audio import Decoded
from audiocls.data.silence import SILENT_POWER, sound_in, stretch_power
from audiocls.findings import CLIPPED_SAMPLES, FULL_SCALE


class Measured(NamedTuple):
    """What is used of one clip, at the model's rate; rate and channels are the recording's own."""

    rate: int  # Hz
    channels: int
    silent_share: float  # of its stretches of 20 ms
    is_clipped: bool
    is_cancelled: bool  # its channels are, by each other
    is_integer_scale: bool
    digest: str  # of the sound: equal for equal samples, whatever the format
    silent_ends_seconds: float  # at its beginning and end: dropped, or what --trim-silence would drop of it
    notes: list[str]  # why what was read may not be all of the recording


def measure(decoded: Decoded, sampling_rate: int) -> Measured:
    """The measures of a recording of at least one sample, decoded at `sampling_rate`."""
    waveform, levels = decoded.waveform, decoded.levels
    power = stretch_power(waveform, sampling_rate)
    loud = np.abs(waveform) >= FULL_SCALE
    start, end = sound_in(waveform, sampling_rate)
    trimmable = (len(waveform) - (end - start)) / sampling_rate
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
        silent_ends_seconds=trimmable if decoded.trimmed_seconds is None else decoded.trimmed_seconds,
        notes=list(decoded.notes),
    )
