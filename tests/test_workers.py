"""Processes that prepare batches, by whatever method they are started.

A lost one is noticed, its clips named; what is wrong in one is said; none is left; no signal matters.
"""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import config_of, feature_extractor_for
from data_helpers import ROOT, file_clips, run_script, write_wav
from test_torchaudio_guard import DOES_NOT_LOAD
from transformers import WhisperFeatureExtractor
from worker_helpers import (
    METHODS,
    NotInWorkers,
    batches_of,
    exit_itself,
    find_nothing,
    have_a_bug,
    kill_itself,
    kill_itself_in_real_time,
    lose_connection,
    nothing,
    raise_odd_error,
    raise_stop_iteration,
    stop_itself,
)

from audiocls.data import workers
from audiocls.data.audio import DecodeOptions
from audiocls.data.cache import FlatFile, Waveforms, decode_all
from audiocls.data.clips import FileAudio, Segment
from audiocls.data.collators import Batch, Example, SpectrogramCollator, WaveformCollator
from audiocls.data.loader import ClipDataset, Prepare, load_batches
from audiocls.data.workers import Task
from audiocls.errors import InputOutputFailed
from audiocls.model.backbone import Backbone, LoadedModel
from audiocls.model.settings import WaveformExtractor
from audiocls.model.window import cut_window
from audiocls.signals import StopSignal

ALL = [[0, 1], [2, 3], [4, 5], [6, 7]]  # the labels of all batches
CPU = torch.device("cpu")
needs_fork_server = pytest.mark.skipif("forkserver" not in METHODS, reason="there is no fork server here")
needs_fork = pytest.mark.skipif("fork" not in METHODS, reason="there is no fork here")


@pytest.fixture(autouse=True)
def child_handler() -> Any:
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each start method, as the process's own."""
    yield from set_to(request.param)


@pytest.fixture(params=[method for method in METHODS if method != "fork"])
def new_process(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each start method whose workers are given what they need, as the process's own."""
    yield from set_to(request.param)


def set_to(method: str) -> Iterator[str]:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    yield method
    multiprocessing.set_start_method(before, force=True)


def labels_of(batches: Iterator[Batch]) -> list[list[int]]:
    return [batch.labels.tolist() for batch in batches]


# Lost, or stopped


@needs_fork
def test_a_worker_that_gives_nothing_ends_the_run_in_time_and_its_clips_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "LONGEST_WAIT_SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(InputOutputFailed, match=r"gave nothing for 1 s\. It had .*6.wav, 7.wav\.$"):
        labels_of(batches_of(stop_itself))
    assert time.monotonic() - began < 10
    assert multiprocessing.active_children() == []


HOW_IT_ENDS = {  # by the method that started it: one way each, as torch takes 5 s to notice
    "fork": (kill_itself, "was killed by SIGKILL"),
    "spawn": (exit_itself, "ended by itself, with exit code 3"),
    "forkserver": (kill_itself_in_real_time, "was killed by signal [0-9]+"),
}


def test_a_lost_worker_ends_the_run_in_time_and_its_clips_are_named(method: str) -> None:
    happens, says = HOW_IT_ENDS[method]
    batches = batches_of(happens)
    next(batches)  # by now they have started
    began = time.monotonic()
    with pytest.raises(InputOutputFailed, match=rf"{says}\. It had .*6.wav, 7.wav\.$"):
        labels_of(batches)
    assert time.monotonic() - began < 10
    assert multiprocessing.active_children() == []


@needs_fork
def test_a_stop_ends_the_wait_for_a_batch_that_does_not_come(stop: StopSignal) -> None:
    stop.defer()
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    assert len(list(batches_of(stop_itself, stop=stop))) < 4
    assert time.monotonic() - began < 9
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("method", "number"),
    [("spawn", signal.SIGINT), ("forkserver", signal.SIGINT), ("forkserver", signal.SIGTERM)],
)
def test_a_stop_of_all_processes_while_workers_start_ends_them_in_time_without_a_word(
    method: str, number: signal.Signals
) -> None:
    """As a terminal sends Ctrl-C, or a scheduler SIGTERM: to all that belongs to the run."""
    if method not in METHODS:
        pytest.skip(f"there is no {method} here")
    code = f"""
import os, threading, time
from audiocls.signals import StopSignal
stop = StopSignal()
stop.defer()
threading.Timer(0.3, os.killpg, (0, {int(number)})).start()
began = time.monotonic()
batches = list(batches_of(stop=stop))
assert stop.requested and len(batches) < 4
assert not multiprocessing.active_children()
assert time.monotonic() - began < 9
for thread in threading.enumerate()[1:]:  # a queue's that frees a semaphore at Python's end warns
    thread.join(10)
"""
    done = run_with_tests("-c", SCRIPT.format(method) + code, start_new_session=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_there_are_no_more_batches_once_a_stop_is_requested(num_workers: int, stop: StopSignal) -> None:
    batches = batches_of(nothing, num_workers, stop)
    next(batches)
    stop.requested = True
    assert list(batches) == []
    assert multiprocessing.active_children() == []


def test_workers_live_on_through_signals_to_the_group_and_end_with_the_loop(method: str) -> None:
    batches = batches_of()
    came = [next(batches).labels.tolist() for _ in range(2)]  # one of each: by now both have begun
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker.pid, number)
    came += labels_of(batches)
    assert came == ALL
    assert multiprocessing.active_children() == []


