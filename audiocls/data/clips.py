"""A labelled recording, and where its bytes lie: nothing is read before it is decoded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class HubAudio:
    """Where the bytes of one row of a Hub data set lie: nothing is read before it is decoded."""

    rows: Any  # a datasets.Dataset with the one column "audio", not decoded
    index: int

    def read(self) -> bytes | Path:
        audio = self.rows[self.index]["audio"]
        return audio["bytes"] if audio["bytes"] is not None else Path(audio["path"])

    def identity(self) -> list:
        return [self.rows._fingerprint, self.index]

    def content(self) -> tuple:
        """The same for the same row."""
        return (self.rows._fingerprint, self.index)


@dataclass(frozen=True)
class FileAudio:
    """A recording in a file of its own."""

    path: Path

    def read(self) -> bytes | Path:
        return self.path

    def identity(self) -> list:
        """Changes when the file's content may have changed."""
        try:
            status = self.path.stat()
        except OSError:
            return [str(self.path)]
        return [str(self.path), status.st_size, status.st_mtime_ns, status.st_ino]

    def content(self) -> tuple:
        """The same for two paths that lead to one file."""
        try:
            status = self.path.stat()
        except OSError:
            return (str(self.path),)
        return (status.st_dev, status.st_ino)


@dataclass(frozen=True)
class Clip:
    """One labelled recording."""

    path: str  # as a person would name it
    audio: FileAudio | HubAudio
    label: str
    group: str | None = None
