"""Every clip decoded and resampled once, into one flat memory-mapped file of float32 samples.

A cache folder is named by what it was made from (each clip's identity: path, size, mtime and inode of a
file, or the Hub data set's fingerprint and row) and by the parameters. A changed file gives another name, so
nothing stale is served; an unchanged set is not read again. It is written beside its place and renamed:
complete or absent, also when two processes fill it at once.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm import tqdm

from audiocls.data.audio import MAX_DECODE_SECONDS, BadAudio, UnreadableAudio, decode
from audiocls.data.clips import Clip
from audiocls.data.measure import Measured, measure
from audiocls.data.resampling import Waveform
from audiocls.leftovers import unfinished_folder
from audiocls.storage import ODD

FORMAT = 4  # raised when what is stored changes its meaning
CHUNK = 16  # clips decoded before the next write, and threads at most: bounds the memory
THREAD_SECONDS = 0.004  # a clip that takes less: threads would wait for Python's lock more than they gain


def cache_folder(cache_dir: str | None) -> Path:
    """The folder named, or audiocls/ in the user's cache folder."""
    if cache_dir is not None:
        return Path(os.path.expanduser(cache_dir))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "audiocls")


class FlatFile:
    """Arrays of different lengths, end to end in a memory-mapped file: `flat[i]` is a read-only view."""

    def __init__(self, path: Path, lengths: np.ndarray, dtype: type, width: int = 1) -> None:
        self.path = path
        self.ends = np.cumsum(lengths) * width
        self.starts = self.ends - lengths * width
        self.dtype = dtype

    @property
    def num_bytes(self) -> int:
        return int(self.ends[-1]) * np.dtype(self.dtype).itemsize if len(self.ends) else 0

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.starts[index] : self.ends[index]]

    @cached_property
    def values(self) -> np.ndarray:
        if len(self.ends) == 0 or self.ends[-1] == 0:
            return np.zeros(0, self.dtype)
        return np.memmap(self.path, self.dtype, mode="r").view(np.ndarray)

    def __getstate__(self) -> dict:
        """Workers map the file themselves; a pickled map would carry its content."""
        return {key: value for key, value in self.__dict__.items() if key != "values"}


@dataclass
class Waveforms:
    """The decoded clips: `waveforms[i]` is float32 [samples], a view into the cache."""

    clips: list[Clip]
    sampling_rate: int
    max_samples: int | None
    num_samples: np.ndarray  # int64 [clips], samples kept of each; 0 for one that cannot be used
    seconds: np.ndarray  # float64 [clips], length of each whole recording, heard or not
    errors: dict[int, str]  # clip -> why it cannot be used
    measured: list[Measured | None]  # for the audit; None for one that cannot be used
    cache: FlatFile | None  # None where it could not be written: clips are then decoded when asked for
    max_decode_seconds: float = MAX_DECODE_SECONDS

    def __getitem__(self, index: int) -> Waveform:
        if self.cache is None:
            audio = self.clips[index].audio.read()
            return decode(audio, self.sampling_rate, self.max_samples, self.max_decode_seconds).waveform
        return self.cache[index]


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
    with contextlib.suppress(*ODD):
        return open_cache(folder, clips, sampling_rate, max_samples)

    num_samples, seconds = np.zeros(len(clips), np.int64), np.zeros(len(clips))
    errors = {}
    measured: list[Measured | None] = [None] * len(clips)
    may_recover = False
    results = decoded(clips, sampling_rate, max_samples, max_decode_seconds)
    # A stderr of the bar's own: while anything is decoded, descriptor 2 leads nowhere.
    terminal = os.fdopen(os.dup(2), "w") if sys.stderr.isatty() else contextlib.nullcontext(sys.stderr)
    with CacheWriter(folder) as cache, terminal as file:
        bar = tqdm(results, "decoding", len(clips), disable=None, leave=False, file=file)
        for index, result in enumerate(bar):
            if isinstance(result, BadAudio):
                errors[index] = str(result)
                may_recover |= isinstance(result, UnreadableAudio)
            else:
                waveform, seconds[index], measured[index] = result
                num_samples[index] = len(waveform)
                cache.write(waveform)
        if not may_recover:
            measures = [one and dataclasses.astuple(one) for one in measured]
            lengths = {"num_samples": num_samples.tolist(), "seconds": seconds.tolist()}
            cache.publish({**lengths, "errors": errors, "measured": measures})
    with contextlib.suppress(*ODD):
        return open_cache(folder, clips, sampling_rate, max_samples)
    return Waveforms(
        clips, sampling_rate, max_samples, num_samples, seconds, errors, measured, None, max_decode_seconds
    )


