"""Recordings read by threads ahead of their use: the same pieces and errors in the same order."""

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from audiocls.inference.reading import CHUNK_PIECES, RECORDINGS_AHEAD, Reader, in_lists
from audiocls.inference.recordings import Piece, Prediction

WAVEFORM = np.zeros(10, np.float32)


def pieces_of(recording: Any) -> Iterator[Piece]:
    """Of ("name", 3) three windows and the whole, each after a while that differs."""
    name, num_windows = recording
    for number in range(num_windows):
        time.sleep(random.random() * 1e-3)
        yield Prediction(name, [], start=float(number)), WAVEFORM
    if name == "wrong":
        raise KeyError(name)
    time.sleep(random.random() * 1e-3)
    yield Prediction(name, []), None if num_windows else WAVEFORM


def names(pieces: Any) -> list[tuple[str | None, float | None]]:
    return [(prediction.path, prediction.start) for prediction, _ in pieces]


def threads_that_read() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read")]


def until(is_so: Callable[[], bool]) -> bool:
    """Whether it is so within a second."""
    return any(is_so() or time.sleep(0.01) for _ in range(100))


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_pieces_come_in_the_recordings_order_whatever_the_number_of_threads(num_threads: int) -> None:
    windows = (0, 0, 3, 0, CHUNK_PIECES - 1, CHUNK_PIECES, 2 * CHUNK_PIECES + 1, 0, *[0] * 30, 7)
    recordings: Any = [(str(number), count) for number, count in enumerate(windows)]
    expected = names(piece for recording in recordings for piece in pieces_of(recording))
    with Reader(recordings, pieces_of, num_threads) as reader:
        assert names(reader) == expected
    assert threads_that_read() == []


def test_several_are_read_at_the_same_time() -> None:
    meeting = threading.Barrier(3)

    def three_at_once(recording: Any) -> Iterator[Piece]:
        meeting.wait(10)
        yield Prediction(recording, []), WAVEFORM

    with Reader(list("abcdef"), three_at_once, num_threads=3) as reader:
        assert [path for path, _ in names(reader)] == list("abcdef")


def test_no_more_is_taken_or_read_than_a_few_recordings_and_a_chunk_of_windows_ahead() -> None:
    taken, read = [], []

    def endless() -> Iterator[Any]:
        for number in itertools.count():
            taken.append(number)
            yield str(number), 0

    def endless_windows(recording: Any) -> Iterator[Piece]:
        for number in itertools.count():
            read.append(number)
            yield Prediction("long", [], start=float(number)), WAVEFORM

    with Reader(endless(), pieces_of, num_threads=2) as reader:
        pieces = iter(reader)
        for number in range(50):
            next(pieces)
            assert len(taken) == number + RECORDINGS_AHEAD
    with Reader([("long", 0)], endless_windows, num_threads=2) as reader:
        pieces = iter(reader)
        for number in range(3 * CHUNK_PIECES):
            next(pieces)
            assert len(read) <= number + 2 * CHUNK_PIECES


def test_without_threads_nothing_is_read_ahead() -> None:
    recordings: Any = iter([("a", 0), ("b", 0), ("c", 0)])
    with Reader(recordings, pieces_of) as reader:
        assert names([next(iter(reader))]) == [("a", None)]
    assert next(recordings) == ("b", 0)


@pytest.mark.parametrize("num_threads", [0, 3])
def test_errors_of_a_recording_and_of_the_inputs_come_in_their_turn(num_threads: int) -> None:
    def failing() -> Iterator[Any]:
        yield from [("a", 0), ("b", 2)]
        raise LookupError("no more")

    for recordings, error in ((failing(), LookupError), ([("a", 0), ("b", 2), ("wrong", 0)], KeyError)):
        seen = []
        with pytest.raises(error), Reader(recordings, pieces_of, num_threads) as reader:
            for piece in reader:
                seen += names([piece])
        assert seen == [("a", None), ("b", 0.0), ("b", 1.0), ("b", None)]
    assert threads_that_read() == []


def test_after_rest_nothing_is_read_until_more_is_asked_for() -> None:
    begun, done = [], []

    def slowly(recording: Any) -> Iterator[Piece]:
        begun.append(recording)
        time.sleep(0.005)
        done.append(recording)
        yield Prediction(recording, []), WAVEFORM

    with Reader(map(str, itertools.count()), slowly, num_threads=4) as reader:
        pieces = iter(reader)
        for number in range(3):
            next(pieces)
            reader.rest()
            assert len(begun) == len(done) == number + RECORDINGS_AHEAD


def test_who_leaves_early_leaves_no_thread_and_what_was_not_begun_is_not_read() -> None:
    begun = []
    goes_on = threading.Event()

    def wait_for_leave(recording: Any) -> Iterator[Piece]:
        begun.append(recording)
        if recording != "0":
            goes_on.wait(10)
        yield Prediction(recording, []), WAVEFORM

    with pytest.raises(KeyboardInterrupt), Reader(map(str, range(99)), wait_for_leave, 2) as reader:
        next(iter(reader))
        assert until(lambda: len(begun) == 3)
        threading.Timer(0.1, goes_on.set).start()
        raise KeyboardInterrupt
    assert (len(begun), threads_that_read()) == (3, [])


def test_each_thread_resamples_alone_and_torch_s_threads_stay_as_they_are() -> None:
    counts = []

    def counted(recording: Any) -> Iterator[Piece]:
        counts.append(torch.get_num_threads())
        yield Prediction(recording, []), WAVEFORM

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Reader(list("abc"), counted, num_threads=2) as reader:
            assert len(list(reader)) == 3
        thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (counts, torch.get_num_threads()) == ([1, 1, 1, 3], 3)
    finally:
        torch.set_num_threads(before)


def test_lists_end_by_number_or_by_audio() -> None:
    def lengths_in(lists: Iterator[list[Piece]]) -> list[list[int]]:
        return [[0 if waveform is None else len(waveform) for _, waveform in one] for one in lists]

    lengths = [3, 0, 4, 9, 1, 1, 1, 1, 2]
    pieces = [(Prediction("a", []), np.zeros(length, np.float32) if length else None) for length in lengths]
    assert lengths_in(in_lists(pieces, 4, 7)) == [[3, 0, 4], [9], [1, 1, 1, 1], [2]]
    assert lengths_in(in_lists([], 4, 7)) == []