def test_workers_end_where_a_loop_is_left_in_the_middle(method: str) -> None:
    batches = batches_of()
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert multiprocessing.active_children() == []


# What is wrong in a worker


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_is_gone_is_an_input_error_that_names_it(num_workers: int) -> None:
    with pytest.raises(InputOutputFailed, match=r"^One of 6.wav, 7.wav is not there\.$"):
        list(batches_of(find_nothing, num_workers))


def test_a_bug_in_a_worker_is_raised_with_the_traceback_that_it_has_there(method: str) -> None:
    with pytest.raises(ValueError, match="a bug") as raised:
        labels_of(batches_of(have_a_bug))
    assert str(raised.value) == "a bug"
    assert "in have_a_bug" in raised.value.__notes__[0]
    assert multiprocessing.active_children() == []


def test_what_cannot_be_unpickled_in_a_worker_is_said(new_process: str) -> None:
    with pytest.raises(ImportError, match="no such library in a worker") as raised:
        labels_of(batches_of(NotInWorkers(nothing)))
    assert "in import_what_is_not_there" in raised.value.__notes__[0]


@needs_fork
@pytest.mark.parametrize(
    ("happens", "kind", "says"),
    [
        (raise_odd_error, RuntimeError, "TwoArguments: 1 and 2"),  # it cannot be made here again
        (lose_connection, ConnectionResetError, "of its own"),  # not of the connection to the worker
        (raise_stop_iteration, RuntimeError, "generator raised StopIteration"),  # not the end of the clips
    ],
)
def test_errors_that_could_be_taken_for_others_are_said_all_the_same(
    happens: Callable[[], None], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        labels_of(batches_of(happens))


@needs_fork
def test_a_bug_ends_the_process_though_a_frame_still_holds_stopped_workers() -> None:
    # They are stopped from here: one that stopped itself could hold the queue, which the first batch needs.
    code = """
import multiprocessing, os, signal
from worker_helpers import batches_of
batches = batches_of()
next(batches)
for worker in multiprocessing.active_children():
    os.kill(worker.pid, signal.SIGSTOP)
raise ValueError("a bug")
"""
    done = run_with_tests("-c", code)
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: a bug\n")


def run_with_tests(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return run_script(*arguments, timeout=90, env=os.environ | {"PYTHONPATH": PATHS}, **options)


PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
SCRIPT = """
import multiprocessing
multiprocessing.set_start_method("{}", force=True)
from worker_helpers import batches_of
from audiocls.errors import exit_code_of
"""


def test_a_script_that_workers_must_not_run_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format("spawn") + "raise SystemExit(exit_code_of(lambda: len(list(batches_of()))))"
    )
    done = run_with_tests(str(script))
    assert done.returncode == 4
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "error: A process that prepares batches ended by itself, with exit code 1. What is"
    )
    assert '`if __name__ == "__main__":`' in last and ".wav" not in last


@needs_fork_server
def test_workers_of_a_fork_server_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    """The others end when another process becomes their parent."""
    code = SCRIPT.format("forkserver") + (
        "batches = batches_of()\nnext(batches)\n"
        "print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)\ninput()"
    )
    streams: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    environment = os.environ | {"PYTHONPATH": PATHS}
    with subprocess.Popen([sys.executable, "-c", code], text=True, env=environment, **streams) as parent:
        pids = parent.stdout.readline().split()
        parent.kill()
    assert len(pids) == 2
    deadline = time.monotonic() + 15
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, pids))


def is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


@needs_fork_server
@pytest.mark.parametrize("method", ["forkserver"], indirect=True)
def test_a_fork_server_has_imported_what_its_workers_use(method: str) -> None:
    """Else each of them imports torch by itself, in 2 s."""
    assert labels_of(batches_of()) == ALL
    code = "import os, sys; os._exit(10 + ('audiocls.data.loader' in sys.modules))"
    process = multiprocessing.Process(target=exec, args=(code,))  # which itself imports nothing
    process.start()
    process.join()
    assert process.exitcode == 11


@needs_fork_server
@pytest.mark.parametrize("method", ["forkserver"], indirect=True)
def test_what_else_the_fork_server_forks_ends_at_a_sigterm(method: str) -> None:
    assert labels_of(batches_of()) == ALL
    process = multiprocessing.Process(target=time.sleep, args=(60,))
    process.start()
    process.terminate()
    process.join(10)
    exit_code = process.exitcode
    process.kill()
    assert exit_code == -signal.SIGTERM


# What a worker is given