def cache_key(
    clips: list[Clip],
    sampling_rate: int,
    max_samples: int | None,
    max_decode_seconds: float = MAX_DECODE_SECONDS,
) -> str:
    identities = [clip.audio.identity() for clip in clips]
    made_from = json.dumps([FORMAT, sampling_rate, max_samples, max_decode_seconds, identities])
    return hashlib.sha256(made_from.encode()).hexdigest()[:32]


def open_cache(folder: Path, clips: list[Clip], sampling_rate: int, max_samples: int | None) -> Waveforms:
    """A finished cache. Raises one of ODD where there is none, or not a whole one."""
    index = json.loads((folder / CacheWriter.INDEX).read_text())
    num_samples = np.array(index["num_samples"], np.int64)
    file = folder / CacheWriter.VALUES
    if len(num_samples) != len(clips) or file.stat().st_size != 4 * num_samples.sum():
        raise ValueError("damaged")
    errors = {int(key): error for key, error in index["errors"].items()}
    measured = [one and Measured(*one) for one in index["measured"]]
    cache = FlatFile(file, num_samples, np.float32)
    seconds = np.array(index["seconds"])
    return Waveforms(clips, sampling_rate, max_samples, num_samples, seconds, errors, measured, cache)


class CacheWriter:
    """A cache in the making, beside its place, gone when it is not published.

    It is a convenience: where the disk is full or may not be written, it gives up without a word.
    """

    VALUES, INDEX = "values", "index.json"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.leave = contextlib.ExitStack()
        self.unfinished: Path | None = None
        self.file: FileIO | None = None

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):
            shutil.rmtree(self.folder, ignore_errors=True)  # a damaged one
            self.unfinished = self.leave.enter_context(unfinished_folder(self.folder))
            self.file = (self.unfinished / self.VALUES).open("wb", buffering=0)
        return self

    def write(self, values: np.ndarray) -> None:
        if self.file is None:
            return
        try:
            complete = self.file.write(values.data) == values.nbytes
        except OSError:
            complete = False
        if not complete:
            self.close()

    def publish(self, index: dict[str, Any]) -> None:
        """Rename the cache into its place."""
        if self.file is None or self.unfinished is None:
            return
        with contextlib.suppress(OSError):
            (self.unfinished / self.INDEX).write_text(json.dumps(index))
            self.unfinished.rename(self.folder)  # fails where another process was first: its twin stays

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def __exit__(self, *error: object) -> None:
        self.close()
        self.leave.close()


def decoded(
    clips: list[Clip], sampling_rate: int, max_samples: int | None, max_decode_seconds: float
) -> Iterator[tuple[Waveform, float, Measured] | BadAudio]:
    """For each clip in order its waveform, whole length in seconds and measures, or why there are none.

    Threads do the work, unless the first clips show that it is too little for them.
    """

    def one(clip: Clip) -> tuple[Waveform, float, Measured] | BadAudio:
        try:
            heard = decode(clip.audio.read(), sampling_rate, max_samples, max_decode_seconds)
        except BadAudio as error:
            return error
        measured = measure(heard.waveform, sampling_rate, heard.rate, heard.channels)
        return heard.waveform, heard.seconds, measured

    num_threads = torch.get_num_threads()
    # One thread each: a clip's resampling is far too small to share, and sharing it costs 80 times as much.
    torch.set_num_threads(1)
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    num_workers = min(num_cores or 1, CHUNK)
    with ThreadPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            times = [time.perf_counter()]
            for clip in clips[:CHUNK]:
                yield one(clip)
                times.append(time.perf_counter())
            is_worth_threads = len(times) > 1 and np.median(np.diff(times)) > THREAD_SECONDS
            run = pool.map if is_worth_threads else map
            for start in range(CHUNK, len(clips), CHUNK):
                yield from run(one, clips[start : start + CHUNK])
        finally:
            torch.set_num_threads(num_threads)
