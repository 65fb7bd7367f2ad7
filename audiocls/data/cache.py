"""Every recording decoded and resampled once, into one flat memory-mapped file of float32 samples a clip.

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
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, Self

import numpy as np

from audiocls.data import ffmpeg
from audiocls.data.audio import Decoded, DecodeOptions
from audiocls.data.clips import Clip, each_asked, part_of, recording_of
from audiocls.data.decoding import decode_clip, decoded
from audiocls.data.limits import BadAudio, UnreadableAudio
from audiocls.data.measures import Measured
from audiocls.data.resampling import Waveform
from audiocls.data.stores import MappedFile, Store, decode_place, take_place
from audiocls.errors import number_of
from audiocls.lines import duration
from audiocls.storage import READ_ERRORS, unfinished_folder
from audiocls.streams import progress, say

FORMAT = 6  # raised when what is stored changes its meaning


def cache_folder(cache_dir: str | None) -> Path:
    """The folder named, or audiocls/ in the user's cache folder."""
    if cache_dir is not None:
        return Path(os.path.expanduser(cache_dir))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "audiocls")


class FlatFile:
    """Arrays of different lengths, end to end in a memory-mapped file: `flat[i]` is a read-only view.

    Each is [length], or [length, *others] where the sizes of the other axes are given. Where they lie in
    another order than theirs, `offsets` says where each begins.
    """

    def __init__(
        self, path: Path, lengths: np.ndarray, dtype: type, *others: int, offsets: np.ndarray | None = None
    ) -> None:
        self.path = path
        self.lengths = lengths
        self.offsets = np.cumsum(lengths) - lengths if offsets is None else offsets
        self.store = MappedFile(path, dtype, (int(lengths.sum()), *others))

    @property
    def num_bytes(self) -> int:
        return math.prod(self.store.shape) * np.dtype(self.store.dtype).itemsize

    def is_whole(self) -> bool:
        """Whether the file is there, and as long as all the arrays."""
        with contextlib.suppress(OSError):
            return self.path.stat().st_size == self.num_bytes
        return False

    def __getitem__(self, index: int) -> np.ndarray:
        return self.store(self.place(index))

    def place(self, index: int) -> tuple[int, int]:
        start = int(self.offsets[index])
        return start, start + int(self.lengths[index])


@dataclass(frozen=True)
class InMemory:
    """Arrays in memory, by number."""

    arrays: Mapping[int, np.ndarray] | Sequence[np.ndarray]
    store = staticmethod(take_place)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.arrays[index]

    def place(self, index: int) -> np.ndarray:
        return self.arrays[index]


@dataclass
class Waveforms:
    """The decoded clips: `waveforms[i]` is float32 [samples], a view into the cache."""

    clips: list[Clip]
    options: DecodeOptions
    num_samples: np.ndarray  # int64 [clips], samples kept of each; 0 for one that cannot be used
    seconds: np.ndarray  # float64 [clips], length of each whole recording, used or not
    errors: dict[int, str]  # clip -> why it cannot be used
    measured: list[Measured | None]  # for the audit; None for one that cannot be used
    cache: FlatFile | None = None  # None where it cannot be written: clips are then decoded when asked for

    def __getitem__(self, index: int) -> Waveform:
        return self.decode(index).waveform if self.cache is None else self.cache[index]

    @property
    def store(self) -> Store:
        """`waveforms.store(waveforms.place(index))` is `waveforms[index]`."""
        if self.cache is not None:
            return self.cache.store
        return partial(decode_place, options=self.options)

    def place(self, index: int) -> Any:
        """Where the store has the waveform."""
        if self.cache is not None:
            return self.cache.place(index)
        try:
            return recording_of(self.clips[index]).read(), part_of(self.clips[index])
        except BadAudio as error:  # the store raises it, with the batch that it belongs to
            return error

    def sound_of(self, index: int) -> Hashable:
        """Equal for clips of the same sound and whole length. One that is silent, or unusable, is its own."""
        measured = self.measured[index]
        if measured is None or measured.silent_share == 1:
            return index
        return measured.digest, round(float(self.seconds[index]), 3)

    @property
    def sampling_rate(self) -> int:
        return self.options.sampling_rate

    def decode(self, index: int) -> Decoded:
        """The clip, read anew; for a segment its recording from the beginning. Raises BadAudio."""
        return decode_clip(self.clips[index], self.options)


def decode_all(clips: list[Clip], options: DecodeOptions, cache_dir: Path) -> Waveforms:
    """Every clip, decoded as `options` say, from the cache where it is there."""
    folder = cache_dir / "waveforms" / cache_key(clips, options)
    num_samples, seconds = np.zeros(len(clips), np.int64), np.zeros(len(clips))
    errors: dict[int, str] = {}
    measured: list[Measured | None] = [None] * len(clips)
    waveforms = Waveforms(clips, options, num_samples, seconds, errors, measured)
    with contextlib.suppress(*READ_ERRORS):
        return open_cache(folder, waveforms)

    may_recover, began = False, time.perf_counter()
    # A stderr of the bar's own: while anything is decoded, descriptor 2 leads nowhere.
    terminal = os.fdopen(os.dup(2), "w") if sys.stderr.isatty() else contextlib.nullcontext(sys.stderr)
    offsets = np.zeros(len(clips), np.int64)
    num_written = 0
    with CacheWriter(folder) as cache, terminal as file:
        bar = progress(decoded(clips, options), "decoding", len(clips), file)
        for index, result in bar:
            if isinstance(result, BadAudio):
                errors[index] = str(result)
                may_recover |= isinstance(result, UnreadableAudio)
            else:
                waveform, seconds[index], measured[index] = result
                num_samples[index] = len(waveform)
                offsets[index] = num_written
                num_written += len(waveform)
                cache.write(waveform)
        if not may_recover:
            lengths = {"num_samples": num_samples.tolist(), "seconds": seconds.tolist()}
            where = {"offsets": offsets.tolist()}
            cache.publish({**lengths, **where, "errors": errors, "measured": measured})
    say(f"decoding: {number_of(len(clips), 'clip')} in {duration(time.perf_counter() - began)}")
    with contextlib.suppress(*READ_ERRORS):
        return open_cache(folder, waveforms)
    return waveforms


def cache_key(clips: list[Clip], options: DecodeOptions) -> str:
    """Names what is decoded of these clips; installing FFmpeg may change what that is."""
    asked = each_asked(clips, lambda recording: recording.identity())
    identities = [identity if span is None else [*identity, *span] for identity, span in asked]
    made_from = json.dumps([FORMAT, ffmpeg.version(), options, identities])
    return hashlib.sha256(made_from.encode()).hexdigest()[:32]


def open_cache(folder: Path, waveforms: Waveforms) -> Waveforms:
    """`waveforms` as a finished cache has them. Raises one of READ_ERRORS where there is no whole one."""
    index = json.loads((folder / CacheWriter.INDEX).read_text())
    num_samples = np.array(index["num_samples"], np.int64)
    offsets = np.array(index["offsets"], np.int64)
    cache = FlatFile(folder / CacheWriter.VALUES, num_samples, np.float32, offsets=offsets)
    if not len(num_samples) == len(offsets) == len(waveforms.clips) or not cache.is_whole():
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
