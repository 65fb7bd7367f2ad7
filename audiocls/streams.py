"""Standard output and standard error: what is said there, and what is kept from them."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from audiocls.errors import one_line
from audiocls.lines import duration, fitted

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 60


def say(text: str, file: TextIO | None = None, *, is_command: bool = False) -> None:
    """A message on standard output, or on `file`, above the progress bar where there is one.

    It is broken to fit, unless it is a command, which is to be copied.
    """
    from tqdm import tqdm

    file = file or sys.stdout
    tqdm.write(fitted(one_line(text), file, is_command=is_command), file=file)
    file.flush()


def progress(
    items: Iterable[T],
    what: str,
    total: int,
    file: TextIO | None = None,
    unit: str = "clip",
) -> Iterable[T]:
    """The items, with a bar on standard error, or `file`, if that is a terminal; it is gone afterwards.

    Elsewhere, as in a log file, a line a minute.
    """
    from tqdm import tqdm

    bar = tqdm(items, what, total, leave=False, disable=None, dynamic_ncols=True, unit=unit, file=file)
    return in_lines(items, what, total, unit) if bar.disable else bar


def in_lines(items: Iterable[T], what: str, total: int, unit: str) -> Iterator[T]:
    """The items; each minute a line says how far they are."""
    began = said = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - said > SECONDS_BETWEEN_LINES:
            said = now
            to_go = duration((now - began) / done * (total - done))
            say(f"{what}: {done:,} of {total:,} {unit}s, about {to_go} to go")
        yield item


LONGEST_WAIT_SECONDS = 5.0  # for a few system calls of another thread


class QuietStderr:
    """Silences what C libraries write to file descriptor 2 while any thread is inside `with quiet_stderr():`.

    libmpg123, for one, writes a few lines for each broken frame. Python's sys.stderr shares the descriptor:
    what must be seen meanwhile is written to a copy made before (`os.dup`).
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.inside: set[object] = set()  # one for each `with` block
        self.real: int | None = None  # where descriptor 2 led, while it leads nowhere

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        this = object()
        try:
            self.enter(this)
            yield
            self.leave(this)
        finally:  # also where a signal raises Stopped on the way in or out: its line must be seen
            self.leave(this)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone, unless nobody gives the lock back: one that was interrupted while it took it never does."""
        lock = self.lock
        if not lock.acquire(timeout=LONGEST_WAIT_SECONDS):
            self.lock = lock = threading.RLock()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def enter(self, block: object) -> None:
        with self.locked():
            self.inside.add(block)
            if self.real is None:
                with contextlib.suppress(OSError):  # closed already: nothing to keep quiet
                    self.real = os.dup(2)
                    nowhere = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nowhere, 2)
                    os.close(nowhere)

    def leave(self, block: object) -> None:
        """Let go of descriptor 2, if nobody else is inside; doing so again changes nothing."""
        with self.locked():
            if self.real is not None and self.inside <= {block}:
                os.dup2(self.real, 2)
                real, self.real = self.real, None
                os.close(real)
            self.inside.discard(block)


quiet_stderr = QuietStderr()
