"""SIGTERM and Ctrl-C: at once while nothing can be lost, where the state is whole after that."""

import os
import signal
import time
from typing import NoReturn

import pytest

from audiocls import signals
from audiocls.errors import Stopped
from audiocls.signals import StopSignal


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
