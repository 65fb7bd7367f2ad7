"""Files and folders that are complete or absent."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

from audiocls.errors import InputOutputFailed

MANIFEST = "manifest.json"
# What reading a file of any content may raise.
ODD = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError)


class NotRegular(OSError):
    """A folder, a pipe, a device: no file with a beginning and an end."""


def open_regular(path: Path) -> BufferedReader:
    """A regular file, open to be read; there is no moment between check and open. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not block
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


@contextlib.contextmanager
def complete_file(path: Path) -> Iterator[TextIO]:
    """Write a text file so that a reader finds the old content or the new, never a part.

    What is no regular file (a device, a pipe) is written to as it is. Raises InputOutputFailed.
    """
    with failing_as(path):
        if os.path.exists(path) and not path.is_file():
            with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                yield file
            return
        with (
            complete_path(path) as unfinished,
            unfinished.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            yield file


@contextlib.contextmanager
def complete_path(path: Path) -> Iterator[Path]:
    """A place beside `path` to write a file at: it becomes `path` when the block ends well, or is gone."""
    path = Path(os.path.realpath(path))  # a link stays one
    unfinished = path.with_name(f".{path.name}.unfinished")
    with failing_as(path):
        try:
            yield unfinished
            fsync(unfinished)
            unfinished.replace(path)
            fsync(path.parent)
        finally:
            unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file, complete or not at all."""
    with complete_file(path) as file:
        file.write(text)


def append_text(path: Path, text: str) -> None:
    """Write a file anew with `text` at its end."""
    with failing_as(path):
        before = path.read_text(encoding="utf-8")
    write_text(path, before + text)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def complete_folder(folder: Path, **about: Any) -> Iterator[Path]:
    """Fill the folder that this yields: it becomes `folder` when it is whole, and not before.

    A manifest of every file's size and sha256, with `about` beside them, is written last. A folder that is
    already there gives way; cut short in between, `finish_swap` puts things right. Raises InputOutputFailed.
    """
    unfinished, old = folder.with_name(f".{folder.name}.unfinished"), folder.with_name(f".{folder.name}.old")
    with failing_as(folder):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
            files = {path.name: describe(path) for path in sorted(unfinished.iterdir())}
            manifest = unfinished / MANIFEST
            manifest.write_text(json.dumps({**about, "files": files}, indent=2))
            for path in [*unfinished.iterdir(), unfinished]:
                fsync(path)
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)
            unfinished.rename(folder)
            fsync(folder.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def finish_swap(folder: Path) -> None:
    """Complete what `complete_folder` left when it was killed in the middle of a swap."""
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not folder.exists():
        with failing_as(folder):
            old.rename(folder)


def remove_unfinished(folder: Path) -> None:
    """Finish or remove what `complete_folder` and `complete_file` were in the middle of in `folder`."""
    for old in folder.glob(".*.old"):
        finish_swap(old.with_name(old.name[1:].removesuffix(".old")))
        shutil.rmtree(old, ignore_errors=True)
    for unfinished in folder.glob(".*.unfinished"):
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Take a folder's name away, then its content: cut short, no half of it is there under that name."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    with contextlib.suppress(OSError):
        folder.rename(unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """Why a folder is not what its manifest says; None where it is."""
    try:
        files = read_manifest(folder)["files"]
        for name, expected in files.items():
            if Path(name).name != name:
                return f"its manifest names a file outside: {name}"
            if describe(folder / name) != expected:
                return f"{name} is not as it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except ODD as error:
        return f"it cannot be read: {error}"
    return None


def manifest_of(folder: Path) -> dict[str, Any]:
    """A folder's manifest; empty where it has none."""
    try:
        return read_manifest(folder)
    except (OSError, ValueError, RecursionError):
        return {}


def read_manifest(folder: Path) -> dict[str, Any]:
    with open_regular(folder / MANIFEST) as file:
        manifest = json.load(file)
    if not isinstance(manifest, dict):
        raise ValueError(f"{MANIFEST} holds no JSON object")
    return manifest


def describe(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        return {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def fsync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def failing_as(path: Path) -> Iterator[None]:
    """An operating system's error as one line that names what could not be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter: of a file that safetensors writes
        why = getattr(error, "strerror", None) or error
        raise InputOutputFailed(f"{path} could not be written: {why}.") from error
