"""Clips whose preparation meets with something: in a module of its own, which workers import quickly."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import torch

from audiocls.data.collators import Batch, WaveformCollator
from audiocls.data.limits import BadAudio
from audiocls.data.loader import ClipDataset, load_batches
from audiocls.signals import StopSignal

METHODS = multiprocessing.get_all_start_methods()
EXTRACTOR = SimpleNamespace(padding_value=0.0, do_normalize=False)


def nothing() -> None:
    pass


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def kill_itself_in_real_time() -> None:
    os.kill(os.getpid(), signal.SIGRTMIN + 1)


def exit_itself() -> NoReturn:
    os._exit(3)


def find_nothing() -> NoReturn:
    raise BadAudio("is not there")


def have_a_bug() -> NoReturn:
    raise ValueError("a bug")


class TwoArguments(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def raise_odd_error() -> NoReturn:
    raise TwoArguments(1, 2)


def lose_connection() -> NoReturn:
    raise ConnectionResetError("of its own")


def raise_stop_iteration() -> NoReturn:
    raise StopIteration


@dataclass(frozen=True)
class Store:
    """Something happens to the process that asks for the last of eight clips."""

    happens: Callable[[], Any]

    def __call__(self, place: int) -> np.ndarray:
        if place == 7:
            time.sleep(0.1)  # its thread has sent the batch before: one that ends in that holds up the others
            self.happens()
        return np.full(4, place, np.float32)


@dataclass(frozen=True)
class NotInWorkers(Store):
    """Cannot be unpickled."""

    def __reduce__(self) -> Any:
        return import_what_is_not_there, ()


def import_what_is_not_there() -> NoReturn:
    raise ImportError("no such library in a worker")


class Waveforms:
    """Eight clips."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.clips = [SimpleNamespace(path=f"{index}.wav") for index in range(8)]

    def place(self, index: int) -> int:
        return index


def batches_of(
    happens: Callable[[], Any] | Store = nothing, num_workers: int = 2, stop: StopSignal | None = None
) -> Iterator[Batch]:
    store = happens if isinstance(happens, Store) else Store(happens)
    clips = ClipDataset(Waveforms(store), np.arange(8), np.arange(8))
    draws, collate = [[0, 1], [2, 3], [4, 5], [6, 7]], WaveformCollator(EXTRACTOR)
    return load_batches(clips, draws, collate, num_workers=num_workers, device=torch.device("cpu"), stop=stop)
