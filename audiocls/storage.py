"""Files and folders that are complete or absent; what a killed process left is finished or removed."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

from audiocls.errors import InputOutputFailed

CHECKSUMS = "checksums.json"
# What reading a file of any content may raise.
READ_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError)


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
    is_special = os.path.exists(path) and not path.is_file()
    place = contextlib.nullcontext(path) if is_special else complete_path(path)
    with (
        failing_as(path),
        place as to_write,
        to_write.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
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


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def complete_folder(folder: Path, **about: Any) -> Iterator[Path]:
    """Fill the folder that this yields: it becomes `folder` when it is whole, and not before.

    checksums.json, with every file's size and sha256 and `about` beside them, is written last. An existing
    folder is renamed aside first: if we are killed between the two renames, `finish_swap` restores it. Raises
    InputOutputFailed.
    """
    unfinished, old = folder.with_name(f".{folder.name}.unfinished"), folder.with_name(f".{folder.name}.old")
    with failing_as(folder):
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir(parents=True)
            yield unfinished
            files = {path.name: describe(path) for path in sorted(unfinished.iterdir())}
            (unfinished / CHECKSUMS).write_text(json.dumps({**about, "files": files}, indent=2))
            for path in [*unfinished.iterdir(), unfinished]:
                fsync(path)
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)
            unfinished.rename(folder)
            fsync(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:  # a signal may have raised Stopped between any two of these
            shutil.rmtree(unfinished, ignore_errors=True)
            finish_swap(folder)
            shutil.rmtree(old, ignore_errors=True)


def finish_swap(folder: Path) -> None:
    """Give `folder` its name back, where `complete_folder` was killed between its two renames."""
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not folder.exists():
        with failing_as(folder):
            old.rename(folder)


def remove_unfinished(folder: Path) -> None:
    """Finish or remove what a killed `complete_folder` or `complete_file` left in `folder`."""
    for old in folder.glob(".*.old"):
        finish_swap(old.with_name(old.name[1:].removesuffix(".old")))
        shutil.rmtree(old, ignore_errors=True)
    for unfinished in folder.glob(".*.unfinished"):
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder. It is renamed first: if we are killed meanwhile, no half of it has its name."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    with contextlib.suppress(OSError):
        folder.rename(unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)


def damage(folder: Path, *needed: str) -> str | None:
    """Why a folder's files are not those that its checksums.json lists; None where they are.

    The list must hold the names in `needed`.
    """
    try:
        files = read_checksums(folder)["files"]
        for name, expected in files.items():
            if Path(name).name != name:
                return f"its {CHECKSUMS} names a file outside: {name}"
            if describe(folder / name) != expected:
                return f"{name} is not as it was written"
        if lacking := [name for name in needed if name not in files]:
            return f"its {CHECKSUMS} lacks {lacking[0]}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except READ_ERRORS as error:
        return f"it cannot be read: {error}"
    return None


def checksums_of(folder: Path) -> dict[str, Any]:
    """What a folder's checksums.json holds: `files`, and what was written beside them; empty without one."""
    try:
        return read_checksums(folder)
    except (OSError, ValueError, RecursionError):
        return {}


def read_checksums(folder: Path) -> dict[str, Any]:
    with open_regular(folder / CHECKSUMS) as file:
        checksums = json.load(file)
    if not isinstance(checksums, dict):
        raise ValueError(f"{CHECKSUMS} holds no JSON object")
    return checksums


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
    """Raise an operating system's error as InputOutputFailed, which names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter: of a file that safetensors writes
        why = getattr(error, "strerror", None) or error
        raise InputOutputFailed(f"{path} could not be written: {why}.") from error


_locks: set[int] = set()  # file descriptors that stay open as long as the process


def lock(folder: Path) -> bool:
    """Whether this process now has the folder to itself, until it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    _locks.add(descriptor)
    return True


def close_in_child() -> None:
    """Let go of the locks in a forked worker, which may outlive a run that is killed."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


os.register_at_fork(after_in_child=close_in_child)


@contextlib.contextmanager
def unfinished_folder(place: Path) -> Iterator[Path]:
    """A new folder beside `place`, locked by this process, to be filled and renamed; else removed at the end.

    Unlike `complete_folder`'s, several processes may have one each for the same place. What killed processes
    left is removed first. Raises OSError.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(place.parent, "unfinished-")
    unfinished = None
    try:
        while True:
            unfinished = place.with_name(f"unfinished-{uuid.uuid4().hex}")
            unfinished.mkdir(mode=0o700)
            with contextlib.suppress(FileNotFoundError):  # another process has removed it as abandoned
                if lock(unfinished):
                    break
        yield unfinished
    finally:
        if unfinished:
            shutil.rmtree(unfinished, ignore_errors=True)


def remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove the folders in `folder` whose name has that prefix and which no living process has locked."""
    for abandoned in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if lock(abandoned):
                shutil.rmtree(abandoned, ignore_errors=True)
