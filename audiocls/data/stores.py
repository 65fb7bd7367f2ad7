"""A store returns the values of one clip, given the clip's place in it: `store(place)`.

A place says all that is needed about its clip. So a process that prepares batches needs no list of all clips:
what it is given is as small for a million clips as for ten.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from audiocls.data.audio import DecodeOptions
from audiocls.data.clips import Span
from audiocls.data.decoding import decode_part
from audiocls.data.limits import BadAudio
from audiocls.data.resampling import Waveform

Store = Callable[[Any], np.ndarray]


@dataclass
class MappedFile:
    """A store of arrays, end to end in a file. A place is where an array begins and where it ends."""

    path: Path
    dtype: type
    shape: tuple[int, ...]  # of all arrays together

    def __call__(self, place: tuple[int, int]) -> np.ndarray:
        return self.values[slice(*place)]

    @cached_property
    def values(self) -> np.ndarray:
        if 0 in self.shape:  # an empty file cannot be mapped
            return np.zeros(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", shape=self.shape).view(np.ndarray)

    def __getstate__(self) -> dict:
        """Workers map the file themselves; a pickled map would carry its content."""
        return {key: value for key, value in self.__dict__.items() if key != "values"}


def decode_place(place: tuple[bytes | Path, Span | None] | BadAudio, options: DecodeOptions) -> Waveform:
    """The waveform of a clip that is decoded each time. Raises BadAudio.

    A place is an encoded file, or its path, and which part of the recording the clip is; None: the whole. Of
    a recording that could not be read it is the error to raise.
    """
    if isinstance(place, BadAudio):
        raise place
    return decode_part(*place, options).waveform


def take_place(place: np.ndarray) -> np.ndarray:
    """The store where each clip's values are themselves its place: they are sent to the worker."""
    return place
