"""Long recordings in bounded memory: cut into windows as they are read."""

from collections.abc import Iterable, Iterator

import numpy as np

from audiocls.data.limits import BadAudio
from audiocls.data.resampling import Waveform


def first(blocks: Iterable[Waveform], max_samples: int | None) -> Iterator[Waveform]:
    """The blocks' first `max_samples` samples (None: all), in blocks."""
    for block in blocks:
        yield block[:max_samples]
        if max_samples is not None:
            max_samples -= len(block)
            if max_samples <= 0:
                return


def windows(
    blocks: Iterable[Waveform], sampling_rate: int, window_seconds: float, hop_seconds: float
) -> Iterator[tuple[int, Waveform]]:
    """(first sample, float32 [samples]) of each window of the blocks' concatenation.

    Window k begins at k times the hop, and all are equally long: a last one that the recording ends within is
    moved back to end with it. A recording shorter than a window is one window, as long as it is.
    Raises BadAudio where there is no sample.
    """
    length = round(window_seconds * sampling_rate)
    held, held_start = np.zeros(0, np.float32), 0
    number = last_end = 0
    for block in blocks:
        held = np.concatenate([held, block])
        end = held_start + len(held)
        while (start := round(number * hop_seconds * sampling_rate)) + length <= end:
            yield start, held[start - held_start :][:length]
            last_end = start + length
            number += 1
        # The next window's samples stay, and those of one that may have to be moved back.
        to_come = max(held_start, min(start, end - length))
        held, held_start = held[to_come - held_start :], to_come
    end = held_start + len(held)
    if end == 0:
        raise BadAudio("holds no audio")
    if last_end < end and start < end:
        yield max(0, end - length), held[-length:]
