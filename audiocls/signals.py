"""SIGTERM and Ctrl-C: stop where nothing is lost."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn, TypeVar

from audiocls.errors import STOPPED, Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
LEAVE_WITHIN_SECONDS = 5

T = TypeVar("T")


class StopSignal:
    """Whether a signal asked the process to stop, and what is done about it.

    Until `defer` is called, the signal ends what is going on at once. After it, `requested` is set, and the
    run leaves where it next asks for a batch, or while it waits for one. A second Ctrl-C leaves without
    waiting for anything.
    """

    def __init__(self) -> None:
        self.requested = False
        self.leave: Callable[[], NoReturn] | None = None  # raises Stopped; None: nothing is deferred
        self.at_once = True
        self.process = os.getpid()
        for number in STOP_SIGNALS:
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a child that has just been forked
        if self.requested:
            if number == signal.SIGINT:
                leave_now()
            return
        self.requested = True
        if self.at_once:
            if self.leave is None:
                # Python drops what is raised within a finalizer: then this ends the process.
                signal.signal(signal.SIGALRM, leave_now)
                signal.alarm(LEAVE_WITHIN_SECONDS)
            raise Stopped("stopped")
        if os.isatty(2):
            os.write(2, b"\nstopping at the next micro-batch; press Ctrl-C again to leave at once\n")

    def defer(self, leave: Callable[[], NoReturn]) -> None:
        """From here on a signal waits until the next batch is asked for, where `leave` is called."""
        self.leave, self.at_once = leave, False
        if self.requested:
            leave()

    def undefer(self) -> None:
        """From here on a signal ends what is going on at once again."""
        leave, self.leave, self.at_once = self.leave, None, True
        if self.requested and leave is not None:
            leave()

    def ignore(self) -> None:
        """All is done: from here on a signal changes nothing."""
        self.leave, self.at_once = None, False

    def wait_for(self, get: Callable[[], T]) -> T:
        """What `get` returns; where leaving is deferred and asked for, before or meanwhile, that is done."""
        if self.leave is None:
            return get()
        try:
            self.at_once = True
            if self.requested:
                raise Stopped
            result = get()
            self.at_once = False
            return result
        except Stopped:
            self.at_once = False
            self.leave()


def leave_now(number: int = 0, frame: FrameType | None = None) -> None:
    """End the process, and its workers, without another word."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(STOPPED)


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """A process that is started within never sees SIGTERM and Ctrl-C: its parent decides when it ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
