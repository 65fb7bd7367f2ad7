"""Folders with one owner at a time, and the removal of what an owner left that was killed."""

import contextlib
import os
import shutil
from pathlib import Path

_locks: set[int] = set()  # descriptors that stay open as long as the process


def lock(folder: Path) -> bool:
    """Whether this process now has the folder to itself, until it ends; always so without POSIX locks."""
    try:
        import fcntl
    except ModuleNotFoundError:
        return True
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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=close_in_child)


def remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove the folders in `folder` of that prefix which no living process has locked."""
    for abandoned in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if lock(abandoned):
                shutil.rmtree(abandoned, ignore_errors=True)
