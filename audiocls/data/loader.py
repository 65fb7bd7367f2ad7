"""Decoded clips -> batches, through torch's DataLoader; a worker process that is lost is noticed."""

import atexit
import dataclasses
import itertools
import math
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from audiocls.data.audio import BadAudio
from audiocls.data.augment import Augmentation
from audiocls.data.batch_plan import Step
from audiocls.data.clips import Clip
from audiocls.data.collators import Batch, Collator, Example
from audiocls.devices import available_cores
from audiocls.errors import InputOutputFailed, named
from audiocls.signals import StopSignal, stop_signals_blocked

LONGEST_WAIT_SECONDS = 120.0  # for one batch
DEAD_WORKER = ("DataLoader worker", "Pin memory thread")  # how torch says that it found one dead
GRACE_SECONDS = 1.0  # for workers to answer once a stop is requested, and to end by themselves


@dataclass(frozen=True)
class ClipDataset(Dataset):
    """Some of the decoded clips, with the number of their label."""

    waveforms: Any  # Waveforms, or the Features that a frozen part of the model made of them
    rows: np.ndarray  # int64 [clips], into waveforms
    labels: np.ndarray  # int64 [clips]
    augment: Augmentation | None = None  # of training clips

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: int) -> Example:
        """The clip of a draw: epoch * len(self) + its index."""
        index = draw % len(self)
        row, decoded = self.rows[index], self.decoded
        values = self.waveforms[row]
        if self.augment is not None:
            values = self.augment(values, draw)
        num_samples = len(values) if decoded is self.waveforms else int(decoded.num_samples[row])
        return Example(values, int(self.labels[index]), draw, num_samples)

    def at_its_longest(self, index: int) -> Example:
        """A clip, repeated up to the length that augmentation may give it: it takes the most memory."""
        example = dataclasses.replace(self, augment=None)[index]
        if self.augment is None:
            return example
        return example._replace(values=np.resize(example.values, self.num_samples[index]))

    @property
    def num_samples(self) -> np.ndarray:
        """int64 [clips], the length of each waveform; of one that is augmented, the most that it may be."""
        lengths = self.decoded.num_samples[self.rows]
        return lengths if self.augment is None else self.augment.most_samples(lengths)

    @property
    def decoded(self) -> Any:
        """The Waveforms, also where `waveforms` are features made of them."""
        return getattr(self.waveforms, "waveforms", self.waveforms)

    @property
    def clips(self) -> list[Clip]:
        return [self.decoded.clips[row] for row in self.rows]

    @property
    def paths(self) -> list[str]:
        return [clip.path for clip in self.clips]


def step_batches(
    clips: ClipDataset,
    steps: Iterable[Step],
    collate: Collator,
    *,
    num_workers: int | None,
    device: torch.device,
    stop: StopSignal | None = None,
) -> Iterator[tuple[Step, Iterator[Batch]]]:
    """Each of `steps`, with a Batch for each of its micro-batches; the rest is as for `load_batches`.

    Batches of a step that are not asked for are passed over: the next step has its own all the same.
    """
    steps, ahead = itertools.tee(steps)
    draws = (micro_batch for step in ahead for micro_batch in step.micro_batches)
    batches = load_batches(clips, draws, collate, num_workers=num_workers, device=device, stop=stop)
    for step in steps:
        own = itertools.islice(batches, len(step.micro_batches))
        yield step, own
        for _ in own:
            pass


def load_batches(
    clips: ClipDataset,
    draws: Iterable[list[int]],
    collate: Collator,
    *,
    num_workers: int | None,
    device: torch.device,
    stop: StopSignal | None = None,
) -> Iterator[Batch]:
    """A Batch of the clips of each list of draws, in their order, put together for `device`.

    There are no more of them once `stop` is requested. `num_workers` None: `usual_workers`. Raises
    InputOutputFailed, naming clips, where a file is gone, or a worker is killed or gives nothing for
    LONGEST_WAIT_SECONDS.
    """
    asked, awaited = itertools.tee(draws)
    on_gpu = device.type == "cuda"
    loader = DataLoader(
        clips,
        batch_sampler=asked,
        collate_fn=collate,
        num_workers=usual_workers(device) if num_workers is None else num_workers,
        pin_memory=on_gpu,
    )
    batches = watched(loader, stop) if loader.num_workers else iter(loader)

    def paths(draws: list[int]) -> str:
        rows = [clips.rows[draw % len(clips)] for draw in draws]
        return named([clips.decoded.clips[row].path for row in rows], 3)

    for batch_draws in awaited:
        if stop is not None and stop.requested:
            return
        try:
            batch = next(batches)
        except WorkerLost as lost:
            if stop is not None and stop.requested:
                return
            # It prepares two batches ahead, in turns with the others.
            turns = itertools.islice(awaited, loader.num_workers - 1, loader.num_workers)
            had = " and ".join(map(paths, (batch_draws, *turns)))
            raise InputOutputFailed(f"A process that prepares batches {lost}. It had {had}.") from None
        except BadAudio as error:  # a file that was there when the run began
            raise InputOutputFailed(f"One of {paths(batch_draws)} {str(error).splitlines()[-1]}.") from None
        yield batch


def usual_workers(device: torch.device) -> int:
    """None for a CPU, whose cores they would take. For a GPU two, or four where there are cores for them.

    Beside an H200 two gave 7,300 seconds of audio a second in clips of 1 s, and four 12,900: more than it
    trains on (benchmarks/gpu/bench.py).
    """
    return 0 if device.type != "cuda" else 4 if available_cores() >= 8 else 2


class WorkerLost(Exception):
    """A worker has ended, or gives nothing any more."""


def watched(loader: DataLoader, stop: StopSignal | None) -> Iterator[Any]:
    """The batches of a loader with workers, which end with this generator. Raises WorkerLost.

    Where a batch is waited for too long, a thread kills the workers, and the wait fails. torch's own
    `timeout` does not reach where it may last longest: fetching a batch out of a stopped worker's shared
    memory.
    """
    others = multiprocessing.active_children()
    with stop_signals_blocked():
        batches: Any = iter(loader)
    # torch's own handler would raise the end of a worker in the middle of anything, a save for one.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    workers = [process for process in multiprocessing.active_children() if process not in others]
    waiting_since, patience, has_ended = math.inf, LONGEST_WAIT_SECONDS, threading.Event()
    why = "was killed"

    def kill() -> None:
        for worker in workers:
            worker.kill()

    def watch() -> None:
        nonlocal why
        while not has_ended.wait(0.25):
            waited = time.monotonic() - waiting_since
            if waited > (GRACE_SECONDS if stop is not None and stop.requested else patience):
                why = f"gave nothing for {patience:g} s"
                kill()

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
                raise WorkerLost(why) from None
            except (ConnectionError, EOFError):  # it is just ending
                raise WorkerLost(why) from None
            finally:
                waiting_since = math.inf
            yield batch
    finally:
        # A traceback may hold on to this until the end: the workers are dead by then.
        if not is_interpreter_exiting():
            waiting_since, patience = time.monotonic(), GRACE_SECONDS
            batches._shutdown_workers()  # one that ends by itself leaves nothing in shared memory
            has_ended.set()
            atexit.unregister(kill)
