"""The processes that prepare batches: what they are given, and how they are started, watched and ended.

They are forks of ours, or new processes (Python's start methods "spawn" and "forkserver", the usual ones of
macOS and of Linux since Python 3.14). What a new one is given is pickled, and it imports torch for 2 s.
"""

import atexit
import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import connection, forkserver, resource_tracker
from typing import Any

from torch.utils.data import DataLoader, Dataset

from audiocls.errors import reason
from audiocls.signals import STOP_SIGNALS, Stop, stop_signals_blocked

LONGEST_WAIT_SECONDS = 120.0  # for one batch
DEAD_WORKER = ("DataLoader worker", "Pin memory thread")  # how torch says that it found one dead
GRACE_SECONDS = 1.0  # for workers to answer once a stop is requested, and to end by themselves
# Imported once by the process that forks the workers of "forkserver", not by each of them.
PRELOADED = ["__main__", "torch", "audiocls.data.loader"]


class Task(Dataset):
    """What a worker does for each batch. What goes wrong there is a Failure, which the loop raises.

    A new process is given it as bytes: then this holds where `prepare` cannot be unpickled, too.
    """

    def __init__(self, prepare: Callable[[Any], Any]) -> None:
        self.prepare: Any = prepare

    def __getitem__(self, asked: Any) -> Any:
        try:
            if isinstance(self.prepare, bytes):
                self.prepare = pickle.loads(self.prepare)
            return self.prepare(asked)
        except Exception as error:
            return Failure(error)

    def __getstate__(self) -> dict[str, bytes]:
        return {"prepare": pickle.dumps(self.prepare)}


class Failure:
    """An exception in the place of a batch. From another process it comes with a note of its traceback there.

    One that cannot be unpickled here (of a class that only the worker has) comes as a RuntimeError.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        try:
            pickled = pickle.dumps(self.error)
        except Exception:
            pickled = b""
        return received, (pickled, reason(self.error), "".join(traceback.format_exception(self.error)))


def received(pickled: bytes, what: str, where: str) -> Failure:
    try:
        error = pickle.loads(pickled)
    except Exception:
        error = RuntimeError(what)
    error.add_note(f"In a process that prepares batches:\n{where}")
    return Failure(error)


def unwrapped(batch: Any) -> Any:
    """The batch. Raises the exception that came in its place."""
    if isinstance(batch, Failure):
        raise batch.error
    return batch


class WorkerLost(Exception):
    """A worker has ended, or gives nothing any more."""

    def __init__(self, how: str, *, at_start: bool = False) -> None:
        super().__init__(how)
        self.at_start = at_start  # by itself, before any of them gave a batch


def watched(loader: DataLoader, stop: Stop | None) -> Iterator[Any]:
    """The batches of a loader with workers, which end with this generator.

    Raises WorkerLost, or what a worker raised. The loader's `worker_init_fn` must be `begin`. Where a batch
    is waited for too long, a thread kills the workers, and the wait fails. torch's own `timeout` does not
    reach where it may last longest: fetching a batch out of a stopped worker's shared memory.
    """
    others = multiprocessing.active_children()
    batches = start(loader)
    # torch's own handler would raise the end of a worker in the middle of anything, a save for one.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    workers = [process for process in multiprocessing.active_children() if process not in others]
    waiting_since, patience, has_ended = math.inf, LONGEST_WAIT_SECONDS, threading.Event()
    has_begun, out_of_patience = False, False

    def kill() -> None:
        for worker in workers:
            worker.kill()

    def watch() -> None:
        nonlocal out_of_patience
        while not has_ended.wait(0.25):
            waited = time.monotonic() - waiting_since
            if waited > (GRACE_SECONDS if stop is not None and stop.requested else patience):
                out_of_patience = True
                kill()

    def lost() -> WorkerLost:
        if out_of_patience:
            return WorkerLost(f"gave nothing for {patience:g} s")
        code = min((worker.exitcode for worker in workers if worker.exitcode), default=0)
        if code < 0:
            return WorkerLost(f"was killed by {signal_name(-code)}")
        return WorkerLost(f"ended by itself, with exit code {code}", at_start=not has_begun)

    with stop_signals_blocked():  # they are for the main thread, whose wait they interrupt
        threading.Thread(target=watch, daemon=True).start()
    atexit.register(kill)  # after an error: multiprocessing would wait for a worker that is stopped
    is_interpreter_exiting = sys.is_finalizing  # a local: by then modules are empty
    try:
        while True:
            waiting_since = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if not str(error).startswith(DEAD_WORKER):
                    raise
                raise lost() from None
            except (OSError, EOFError):  # of the connection to one that is just ending
                if not connection.wait([worker.sentinel for worker in workers], GRACE_SECONDS):
                    raise
                raise lost() from None
            finally:
                waiting_since = math.inf
            has_begun = True
            yield unwrapped(batch)
    finally:
        # A traceback may hold on to this until the end: the workers are dead by then.
        if not is_interpreter_exiting():
            waiting_since, patience = time.monotonic(), GRACE_SECONDS
            batches._shutdown_workers()  # one that ends by itself leaves nothing in shared memory
            has_ended.set()
            atexit.unregister(kill)


def signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"  # a real-time one, which has no name


def start(loader: DataLoader) -> Any:
    """The loader's iterator, its workers started. Raises WorkerLost."""
    method = multiprocessing.get_start_method()
    if method != "fork":
        start_helpers(method)
    try:
        with stop_signals_blocked():
            return iter(loader)
    except (EOFError, ConnectionError):  # the fork server has ended, by a stop signal for one
        raise WorkerLost("could not be started", at_start=True) from None


def start_helpers(method: str) -> None:
    """Start the processes that Python itself uses for spawn and forkserver, where they do not run yet.

    They come before the workers: the start of the tracker unblocks the stop signals, and what the fork server
    forks later, for anybody, must end at a SIGTERM.
    """
    resource_tracker.ensure_running()
    if method == "forkserver":
        multiprocessing.set_forkserver_preload(PRELOADED)
        with stop_signals_blocked([signal.SIGINT]):  # it ignores them itself once it has imported these
            forkserver.ensure_running()


def begin(worker: int) -> None:
    """What a worker does first: leave the stop signals to its parent, and end with it, however that ends.

    torch's workers end when another process becomes their parent. To those of a fork server, which itself
    lives as long as they do, that does not happen.
    """

    def end_with_parent() -> None:
        parent: Any = multiprocessing.parent_process()
        parent.join()
        os._exit(1)

    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=end_with_parent, daemon=True).start()
