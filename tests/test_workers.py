"""Processes that prepare batches: a lost one is noticed, its clips named; none is left; no signal matters."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import ROOT, run_script

from audiocls.data import loader
from audiocls.data.audio import BadAudio
from audiocls.data.collators import Batch, WaveformCollator
from audiocls.data.loader import ClipDataset, load_batches
from audiocls.errors import InputOutputFailed
from audiocls.signals import StopSignal

EXTRACTOR = SimpleNamespace(padding_value=0.0, do_normalize=False)
HERE = os.getpid()


class Waveforms:
    """Eight clips; something happens to the process that asks for the last."""

    def __init__(self, happens: Callable[[], Any]) -> None:
        self.happens = happens
        self.clips = [SimpleNamespace(path=f"{index}.wav") for index in range(8)]

    def __getitem__(self, index: int) -> np.ndarray:
        if index == 7:
            self.happens()
        return np.full(4, index, np.float32)


def batches_of(
    happens: Callable[[], Any], num_workers: int = 2, stop: StopSignal | None = None
) -> Iterator[Batch]:
    clips = ClipDataset(Waveforms(happens), np.arange(8), np.arange(8))
    draws, collate = [[0, 1], [2, 3], [4, 5], [6, 7]], WaveformCollator(EXTRACTOR)
    return load_batches(clips, draws, collate, num_workers=num_workers, device=torch.device("cpu"), stop=stop)


@pytest.fixture(autouse=True)
def child_handler() -> Any:
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize(
    ("happens", "how"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed"),
        (lambda: os.kill(os.getpid(), signal.SIGSTOP), "gave nothing for 1 s"),
        (lambda: time.sleep(60), "gave nothing for 1 s"),
    ],
    ids=["killed", "stopped", "stuck"],
)
def test_a_lost_worker_ends_the_run_in_time_and_its_clips_are_named(
    happens: Callable[[], None], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "LONGEST_WAIT_SECONDS", 10.0 if how == "was killed" else 1.0)
    began, came = time.monotonic(), []
    with pytest.raises(InputOutputFailed, match=rf"{how}. It had .*6.wav, 7.wav\.$"):
        came += [batch.labels.tolist() for batch in batches_of(happens)]
    assert time.monotonic() - began < 10
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_is_gone_is_an_input_error_that_names_it(num_workers: int) -> None:
    def gone() -> None:
        raise BadAudio("is not there")

    with pytest.raises(InputOutputFailed, match=r"^One of 6.wav, 7.wav .*is not there\.$"):
        list(batches_of(gone, num_workers))


@pytest.mark.parametrize(
    "happens",
    [lambda: time.sleep(60), lambda: os.kill(os.getpid(), signal.SIGSTOP)],
    ids=["stuck", "stopped"],
)
def test_a_stop_ends_the_wait_for_a_batch_that_does_not_come(
    happens: Callable[[], None], stop: StopSignal
) -> None:
    stop.defer()
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    assert len(list(batches_of(happens, stop=stop))) < 4
    assert time.monotonic() - began < 9
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_there_are_no_more_batches_once_a_stop_is_requested(num_workers: int, stop: StopSignal) -> None:
    batches = batches_of(lambda: None, num_workers, stop)
    next(batches)
    stop.requested = True
    assert list(batches) == []
    assert multiprocessing.active_children() == []


def test_workers_live_on_through_signals_to_the_group_and_end_with_the_loop() -> None:
    batches = batches_of(lambda: None)
    came = [next(batches).labels.tolist()]
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker.pid, number)
    came += [batch.labels.tolist() for batch in batches]
    assert came == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("happens", ["None", "os.kill(os.getpid(), signal.SIGSTOP)"], ids=["well", "stopped"])
def test_a_bug_ends_the_process_though_a_frame_still_holds_the_workers(happens: str) -> None:
    code = f"""
import os, signal
from test_workers import batches_of
batches = batches_of(lambda: {happens})
next(batches)
raise ValueError("a bug")
"""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    done = run_script("-c", code, timeout=30, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: a bug\n")


def test_workers_end_where_a_loop_is_left_in_the_middle() -> None:
    batches = batches_of(lambda: None)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert multiprocessing.active_children() == []
