"""Long recordings in bounded memory: cut into windows as they are read."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from audiocls.data.audio import BadAudio
from audiocls.data.resampling import Waveform


def first(blocks: Iterable[Waveform], max_samples: int | None) -> Iterator[Waveform]:
    """The blocks' first `max_samples` samples (None: all), in blocks."""
    remaining = math.inf if max_samples is None else max_samples
    for block in blocks:
        yield block if len(block) <= remaining else block[: int(remaining)]
        remaining -= len(block)
        if remaining <= 0:
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
    number = start = last_end = 0
    for block in blocks:
        held = np.concatenate([held, block])
        end = held_start + len(held)
        while start + length <= end:
            yield start, held[start - held_start :][:length]
            last_end = start + length
            number += 1
            start = round(number * hop_seconds * sampling_rate)
        # The next window's samples stay, and those of one that may have to be moved back.
        unheard = max(held_start, min(start, end - length))
        held, held_start = held[unheard - held_start :], unheard
    end = held_start + len(held)
    if end == 0:
        raise BadAudio("holds no audio")
    if number == 0:
        yield 0, held
    elif last_end < end and start < end:
        yield end - length, held[-length:]


class WindowScores:
    """A recording's scores out of its windows', which are not kept."""

    def __init__(self, aggregate: str) -> None:
        self.aggregate = aggregate
        self.clear()

    def clear(self) -> None:
        self.total: Tensor | None = None  # float64 [labels]
        self.num_windows = 0

    def add(self, scores: Tensor) -> None:
        """One window's scores, float32 [labels]."""
        if self.aggregate == "vote" and scores.isfinite().all():
            scores = F.one_hot(scores.argmax(), len(scores))
        scores = scores.double()
        if self.total is None:
            self.total = scores
        elif self.aggregate == "max":
            self.total = torch.maximum(self.total, scores)
        else:
            self.total = self.total + scores
        self.num_windows += 1

    def scores(self) -> Tensor:
        """float64 [labels]."""
        assert self.total is not None, "a recording has one window at least"
        return self.total if self.aggregate == "max" else self.total / self.num_windows
