"""Labelled recordings, where their bytes lie, and data sets of them: nothing is read before it is decoded."""

import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from audiocls.data.audio import BadAudio


class Audio(Protocol):
    """Where the bytes of a recording lie. A new kind of source needs a class with these three methods."""

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
    folder: Path | None  # from which the path of a row without bytes starts

    def read(self) -> bytes | Path:
        audio = self.rows[self.index]["audio"] or {}
        if audio.get("bytes") is not None:
            return audio["bytes"]
        if not audio.get("path"):
            raise BadAudio("holds neither audio nor the path of a file")
        return Path(self.folder or ".", audio["path"])

    def identity(self) -> list:
        return [self.rows._fingerprint, self.index]

    def same_file_key(self) -> Hashable:
        return (self.rows._fingerprint, self.index)


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled recording."""

    path: str  # as a person would name it
    audio: Audio
    label: str
    group: str | None = None


@dataclass
class Source:
    """Everything one --dataset names."""

    name: str
    holds: str = "rows"  # or "files": what is counted
    splits: dict[str, list[Clip]] = field(default_factory=dict)  # by the names they have there
    label_names: list[str] | None = None  # a ClassLabel's, in their order
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)  # why -> the rows or files
    unused: list[str] = field(default_factory=list)  # splits with clips that no part of the run is
    commit: str | None = None  # on the Hub, where it comes from there

    def leave_out(self, why: str, what: Sequence[str]) -> None:
        if what:
            self.left_out.setdefault(why, []).extend(what)

    def use(self, *splits: str | None) -> None:
        """Note the splits that are not among these."""
        for split, clips in self.splits.items():
            if clips and split not in splits:
                self.unused.append(split)
                self.note([f"{self.name}: the split {split!r} is not used ({len(clips)} clips)"])

    def account(self, used: dict[str, int], unusable: Sequence[str] = ()) -> str:
        """Where every row or file went, in a line: how many clips are `used` as what, and why others are not.

        `unusable` names the clips that do not decode.
        """
        others = {
            f"of the split {split!r}": [clip.path for clip in self.splits[split]] for split in self.unused
        }
        left_out = self.left_out | others | {"that cannot be used": list(unusable)}
        total = sum(map(len, self.splits.values())) + sum(map(len, self.left_out.values()))
        return account(self.name, f"{total} {self.holds}", used, left_out)

    def note(self, lines: Iterable[str]) -> None:
        self.notes += [line for line in lines if line not in self.notes]


def account(name: str, total: str, used: Mapping[str, int], left_out: Mapping[str, Sequence[str]]) -> str:
    """`sounds: 12 files: train 8 clips, test 2 clips; left out: 2 not audio, as a.txt`"""
    clips = ", ".join(f"{what} {count} clips".strip() for what, count in used.items())
    others = "; ".join(counted(left_out))
    return f"{name}: {total}: {clips}{f'; left out: {others}' if others else ''}"


def counted(reasons: Mapping[str, Sequence[str]]) -> list[str]:
    """For each reason how many there are and the first of them, most first."""
    most_first = sorted(reasons.items(), key=lambda reason: -len(reason[1]))
    return [f"{len(names)} {why}, as {names[0]}" for why, names in most_first if names]