def test_all_methods_give_the_batches_of_no_workers(method: str, tmp_path: Path) -> None:
    """Of clips that are kept, and of clips that are decoded by the workers."""
    paths = [write_wav(tmp_path / f"{index}.wav", 0.1 + index / 100, seed=index) for index in range(8)]
    given = file_clips(paths)
    recording = given[5].audio
    assert isinstance(recording, FileAudio)
    given[5] = replace(given[5], audio=Segment(recording, 0.02, 0.1))
    kept = decode_all(given, DecodeOptions(16_000), tmp_path / "cache")
    assert kept.cache is not None
    for waveforms in (kept, decode_all(given, DecodeOptions(16_000), Path("/dev/null"))):
        assert (waveforms.cache is None) == (waveforms is not kept)
        clips = ClipDataset(waveforms, np.arange(8), np.arange(8))
        collate = WaveformCollator(WaveformExtractor())
        alone, shared = (
            list(load_batches(clips, [[5, 1, 2], [8, 11]], collate, num_workers=num_workers, device=CPU))
            for num_workers in (0, 1)
        )
        for expected, batch in zip(alone, shared, strict=True):
            assert batch.labels.tolist() == expected.labels.tolist()
            assert torch.equal(batch.inputs["input_values"], expected.inputs["input_values"])


def test_a_worker_is_given_no_more_for_many_clips_than_for_few(tmp_path: Path) -> None:
    def size(num_clips: int, cached: bool, collate: Any) -> int:
        lengths = np.full(num_clips, 400)
        paths = [tmp_path / f"{index}.wav" for index in range(num_clips)]
        cache = FlatFile(tmp_path / "values", lengths, np.float32) if cached else None
        nothing_measured: Any = [None] * num_clips
        waveforms = Waveforms(
            file_clips(paths), DecodeOptions(16_000), lengths, lengths / 16_000, {}, nothing_measured, cache
        )
        return len(pickle.dumps(Task(Prepare(waveforms.store, None, collate))))

    spectrograms = SpectrogramCollator(WhisperFeatureExtractor())
    for collate in (WaveformCollator(WaveformExtractor()), spectrograms):
        for cached in (True, False):
            # 64 kB is what a pipe takes: with more, each worker would start only after the one before.
            assert size(10_000, cached, collate) <= size(10, cached, collate) + 10 < 64_000


@pytest.mark.parametrize("name", ["whisper", "wav2vec2-bert", "audio-spectrogram-transformer"])
def test_workers_make_the_spectrograms_that_no_workers_make(name: str) -> None:
    """Also where its window has been cut since it was loaded."""
    backbone = cut_window(Backbone("", None, config_of(name, {}), feature_extractor_for(name)), seconds=0.9)
    collate = SpectrogramCollator(backbone.feature_extractor)
    examples = [Example(np.random.default_rng(0).standard_normal(16_000).astype(np.float32))]
    expected, inputs = collate(examples).inputs, pickle.loads(pickle.dumps(collate))(examples).inputs
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[key], expected[key]) for key in expected)


def test_workers_import_transformers_only_for_spectrograms_and_then_by_the_guard(tmp_path: Path) -> None:
    """data2vec-audio is computed by transformers' own model, from waveforms all the same."""
    extractors = {
        "data2vec-audio": WaveformExtractor(),
        "audio-spectrogram-transformer": feature_extractor_for("audio-spectrogram-transformer"),
    }
    for name, extractor in extractors.items():
        backbone = Backbone("", None, config_of(name, {}), extractor)
        collators = [LoadedModel(None, backbone).training_collator(seed=0)]
        if backbone.takes_waveforms:
            collators.append(LoadedModel(None, backbone, takes="features").training_collator(seed=0))
        (tmp_path / name).write_bytes(pickle.dumps(collators))
    code = f"""
import pickle, sys, torch
{DOES_NOT_LOAD}
import numpy as np
from audiocls.data.loader import Example

def read(name):
    return pickle.loads(open({str(tmp_path)!r} + "/" + name, "rb").read())

read("data2vec-audio")
assert not {{"torchaudio", "transformers"}} & set(sys.modules)
[collate] = read("audio-spectrogram-transformer")
print(*collate([Example(np.ones(16_000, np.float32))]).inputs)
"""
    finished = run_script("-c", code)
    assert finished.returncode == 0, finished.stderr
    assert "input_values" in finished.stdout


# A whole run


@pytest.mark.slow
def test_a_run_is_the_same_by_any_method(tmp_path: Path) -> None:
    """train.py as a user's script runs it that sets the start method."""
    code = "import multiprocessing, runpy, sys; multiprocessing.set_start_method(sys.argv.pop(1)); "
    code += f"sys.argv[0] = {str(ROOT / 'train.py')!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    quick = ["--demo", "--max-steps", "1", "--log-every", "1", "--eval-every", "end", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    lines = {}
    for method, num_workers in (("spawn", 0), ("spawn", 2), ("forkserver", 2)):
        run = tmp_path / f"{method}-{num_workers}"
        arguments = [method, *quick, "--num-workers", str(num_workers), "--output-dir", str(run)]
        done = run_script("-c", code, *arguments, timeout=120, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        lines[method, num_workers] = [
            {key: record.get(key) for key in ("kind", "step", "loss", "grad_norm", "accuracy")}
            for record in records
        ]
    assert [line["kind"] for line in lines["spawn", 0]].count("train") == 1
    assert lines["spawn", 2] == lines["forkserver", 2] == lines["spawn", 0]
