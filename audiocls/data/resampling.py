"""A waveform at one rate -> the same at another, whole or in pieces; torchaudio resamples."""

import functools
import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from audiocls.torchaudio_guard import import_torchaudio

Waveform = np.ndarray  # float32 [samples]

PIECE_SAMPLES = 2**18  # resampled at a time


def resample(waveform: Waveform, from_rate: int, to_rate: int) -> Waveform:
    """`torchaudio.functional.resample` of one waveform, its kernel built once a pair of rates."""
    if from_rate == to_rate:
        return waveform
    with torch.inference_mode():
        return resampler(from_rate, to_rate)(torch.from_numpy(waveform)).numpy()


def resample_blocks(blocks: Iterable[Waveform], from_rate: int, to_rate: int) -> Iterator[Waveform]:
    """Pieces of what `resample` would make of all the blocks together, at bounded memory.

    A piece is resampled with so much before and after it as the filter reaches, in whole periods of the two
    rates, and its own part is kept.
    """
    if from_rate == to_rate:
        yield from blocks
        return
    divisor = math.gcd(from_rate, to_rate)
    period, new_period = from_rate // divisor, to_rate // divisor
    margin = math.ceil(filter_half_width(from_rate, to_rate) / period)  # in periods, as the next two
    piece = max(1, PIECE_SAMPLES // period)
    before = 0
    rest = np.zeros(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, block])
        while len(rest) >= (before + piece + margin) * period:
            new = resample(rest[: (before + piece + margin) * period], from_rate, to_rate)
            yield new[before * new_period : (before + piece) * new_period].copy()
            rest = rest[(before + piece - margin) * period :]
            before = margin
    if len(rest):
        yield resample(rest, from_rate, to_rate)[before * new_period :]


@functools.lru_cache(maxsize=32)
def resampler(from_rate: int, to_rate: int) -> torch.nn.Module:
    torchaudio = import_torchaudio()
    # dtype: as functional.resample builds it, so that scores agree with the Hugging Face pipeline's.
    return torchaudio.transforms.Resample(from_rate, to_rate, dtype=torch.float32)


def filter_half_width(from_rate: int, to_rate: int) -> int:
    """Samples at `from_rate` (in lowest terms) to each side that one resampled value depends on."""
    divisor = math.gcd(from_rate, to_rate)
    before, after = from_rate // divisor, to_rate // divisor
    return math.ceil(6 * before / (min(before, after) * 0.99))  # torchaudio's filter width and roll-off


def frames_needed(samples: int | None, from_rate: int, to_rate: int) -> float:
    """Frames at `from_rate` that decide the first `samples` samples at `to_rate`; None: all, without end."""
    if samples is None:
        return math.inf
    if from_rate == to_rate:
        return samples
    period = from_rate // math.gcd(from_rate, to_rate)
    return math.ceil(samples * from_rate / to_rate) + filter_half_width(from_rate, to_rate) + period
