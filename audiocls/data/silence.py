"""Where a waveform is silent."""

from collections.abc import Iterable, Iterator

import numpy as np

from audiocls.data.resampling import Waveform
from audiocls.findings import SILENCE_DBFS

STRETCH_SECONDS = 0.02
SILENT_POWER = 10 ** (SILENCE_DBFS / 10)
# What --trim-silence drops: stretches this much weaker than the loudest one, but for a margin, in which the
# faint beginning of an s or f may lie. Recordings of rooms have noise 40 to 60 dB below their speech.
TRIM_DB = 40.0
MARGIN_SECONDS = 0.1


def sound_in(waveform: Waveform, sampling_rate: int) -> tuple[int, int]:
    """The first sample of the sound, and the one behind its last; a silent waveform is left as it is."""
    offset = waveform.mean(dtype=np.float64).astype(np.float32)  # of the recorder's, which is no sound
    power = stretch_power(waveform - offset, sampling_rate)
    loudest = power.max()
    if loudest < SILENT_POWER:
        return 0, len(waveform)
    loud = np.flatnonzero(power >= loudest * 10 ** (-TRIM_DB / 10))
    stretch, margin = stretch_samples(sampling_rate), round(MARGIN_SECONDS * sampling_rate)
    start = max(0, int(loud[0]) * stretch - margin)
    return start, min(len(waveform), (int(loud[-1]) + 1) * stretch + margin)


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
