"""A labelled recording, and where its bytes lie: nothing is read before it is decoded."""

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Audio(Protocol):
    """Where the bytes of a recording lie. A new kind of source needs a class with these three methods."""

    def read(self) -> bytes | Path:
        """The encoded file's bytes, or the file's path. Raises audio.BadAudio where it cannot be had."""

    def identity(self) -> list:
        """Names the content for the cache, as JSON: it changes when the content may have changed."""

    def same_file_key(self) -> Hashable:
        """Equal for two recordings that are one file, by whatever path."""


@dataclass(frozen=True)
class FileAudio:
    """A recording in a file of its own."""

    path: Path

    def read(self) -> bytes | Path:
        return self.path

    def identity(self) -> list:
        """Path, size, time of the last change and inode."""
        return [str(self.path), *self.status("st_size", "st_mtime_ns", "st_ino")]

    def same_file_key(self) -> Hashable:
        """Device and inode; the path of a file that cannot be looked up."""
        return self.status("st_dev", "st_ino") or str(self.path)

    def status(self, *fields: str) -> tuple[int, ...]:
        """These fields of the file's os.stat; none where it cannot be looked up."""
        try:
            status = self.path.stat()
        except OSError:
            return ()
        return tuple(getattr(status, field) for field in fields)


@dataclass(frozen=True)
class HubAudio:
    """A row of a data set on the Hub."""

    rows: Any  # a datasets.Dataset with the one column "audio", not decoded
    index: int

    def read(self) -> bytes | Path:
        audio = self.rows[self.index]["audio"]
        return audio["bytes"] if audio["bytes"] is not None else Path(audio["path"])

    def identity(self) -> list:
        return [self.rows._fingerprint, self.index]

    def same_file_key(self) -> Hashable:
        return (self.rows._fingerprint, self.index)


@dataclass(frozen=True)
class Clip:
    """One labelled recording."""

    path: str  # as a person would name it
    audio: Audio
    label: str
    group: str | None = None
