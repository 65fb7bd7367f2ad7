"""Labelled recordings, where their bytes lie, and data sets of them: nothing is read before it is decoded."""

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from audiocls.data.limits import NOT_THERE, BadAudio
from audiocls.errors import number_of


class Audio(Protocol):
    """Where the bytes of a recording lie. A new kind of source needs a class with these three methods.

    Segments whose Audio is equal, as a dict's keys are, are cut out of one recording.
    """

    def read(self) -> bytes | Path:
        """The encoded file's bytes, or the file's path. Raises audio.BadAudio where it cannot be had."""

    def identity(self) -> list:
        """Names the content for the cache, as JSON: it changes when the content may have changed."""

    def same_file_key(self) -> Hashable:
        """Equal for two recordings that are one file, by whatever path."""


@dataclass(frozen=True, slots=True)
class FileAudio:
    """A recording in a file of its own."""

    path: str

    def read(self) -> bytes | Path:
        return Path(self.path)

    def identity(self) -> list:
        """Path, size, time of the last change and inode."""
        return [self.path, *self.status("st_size", "st_mtime_ns", "st_ino")]

    def same_file_key(self) -> Hashable:
        """Device and inode; the path of a file that cannot be looked up."""
        return self.status("st_dev", "st_ino") or self.path

    def status(self, *fields: str) -> tuple[int, ...]:
        """These fields of the file's os.stat; none where it cannot be looked up."""
        try:
            status = os.stat(self.path)
        except (OSError, ValueError):  # the latter for a name with a NUL in it
            return ()
        return tuple(getattr(status, field) for field in fields)


@dataclass(frozen=True, slots=True)
class StoredAudio:
    """A row of a datasets.Dataset: from the Hub, a parquet file, a folder of save_to_disk."""

    rows: Any  # a datasets.Dataset with the one column "audio", not decoded
    index: int
    find: Callable[[str], str]  # where the file of a name is, for rows without bytes

    def read(self) -> bytes | Path:
        audio = self.rows[self.index]["audio"] or {}
        if audio.get("bytes") is not None:
            return audio["bytes"]
        if not audio.get("path"):
            raise BadAudio("holds neither audio nor the path of a file")
        try:
            path = self.find(audio["path"])
        except ValueError as error:
            raise BadAudio(str(error)) from None
        if not os.path.exists(path):
            raise BadAudio(f"names {path}, which {NOT_THERE}")
        return Path(path)

    def identity(self) -> list:
        return [self.rows._fingerprint, self.index]

    def same_file_key(self) -> Hashable:
        return (self.rows._fingerprint, self.index)


class Span(NamedTuple):
    """A part of a recording, in seconds."""

    start: float
    end: float | None  # None: the recording's end


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a recording that may hold others: no Audio, as data/segments.py reads them all together."""

    recording: Audio  # one object for all of its segments
    start: float  # seconds
    end: float | None  # None: the recording's end

    @property
    def span(self) -> Span:
        return Span(self.start, self.end)


def each_asked(clips: Iterable["Clip"], ask: Callable[[Audio], Any]) -> Iterator[tuple[Any, Span | None]]:
    """For each clip what its recording answers, and which part of it the clip is; None: the whole.

    A recording that is cut is asked once.
    """
    answers: dict[Audio, Any] = {}
    for clip in clips:
        if not isinstance(clip.audio, Segment):
            yield ask(clip.audio), None
            continue
        recording = clip.audio.recording
        if recording not in answers:
            answers[recording] = ask(recording)
        yield answers[recording], clip.audio.span


def same_file_keys(clips: Iterable["Clip"]) -> list[Hashable]:
    """Equal for clips that are the same part of one file, by whatever path."""
    return [
        key if span is None else (key, span)
        for key, span in each_asked(clips, lambda recording: recording.same_file_key())
    ]


def segment_name(recording: str, span: Span) -> str:
    """`calls/a.wav#t=1.5,3.2`: the recording's name and its part in seconds (W3C's media fragments)."""

    def number(seconds: float) -> str:
        return f"{seconds:.9f}".rstrip("0").rstrip(".")

    return f"{recording}#t={number(span.start)}" + ("" if span.end is None else f",{number(span.end)}")


def recording_of(clip: "Clip") -> Audio:
    """The whole recording that a clip is, or is a part of."""
    return clip.audio.recording if isinstance(clip.audio, Segment) else clip.audio


def span_in(clip: "Clip") -> Span:
    """Which part of its recording a clip is."""
    return clip.audio.span if isinstance(clip.audio, Segment) else Span(0.0, None)


def part_of(clip: "Clip") -> Span | None:
    """Which part of its recording a segment is; None for a clip that is all of it."""
    return clip.audio.span if isinstance(clip.audio, Segment) else None


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled recording, or a part of one."""

    path: str  # as a person would name it: of a part, with its seconds (segment_name)
    audio: Audio | Segment
    label: str
    group: str | None = None


