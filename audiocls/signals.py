"""SIGTERM and Ctrl-C: stop where nothing is lost."""

import os
import signal
from types import FrameType

from audiocls.errors import STOPPED, Stopped


class StopSignal:
    """Whether a signal asked the process to stop.

    Until `defer` is called, the signal ends what is going on at once. After it, `requested` is set and the
    training loop leaves where its state is whole. A second signal leaves without waiting.
    """

    def __init__(self) -> None:
        self.requested = False
        self.deferred = False
        signal.signal(signal.SIGTERM, self.handle)
        signal.signal(signal.SIGINT, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(STOPPED)
        self.requested = True
        if not self.deferred:
            raise Stopped("stopped")
        if os.isatty(2):
            os.write(2, b"\nstopping at the next micro-batch; press Ctrl-C again to leave at once\n")

    def defer(self) -> None:
        self.deferred = True

    def undefer(self) -> None:
        self.deferred = False
        if self.requested:
            raise Stopped("stopped; --resume finishes the run")


def ignore_stop_signals(worker: int = 0) -> None:
    """For a DataLoader's workers: Ctrl-C reaches them too, but their parent decides when they end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
