"""Processes that prepare batches: no signal reaches them, none outlives its loader, a lost one is noticed."""

import atexit
import contextlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from audiocls.signals import stop_signals_blocked

LONGEST_WAIT_SECONDS = 120.0  # for one batch
GRACE_SECONDS = 2.0  # for workers to end by themselves


class WorkerLost(Exception):
    """A worker has ended, or gives nothing any more."""


@contextlib.contextmanager
def started(loader: DataLoader) -> Iterator[Iterator[Any]]:
    """The loader's batches; its workers, where it has any, end with the `with` block.

    Asking for a batch raises WorkerLost where none comes.
    """
    if loader.num_workers == 0:
        yield iter(loader)
        return
    others = multiprocessing.active_children()
    with stop_signals_blocked():
        batches: Any = iter(loader)
    # torch's own handler would raise the end of a worker in the middle of anything, a save for one.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    workers = [process for process in multiprocessing.active_children() if process not in others]

    def kill() -> None:
        for worker in workers:
            worker.kill()

    atexit.register(kill)  # after an error: multiprocessing would wait for a worker that is stopped
    is_too_late = sys.is_finalizing  # a local: by then modules are empty
    try:
        yield patient(batches)
    finally:
        # A traceback may hold on to this until the end: the workers are dead, no thread starts any more.
        if not is_too_late():
            # A worker that ends by itself leaves nothing in shared memory.
            too_slow = threading.Timer(GRACE_SECONDS, kill)
            too_slow.start()
            batches._shutdown_workers()
            too_slow.cancel()
            atexit.unregister(kill)


def patient(batches: Iterator[Any]) -> Iterator[Any]:
    """The batches, none waited for longer than LONGEST_WAIT_SECONDS."""
    while True:
        signal.signal(signal.SIGALRM, too_long)
        signal.setitimer(signal.ITIMER_REAL, LONGEST_WAIT_SECONDS)
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if str(error).startswith(("DataLoader worker", "Pin memory thread")):  # torch found one dead
                raise WorkerLost("was killed") from None
            raise
        except (ConnectionError, EOFError):  # it is just ending
            raise WorkerLost("was killed") from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        yield batch


def too_long(number: int, frame: FrameType | None) -> None:
    # torch's `timeout` does not reach where it may wait longest: for the shared memory of a stopped worker.
    raise WorkerLost(f"gave nothing for {LONGEST_WAIT_SECONDS:g} s")
