"""Every clip decoded and resampled once, into one flat memory-mapped file of float32 samples.

A cache folder is named by what it was made from (each clip's identity: path, size, mtime and inode of a
file, or the Hub data set's fingerprint and row) and by the parameters. A changed file gives another name, so
nothing stale is served; an unchanged set is not read again. It is written beside its place and renamed:
complete or absent, also when two processes fill it at once.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm import tqdm

from audiocls.data.audio import MAX_DECODE_SECONDS, BadAudio, Decoded, UnreadableAudio, decode
from audiocls.data.clips import Clip
from audiocls.data.measures import Measured, measure
from audiocls.data.resampling import Waveform
from audiocls.devices import available_cores
from audiocls.storage import READ_ERRORS, unfinished_folder

FORMAT = 5  # raised when what is stored changes its meaning
CHUNK = 16  # clips decoded before the next write, and threads at most: bounds the memory
THREAD_SECONDS = 0.004  # a clip that takes less: threads would wait for Python's lock more than they gain


def cache_folder(cache_dir: str | None) -> Path:
    """The folder named, or audiocls/ in the user's cache folder."""
    if cache_dir is not None:
        return Path(os.path.expanduser(cache_dir))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "audiocls")


class FlatFile:
    """Arrays of different lengths, end to end in a memory-mapped file: `flat[i]` is a read-only view.

    Each is [length], or [length, *others] where the sizes of the other axes are given.
    """

    def __init__(self, path: Path, lengths: np.ndarray, dtype: type, *others: int) -> None:
        self.path = path
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])  # where each begins, and the last one's end
        self.dtype = dtype
        self.shape = (int(self.offsets[-1]), *others)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def is_whole(self) -> bool:
        """Whether the file is there, and as long as all the arrays."""
        with contextlib.suppress(OSError):
            return self.path.stat().st_size == self.num_bytes
        return False

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def values(self) -> np.ndarray:
        if self.num_bytes == 0:  # which cannot be mapped
            return np.zeros(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", shape=self.shape).view(np.ndarray)

    def __getstate__(self) -> dict:
        """Workers map the file themselves; a pickled map would carry its content."""
        return {key: value for key, value in self.__dict__.items() if key != "values"}


@dataclass
class Waveforms:
    """The decoded clips: `waveforms[i]` is float32 [samples], a view into the cache."""

    clips: list[Clip]
    sampling_rate: int
    max_samples: int | None
    max_decode_seconds: float
    num_samples: np.ndarray  # int64 [clips], samples kept of each; 0 for one that cannot be used
    seconds: np.ndarray  # float64 [clips], length of each whole recording, used or not
    errors: dict[int, str]  # clip -> why it cannot be used
    measured: list[Measured | None]  # for the audit; None for one that cannot be used
    cache: FlatFile | None = None  # None where it cannot be written: clips are then decoded when asked for

    def __getitem__(self, index: int) -> Waveform:
        return self.decode(index).waveform if self.cache is None else self.cache[index]

    def sound_of(self, index: int) -> Hashable:
        """Equal for clips of the same sound and whole length. One that is silent, or unusable, is its own."""
        measured = self.measured[index]
        if measured is None or measured.silent_share == 1:
            return index
        return measured.digest, round(float(self.seconds[index]), 3)

    def decode(self, index: int) -> Decoded:
        """The clip's recording, read anew. Raises BadAudio."""
        audio = self.clips[index].audio.read()
        return decode(audio, self.sampling_rate, self.max_samples, self.max_decode_seconds)


def decode_all(
    clips: list[Clip],
    sampling_rate: int,
    max_samples: int | None,
    cache_dir: Path,
    *,
    max_decode_seconds: float = MAX_DECODE_SECONDS,
) -> Waveforms:
    """Every clip's first `max_samples` at `sampling_rate`, from the cache where it is there."""
    folder = cache_dir / "waveforms" / cache_key(clips, sampling_rate, max_samples, max_decode_seconds)
    num_samples, seconds = np.zeros(len(clips), np.int64), np.zeros(len(clips))
    errors: dict[int, str] = {}
    measured: list[Measured | None] = [None] * len(clips)
    waveforms = Waveforms(
        clips, sampling_rate, max_samples, max_decode_seconds, num_samples, seconds, errors, measured
    )
    with contextlib.suppress(*READ_ERRORS):
        return open_cache(folder, waveforms)

    may_recover = False
    # A stderr of the bar's own: while anything is decoded, descriptor 2 leads nowhere.
    terminal = os.fdopen(os.dup(2), "w") if sys.stderr.isatty() else contextlib.nullcontext(sys.stderr)
    with CacheWriter(folder) as cache, terminal as file:
        bar = tqdm(decoded(waveforms), "decoding", len(clips), disable=None, leave=False, file=file)
        for index, result in enumerate(bar):
            if isinstance(result, BadAudio):
                errors[index] = str(result)
                may_recover |= isinstance(result, UnreadableAudio)
            else:
                waveform, seconds[index], measured[index] = result
                num_samples[index] = len(waveform)
                cache.write(waveform)
        if not may_recover:
            lengths = {"num_samples": num_samples.tolist(), "seconds": seconds.tolist()}
            cache.publish({**lengths, "errors": errors, "measured": measured})
    with contextlib.suppress(*READ_ERRORS):
        return open_cache(folder, waveforms)
    return waveforms


def cache_key(
    clips: list[Clip],
    sampling_rate: int,
    max_samples: int | None,
    max_decode_seconds: float = MAX_DECODE_SECONDS,
) -> str:
    identities = [clip.audio.identity() for clip in clips]
    made_from = json.dumps([FORMAT, sampling_rate, max_samples, max_decode_seconds, identities])
    return hashlib.sha256(made_from.encode()).hexdigest()[:32]


def open_cache(folder: Path, waveforms: Waveforms) -> Waveforms:
    """`waveforms` as a finished cache has them. Raises one of READ_ERRORS where there is no whole one."""
    index = json.loads((folder / CacheWriter.INDEX).read_text())
    num_samples = np.array(index["num_samples"], np.int64)
    cache = FlatFile(folder / CacheWriter.VALUES, num_samples, np.float32)
    if len(num_samples) != len(waveforms.clips) or not cache.is_whole():
        raise ValueError("damaged")
    seconds = np.array(index["seconds"])
    errors = {int(key): error for key, error in index["errors"].items()}
    measured = [one and Measured(*one) for one in index["measured"]]
    return replace(
        waveforms, num_samples=num_samples, seconds=seconds, errors=errors, measured=measured, cache=cache
    )


class CacheWriter:
    """A cache in the making, beside its place, gone when it is not published.

    It is a convenience: where the disk is full or may not be written, it gives up without a word.
    """

    VALUES, INDEX = "values", "index.json"

    unfinished: Path  # where `file` lies
    file: FileIO | None = None  # None: it has given up

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.leave = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):
            shutil.rmtree(self.folder, ignore_errors=True)  # a damaged one
            self.unfinished = self.leave.enter_context(unfinished_folder(self.folder))
            self.file = self.leave.enter_context((self.unfinished / self.VALUES).open("wb", buffering=0))
        return self

    def write(self, values: np.ndarray) -> None:
        with contextlib.suppress(OSError):
            if self.file is None or self.file.write(values.data) == values.nbytes:
                return
        self.file = None  # there is no room, or only for a part

    def publish(self, index: dict[str, Any]) -> None:
        """Rename the cache into its place."""
        if self.file is None:
            return
        with contextlib.suppress(OSError):
            (self.unfinished / self.INDEX).write_text(json.dumps(index))
            self.unfinished.rename(self.folder)  # fails where another process was first: its twin stays

    def __exit__(self, *error: object) -> None:
        self.leave.close()


def decoded(waveforms: Waveforms) -> Iterator[tuple[Waveform, float, Measured] | BadAudio]:
    """For each clip in order its waveform, whole length in seconds and measures, or why there are none.

    Threads do the work, unless the first clips show that it is too little for them.
    """

    def one(index: int) -> tuple[Waveform, float, Measured] | BadAudio:
        try:
            result = waveforms.decode(index)
        except BadAudio as error:
            return error
        return result.waveform, result.seconds, measure(result, waveforms.sampling_rate)

    num_threads = torch.get_num_threads()
    # One thread each: a clip's resampling is far too small to share, and sharing it costs 80 times as much.
    torch.set_num_threads(1)
    num_workers = min(available_cores(), CHUNK)
    with ThreadPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            indices = range(len(waveforms.clips))
            times = [time.perf_counter()]
            for index in indices[:CHUNK]:
                yield one(index)
                times.append(time.perf_counter())
            is_worth_threads = len(times) > 1 and np.median(np.diff(times)) > THREAD_SECONDS
            run = pool.map if is_worth_threads else map
            for start in indices[CHUNK::CHUNK]:
                yield from run(one, indices[start : start + CHUNK])
        finally:
            torch.set_num_threads(num_threads)
