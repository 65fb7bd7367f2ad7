"""Folders with one owner at a time, and the removal of what an owner left that was killed."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_locks: set[int] = set()  # descriptors that stay open as long as the process


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
    """A DataLoader's worker must not keep the folder of a run that was killed."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


os.register_at_fork(after_in_child=close_in_child)


@contextlib.contextmanager
def unfinished_folder(place: Path) -> Iterator[Path]:
    """A folder of this process beside `place`, to be filled and renamed; gone at the end where it was not.

    Those of processes that were killed are removed. Raises OSError.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(place.parent, "unfinished-")
    while True:
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=place.parent))
        with contextlib.suppress(FileNotFoundError):  # another process has taken it for abandoned
            if lock(unfinished):
                break
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove the folders in `folder` of that prefix which no living process has locked."""
    for abandoned in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if lock(abandoned):
                shutil.rmtree(abandoned, ignore_errors=True)
