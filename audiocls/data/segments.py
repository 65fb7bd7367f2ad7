"""Many clips out of one recording, which is read once, from its beginning, a bounded part at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from audiocls.data.audio import (
    MAX_CLAIMED_SECONDS,
    Decoded,
    Levels,
    chosen,
    mono,
    raw_blocks,
    trimmed,
)
from audiocls.data.clips import Span
from audiocls.data.decoders import Reader, open_audio
from audiocls.data.limits import BadAudio, TooLong
from audiocls.data.resampling import Waveform, frames_needed, resample_blocks

FURTHEST_SECONDS = 86_400  # of a recording that are decoded to come to a segment's beginning: a day
LARGE_START = 1_000  # a whole number of "seconds" from here on may count milliseconds or samples


@dataclass(eq=False)
class Part:
    """A segment while its recording is read."""

    span: Span
    first: int  # its first frame
    num_frames: float  # of it, by its span; math.inf where it goes on to the recording's end
    wanted: float  # of its frames, those that are used: as many, or fewer where only its beginning is
    num_read: int = 0  # of those
    levels: Levels = field(default_factory=Levels)
    blocks: list[Waveform] = field(default_factory=list)  # in mono, at the recording's own rate

    @property
    def last(self) -> float:
        """The frame after the last one that is used."""
        return self.first + self.wanted


def cut(
    read: Callable[[], bytes | Path],
    spans: Iterable[Span],
    sampling_rate: int,
    max_samples: int | None,
    max_decode_seconds: float,
    channel: str = "mean",
    trim_silence: bool = False,
) -> Iterator[tuple[Span, Decoded | BadAudio]]:
    """Each span of a recording as `decode` gives a file of its frames alone, or why there is none.

    Those are the frames round(start * rate) to round(end * rate) at the file's own rate. Limits, lengths and
    levels are those of the segment. Equal spans come once. Each comes as soon as it is read, a short one that
    begins later before a long one. Held in memory are the segments that are not finished; of those that
    overlap, what they have in common once.
    """
    left = set(spans)
    try:
        with open_audio(read(), sampling_rate) as file:
            most = None if trim_silence else max_samples
            for span, result in parts_of(file, left, sampling_rate, most, max_decode_seconds, channel):
                left.remove(span)
                if trim_silence and isinstance(result, Decoded):
                    result = trimmed(result, sampling_rate, max_samples)
                yield span, result
    except BadAudio as error:
        for span in sorted(left, key=lambda one: one.start):
            yield span, error


def parts_of(
    file: Reader,
    spans: Iterable[Span],
    sampling_rate: int,
    max_samples: int | None,
    max_decode_seconds: float,
    channel: str,
) -> Iterator[tuple[Span, Decoded | BadAudio]]:
    rate, most = file.rate, max_decode_seconds * file.rate
    used = frames_needed(max_samples, rate, sampling_rate)
    parts = []
    for span in spans:
        first = round(span.start * rate)
        num_frames = float("inf") if span.end is None else round(span.end * rate) - first
        parts.append(Part(span, first, num_frames, min(num_frames, used)))
    to_come = deque(sorted(parts, key=lambda part: (part.first, part.last)))
    furthest = FURTHEST_SECONDS * rate
    # Read up to here, unless the file ends before.
    last = max((min(part.last, furthest) if part.first > furthest else part.last) for part in parts)

    begun: list[Part] = []
    at = 0  # the block's first frame
    for block in (chosen(read, channel) for read in raw_blocks(file, last)):
        end = at + len(block)
        while to_come and to_come[0].first < end:
            begun.append(to_come.popleft())
        mean = channels_mean(block) if begun else block
        going_on = []
        for part in begun:
            begin, stop = max(part.first - at, 0), int(min(part.last - at, len(block)))
            try:
                if begin < stop:
                    part.blocks.append(mono(block[begin:stop], part.levels, mean[begin:stop]))
                    part.num_read += stop - begin
                if part.num_read > most:
                    raise TooLong(max_decode_seconds)
            except BadAudio as error:
                yield part.span, error
                continue
            if part.last <= end:
                yield part.span, finished(part, file, sampling_rate, max_samples)
            else:
                going_on.append(part)
        begun, at = going_on, end
    for part in begun:  # which the recording ends within
        yield part.span, finished(part, file, sampling_rate, max_samples)
    for part in to_come:
        yield part.span, begins_too_late(part, at, rate)


def channels_mean(block: np.ndarray) -> Waveform:
    """The channels' mean, as `mono` takes it, but unchecked; parts that overlap share it."""
    if block.shape[1] == 1:
        return block.reshape(-1)
    with np.errstate(invalid="ignore", over="ignore"):
        return block.mean(axis=1)


def finished(part: Part, file: Reader, sampling_rate: int, max_samples: int | None) -> Decoded | BadAudio:
    """The segment of what was read of it."""
    if not part.num_read:
        return BadAudio("holds no audio")
    rate = file.rate
    # concatenate copies: a short segment must not keep the block alive that it is a part of.
    waveform = np.concatenate(list(resample_blocks(part.blocks, rate, sampling_rate)))
    part.blocks.clear()
    claimed = part.num_frames  # by the span, as far as the file's header says that it goes
    if 0 < file.claimed <= MAX_CLAIMED_SECONDS * rate:
        claimed = min(claimed, file.claimed - part.first)
    goes_on = part.num_read == part.wanted and claimed > part.num_read
    num_frames = claimed if goes_on and claimed <= MAX_CLAIMED_SECONDS * rate else part.num_read
    return Decoded(
        waveform[:max_samples],
        num_frames / rate,
        rate,
        file.channels,
        part.levels,
        goes_on,
        tuple(file.notes),
    )


def begins_too_late(part: Part, num_frames: int, rate: int) -> BadAudio:
    """Why there is nothing of a segment of a recording of which `num_frames` could be read."""
    start, end = part.span.start, num_frames / rate
    hint = ""
    if start >= LARGE_START and start == round(start):
        hint = " (segments are in seconds: are these milliseconds, or numbers of samples?)"
    if end >= FURTHEST_SECONDS:
        return BadAudio(f"begins at {start:.9g} s, and no more than {FURTHEST_SECONDS:,} s are decoded{hint}")
    where = "at" if part.first == num_frames else "after"
    return BadAudio(f"begins at {start:.9g} s, {where} its end at {round(end, 3):.9g} s{hint}")
