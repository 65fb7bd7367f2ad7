"""SIGTERM and Ctrl-C: whether to stop."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Protocol

from audiocls.errors import STOPPED, Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
LEAVE_WITHIN_SECONDS = 5


class Stop(Protocol):
    """Whether to stop: a StopSignal, or what several ranks have agreed on."""

    requested: bool


STOPPED_AT_THE_END = "stopped after the last step: the same command with --resume finishes the run"


class StopSignal:
    """Whether a signal asked the process to stop.

    Until `defer` is called, a signal ends what is going on at once: it raises Stopped. After it, a signal
    only sets `requested`, which the training loop looks at. A second Ctrl-C leaves without waiting for
    anything, unless `is_one_of_several`: the other ranks wait for this one.
    """

    error: BaseException = Stopped("stopped")  # what is raised
    exit_code = STOPPED  # where what is raised does not end the process
    is_one_of_several = False

    def __init__(self) -> None:
        self.requested = False
        self.at_once = True
        self.num_retries = 0
        self.process = os.getpid()
        for number in STOP_SIGNALS:
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a child that has just been forked
        if self.requested:
            if number == signal.SIGINT and not self.is_one_of_several:
                self.leave_now()
            return
        if self.at_once and is_in_finalizer(frame):  # Python drops what is raised there: again in 10 ms
            signal.signal(signal.SIGALRM, self.handle)
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            self.num_retries += 1
            if self.num_retries > 100 * LEAVE_WITHIN_SECONDS:
                self.leave_now()
            return
        self.requested = True
        if self.at_once:
            # What a weak reference's callback raises is dropped, too: then this ends the process.
            signal.signal(signal.SIGALRM, self.leave_now)
            signal.alarm(LEAVE_WITHIN_SECONDS)
            raise self.error
        if os.isatty(2) and not self.is_one_of_several:
            os.write(2, b"\nstopping soon; press Ctrl-C again to leave at once\n")

    def defer(self) -> None:
        """From here on a signal only sets `requested`."""
        self.at_once = False

    def undefer(self, says: str = STOPPED_AT_THE_END) -> None:
        """From here on a signal raises Stopped again; one that came meanwhile does so now, in these words."""
        self.at_once = True
        if self.requested:
            raise Stopped(says)

    def interrupt(self, error: BaseException) -> None:
        """From another thread: raise `error` in the main one, whatever that is doing."""
        self.error, self.at_once, self.requested = error, True, False
        os.kill(os.getpid(), signal.SIGTERM)

    def leave_now(self, number: int = 0, frame: FrameType | None = None) -> None:
        """End the process, and its workers, without another word."""
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(self.exit_code)

    def ignore(self) -> None:
        """All is done: from here on, also while Python shuts down, a signal changes nothing."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.at_once = False
        for number in (*STOP_SIGNALS, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)


def is_in_finalizer(frame: FrameType | None) -> bool:
    """Whether the frame, or one that called it, is a `__del__`: what is raised there goes no further."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


@contextlib.contextmanager
def stop_signals_blocked(signals: Iterable[signal.Signals] = STOP_SIGNALS) -> Iterator[None]:
    """Keep `signals` from what is started within: its parent decides when such a process or thread ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
