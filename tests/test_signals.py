"""SIGTERM and Ctrl-C: at once while nothing can be lost, where the state is whole after that."""

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest
from data_helpers import write_wav

from audiocls import signals, storage, streams
from audiocls.data import audio, cache
from audiocls.data.audio import DecodeOptions
from audiocls.data.clips import Clip, FileAudio
from audiocls.errors import Stopped
from audiocls.signals import StopSignal
from audiocls.storage import complete_folder, unfinished_folder, write_text


def signal_here(number: int) -> None:
    os.kill(os.getpid(), number)


def test_before_the_loop_a_signal_ends_what_is_going_on(stop: StopSignal) -> None:
    with pytest.raises(Stopped):
        signal_here(signal.SIGTERM)
    signal.alarm(0)


def test_deferred_a_signal_only_sets_requested_however_often_sigterm_comes(stop: StopSignal) -> None:
    stop.defer()
    for _ in range(3):
        signal_here(signal.SIGTERM)
    assert stop.requested


def test_a_second_ctrl_c_leaves_at_once(stop: StopSignal, monkeypatch: pytest.MonkeyPatch) -> None:
    class Left(Exception):
        pass

    def exit_at_once(code: int) -> NoReturn:
        raise Left(code)

    monkeypatch.setattr(signals.os, "_exit", exit_at_once)
    stop.defer()
    signal_here(signal.SIGINT)
    with pytest.raises(Left, match="143"):
        signal_here(signal.SIGINT)


def test_a_forked_child_does_not_take_its_parents_stop_for_its_own(stop: StopSignal) -> None:
    child = os.fork()
    if child == 0:
        signal_here(signal.SIGTERM)
        os._exit(int(stop.requested))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_when_leaving_is_no_longer_deferred_a_signal_that_came_meanwhile_counts(stop: StopSignal) -> None:
    stop.defer()
    signal_here(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped"):
        stop.undefer()


def test_a_signal_within_a_finalizer_ends_what_is_going_on_after_it(stop: StopSignal) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal_here(signal.SIGTERM)

    with pytest.raises(Stopped):
        del_it = Finalized()
        del del_it
        time.sleep(1)
    signal.alarm(0)


def test_after_the_end_a_signal_changes_nothing(stop: StopSignal) -> None:
    stop.ignore()
    for number in signals.STOP_SIGNALS:
        signal_here(number)
    assert not stop.requested


# At any instruction

LOOKED_AT = {module.__file__ for module in (contextlib, storage, streams, audio, cache)}


def stopped_at(number: int, work: Callable[[], object]) -> bool:
    """Raise Stopped before the `number`-th instruction in LOOKED_AT of `work`; False where it has fewer."""
    left = number

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        nonlocal left
        if frame.f_code.co_filename not in LOOKED_AT:
            return None
        frame.f_trace_opcodes = True
        left -= event == "opcode"
        if left == 0:
            raise Stopped
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except Stopped:
        return True
    finally:
        sys.settrace(before)
    assert left > 0, "Stopped went no further"
    return False


def write_folder(place: Path, content: str) -> None:
    with complete_folder(place) as unfinished:
        (unfinished / "file").write_text(content)


def write_cache(place: Path, content: str) -> None:
    with unfinished_folder(place) as unfinished:
        (unfinished / "file").write_text(content)
        unfinished.rename(place)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a file is closed late
@pytest.mark.parametrize(
    ("write", "replaces"),
    [
        (write_text, False),
        (write_text, True),
        (write_folder, False),
        (write_folder, True),
        (write_cache, False),
    ],
)
def test_wherever_a_write_is_stopped_only_what_is_whole_is_left(
    tmp_path: Path, write: Callable[[Path, str], None], replaces: bool
) -> None:
    for number in itertools.count(1):
        place = tmp_path / str(number) / "place"
        place.parent.mkdir()
        if replaces:
            write(place, "old")
        was_stopped = stopped_at(number, partial(write, place, "new"))
        assert list(place.parent.iterdir()) in ([[place]] if replaces else [[], [place]])
        if place.exists():
            content = (place / "file" if place.is_dir() else place).read_text()
            assert content == "new" or (replaces and content == "old")
        if not was_stopped:
            break
    assert number > 100
    assert content == "new"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_wherever_decoding_is_stopped_nothing_is_left_and_what_is_said_is_seen(tmp_path: Path) -> None:
    path = str(write_wav(tmp_path / "a.wav", 0.1))
    clips = [Clip(path, FileAudio(path), "a")]
    led_to = os.fstat(2)
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        was_stopped = stopped_at(number, lambda to=folder: cache.decode_all(clips, DecodeOptions(16_000), to))
        assert not list(folder.glob("**/unfinished-*"))
        assert os.path.samestat(os.fstat(2), led_to)
        if not was_stopped:
            break
    assert number > 1_000
