"""Clips -> their waveforms and what is measured of them, by threads; a recording that is cut is read once."""

import itertools
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from audiocls.data.audio import Decoded, DecodeOptions, decode
from audiocls.data.clips import Audio, Clip, Segment, Span, part_of, recording_of, span_in
from audiocls.data.limits import BadAudio
from audiocls.data.measures import Measured, measure
from audiocls.data.resampling import Waveform
from audiocls.data.segments import cut
from audiocls.devices import available_cores

CHUNK = 16  # clips decoded before the next write, and threads at most: bounds the memory
CHUNK_SAMPLES = 2**20  # of a recording's segments decoded before the next write: 4 MB, a minute
THREAD_SECONDS = 0.004  # a clip that takes less: threads would wait for Python's lock more than they gain


Kept = tuple[Waveform, float, Measured]  # a clip's waveform, whole length in seconds, measures
Results = list[tuple[int, Kept | BadAudio]]  # each with its clip's number


def decode_clip(clip: Clip, options: DecodeOptions) -> Decoded:
    """A clip; for a segment its recording is read from the beginning. Raises BadAudio."""
    return decode_part(recording_of(clip).read(), part_of(clip), options)


def decode_part(recording: bytes | Path, span: Span | None, options: DecodeOptions) -> Decoded:
    """The part of an encoded recording, or of the file that it is; None: the whole. Raises BadAudio."""
    if span is None:
        return decode(recording, *options)
    ((_, result),) = cut(lambda: recording, [span], *options)
    if isinstance(result, BadAudio):
        raise result
    return result


def decoded(clips: Sequence[Clip], options: DecodeOptions) -> Iterator[tuple[int, Kept | BadAudio]]:
    """Each clip's number, and what is kept of it, or why it cannot be used.

    First those whose recordings are not cut, in order; then the others, by recording.
    """
    whole, members_of = by_recording(clips)
    num_threads = torch.get_num_threads()
    # One thread each: a clip's resampling is far too small to share, and sharing it costs 80 times as much.
    torch.set_num_threads(1)
    num_workers = min(available_cores(), CHUNK)
    with ThreadPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield from each_alone(clips, whole, options, pool)
            cuts = (cut_clips(recording, clips, some, options) for recording, some in members_of.items())
            yield from side_by_side(cuts, num_workers, pool)
        finally:
            torch.set_num_threads(num_threads)


def by_recording(clips: Sequence[Clip]) -> tuple[Sequence[int], dict[Audio, list[int]]]:
    """The numbers of the clips whose recordings are not cut, and those of each recording that is."""
    are_cut = {recording_of(clip) for clip in clips if isinstance(clip.audio, Segment)}
    if not are_cut:
        return range(len(clips)), {}
    whole: list[int] = []
    members_of: dict[Audio, list[int]] = {}
    for index, clip in enumerate(clips):
        recording = recording_of(clip)
        members = members_of.setdefault(recording, []) if recording in are_cut else whole
        members.append(index)
    return whole, members_of


def each_alone(
    clips: Sequence[Clip], indices: Sequence[int], options: DecodeOptions, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, Kept | BadAudio]]:
    """The clips in order, decoded by threads, unless the first ones show that it is too little for them."""

    def one(index: int) -> tuple[int, Kept | BadAudio]:
        try:
            return index, kept(decode_clip(clips[index], options), options)
        except BadAudio as error:
            return index, error

    times = [time.perf_counter()]
    for index in indices[:CHUNK]:
        yield one(index)
        times.append(time.perf_counter())
    is_worth_threads = len(times) > 1 and np.median(np.diff(times)) > THREAD_SECONDS
    run = pool.map if is_worth_threads else map
    for start in range(CHUNK, len(indices), CHUNK):
        yield from run(one, indices[start : start + CHUNK])


def cut_clips(
    recording: Audio, clips: Sequence[Clip], members: list[int], options: DecodeOptions
) -> Iterator[Results]:
    """The clips of a recording, which is read once, in lists of no more than CHUNK_SAMPLES and a clip."""
    clips_of: dict[Span, list[int]] = defaultdict(list)
    for index in members:
        clips_of[span_in(clips[index])].append(index)
    held: Results = []
    num_samples = 0
    for span, result in cut(recording.read, clips_of, *options):
        to_keep = result if isinstance(result, BadAudio) else kept(result, options)
        held += [(index, to_keep) for index in clips_of[span]]
        num_samples += 0 if isinstance(result, BadAudio) else len(result.waveform)
        if num_samples >= CHUNK_SAMPLES:
            yield held
            held, num_samples = [], 0
    yield held


def side_by_side(
    recordings: Iterator[Iterator[Results]], num_workers: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, Kept | BadAudio]]:
    """What comes of recordings, of which each thread reads one: in turns, a list of each."""
    reading: list[Iterator[Results]] = []
    while reading := [*reading, *itertools.islice(recordings, num_workers - len(reading))]:
        lists = list(pool.map(lambda results: next(results, None), reading))
        yield from itertools.chain.from_iterable(results or () for results in lists)
        reading = [one for one, results in zip(reading, lists, strict=True) if results is not None]


def kept(result: Decoded, options: DecodeOptions) -> Kept:
    return result.waveform, result.seconds, measure(result, options.sampling_rate)