@dataclass(eq=False)
class Source:
    """Everything one --dataset names."""

    name: str
    holds: str = "rows"  # or "files": what is counted
    splits: dict[str, list[Clip]] = field(default_factory=dict)  # by the names they have there
    label_lists: list[list[str]] = field(default_factory=list)  # of its tables, a ClassLabel's names; or []
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)  # why -> the rows or files
    unused: list[str] = field(default_factory=list)  # splits with clips that no part of the run is
    commit: str | None = None  # on the Hub, where it comes from there

    def leave_out(self, why: str, what: Sequence[str]) -> None:
        if what:
            self.left_out.setdefault(why, []).extend(what)

    def use(self, *splits: str | None) -> None:
        """Say which splits are used; the others are accounted for as unused."""
        self.unused = [split for split, clips in self.splits.items() if clips and split not in splits]

    def account(self, used: dict[str, int], unusable: Sequence[str] = ()) -> str:
        """Where every row or file went, in a line: how many clips are `used` as what, and why others are not.

        `unusable` names the clips that do not decode.
        """
        left_out = self.left_out | {"that cannot be used": list(unusable)}
        for split in self.unused:
            left_out[f"of the split {split!r}, not used"] = [clip.path for clip in self.splits[split]]
        total = sum(map(len, self.splits.values())) + sum(map(len, self.left_out.values()))
        return account(self.name, number_of(total, self.holds.removesuffix("s")), used, left_out)

    @property
    def has_segments(self) -> bool:
        """Whether any clip is a part of a recording."""
        return any(isinstance(clip.audio, Segment) for clips in self.splits.values() for clip in clips)

    @property
    def label_names(self) -> list[str]:
        """The names of a ClassLabel, in their order, if all tables have that one; else none."""
        alike = self.label_lists and all(names == self.label_lists[0] for names in self.label_lists)
        return self.label_lists[0] if alike else []

    def add(self, split: str, clips: Iterable[Clip]) -> None:
        """Add clips of a split, which is also one whose name is spelled in other letters."""
        alike = [name for name in self.splits if name.strip().casefold() == split.strip().casefold()]
        if alike and alike[0] != split:
            self.note([f"{self.name}: the splits {alike[0]!r} and {split!r} are one"])
        self.splits.setdefault(alike[0] if alike else split, []).extend(clips)

    def note(self, lines: Iterable[str]) -> None:
        self.notes += [line for line in lines if line not in self.notes]


def account(name: str, total: str, used: Mapping[str, int], left_out: Mapping[str, Sequence[str]]) -> str:
    """`sounds: 12 files: train 8 clips, test 2 clips; left out: 2 not audio, such as a.txt`"""
    clips = ", ".join(f"{what} {number_of(count, 'clip')}".strip() for what, count in used.items())
    others = "; ".join(counted(left_out))
    return f"{name}: {total}: {clips}{f'; left out: {others}' if others else ''}"


def counted(reasons: Mapping[str, Sequence[str]]) -> list[str]:
    """For each reason how many there are and the first of them, most first."""
    most_first = sorted(reasons.items(), key=lambda reason: -len(reason[1]))
    return [f"{len(names)} {why}, such as {names[0]}" for why, names in most_first if names]
