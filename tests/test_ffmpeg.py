"""Recordings of phones and browsers, which FFmpeg decodes in processes that can be lost."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from data_helpers import ROOT
from encoded import MADE_BY, RATE, encoded, stumbling, tone

from audiocls.data import ffmpeg
from audiocls.data.audio import decode
from audiocls.data.limits import BadAudio, UnreadableAudio
from audiocls.data.signatures import AUDIO_SUFFIXES, Format

SECONDS = 3
ID3 = b"TAG" + bytes(125)
# A tag of 968 bytes of items and its footer, which says how long both are.
APE = 968 * b"x" + b"APETAGEX" + (2_000).to_bytes(4, "little") + (1_000).to_bytes(4, "little") + bytes(16)
LOSSLESS = ("mov", "alac.m4a", "wv", "tta")


def process_of_last_decoding() -> ffmpeg.Process:
    return ffmpeg.processes.idle[-1]


@pytest.mark.parametrize("suffix", MADE_BY)
def test_every_format_is_read_whole_whatever_its_name(suffix: str, tmp_path: Path) -> None:
    content = encoded(tone(SECONDS * RATE), suffix)
    for name in (f"a.{suffix}", "a.wav", "a"):
        (tmp_path / name).write_bytes(content)
        decoded = decode(tmp_path / name, RATE)
        np.testing.assert_array_equal(decoded.waveform, decode(content, RATE).waveform)
        assert decoded.notes == ()
    # Encoders add a frame or two to fill their last one, and WMA's drops its first.
    assert len(decoded.waveform) == pytest.approx(SECONDS * RATE, abs=1_400)
    assert decoded.rate == MADE_BY[suffix][2]
    # It is that sound: a sweep from 300 to 900 Hz, at most 0.1 s late.
    power = np.abs(np.fft.rfft(decoded.waveform[20_000:22_000])) ** 2
    assert power.argmax() * RATE / 2_000 == pytest.approx(300 + 200 * 21_000 / RATE, abs=24)
    assert np.sqrt(np.mean(decoded.waveform[8_000:40_000] ** 2)) == pytest.approx(
        0.3 / np.sqrt(2), rel=0.2
    )  # AMR is quieter


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_what_is_lossless_is_exact(suffix: str) -> None:
    samples = np.round(32_768 * tone(SECONDS * RATE)) / np.float32(32_768)
    np.testing.assert_array_equal(decode(encoded(samples, suffix), RATE).waveform, samples)


def test_channels_are_averaged() -> None:
    mono, stereo = (decode(encoded(tone(RATE), "mov", channels=n), RATE) for n in (1, 2))
    assert (mono.channels, stereo.channels) == (1, 2)
    np.testing.assert_allclose(stereo.waveform, mono.waveform, atol=1e-4)  # each is rounded to 16 bits


@pytest.mark.parametrize("suffix", MADE_BY)
def test_only_what_is_used_is_decoded(suffix: str) -> None:
    content = encoded(tone(SECONDS * RATE), suffix)
    whole = decode(content, RATE).waveform
    first = decode(content, RATE, 5_000)
    np.testing.assert_allclose(first.waveform, whole[:5_000], atol=1e-6)
    assert first.goes_on
    with pytest.raises(BadAudio, match="longer than 2 s"):
        decode(content, RATE, max_decode_seconds=2)


def test_the_sound_of_a_film_is_read() -> None:
    content = encoded(tone(RATE), "mp4", with_video=True)
    np.testing.assert_array_equal(
        decode(content, RATE).waveform, decode(encoded(tone(RATE), "mp4"), RATE).waveform
    )


def test_of_several_tracks_the_first_is_read_and_that_is_said() -> None:
    decoded = decode(encoded(tone(RATE), "mka", tracks=2), RATE)
    assert decoded.notes == ("the first of its 2 tracks is read",)


def test_a_recording_that_its_recorder_did_not_finish_is_refused_in_words() -> None:
    content = encoded(tone(RATE), "m4a")
    with pytest.raises(BadAudio, match="its index is damaged or lacking, as where a recorder was cut off"):
        decode(content[: content.index(b"moov")], RATE)


@pytest.mark.parametrize("suffix", ["webm", "aac", "mka"])
def test_a_recording_without_an_index_that_breaks_off_gives_what_is_there(suffix: str) -> None:
    content = encoded(tone(SECONDS * RATE), suffix)
    cut = decode(content[: len(content) // 2], RATE)
    assert len(cut.waveform) == pytest.approx(SECONDS * RATE / 2, rel=0.2)


@pytest.mark.parametrize("suffix", ["m4a", "webm", "aac", "mka", "wv", "tta"])
def test_damage_in_the_middle_costs_no_more_than_it_must(suffix: str) -> None:
    content = encoded(tone(4 * SECONDS * RATE), suffix)
    whole = decode(content, RATE).waveform
    decoded = decode(stumbling(content, len(content) // 20), RATE)
    assert 0.5 * len(whole) < len(decoded.waveform) <= len(whole)
    np.testing.assert_allclose(decoded.waveform[:RATE], whole[:RATE], atol=1e-6)


@pytest.mark.parametrize("suffix", ["m4a", "webm", "mka", "wma", "wv", "tta"])
def test_what_is_lost_of_a_length_that_is_written_is_said(suffix: str) -> None:
    content = encoded(tone(4 * SECONDS * RATE), suffix)
    assert decode(content, RATE).notes == ()
    notes = decode(stumbling(content, len(content) // 8), RATE).notes
    assert any(re.match(r"damaged: (\d.* of its 12\.\d s are (read|lost))$", note) for note in notes), notes


@pytest.mark.parametrize(
    "tag", [b"TAG" + bytes(125), APE, APE + b"TAG" + bytes(125)], ids=["ID3", "APE", "both"]
)
@pytest.mark.parametrize("suffix", MADE_BY)
def test_a_tag_at_the_end_is_no_damage(suffix: str, tag: bytes) -> None:
    content = encoded(tone(RATE), suffix)
    decoded = decode(content + tag, RATE)
    np.testing.assert_array_equal(decoded.waveform, decode(content, RATE).waveform)
    assert decoded.notes == ()


# Without it


@pytest.mark.parametrize("suffix", MADE_BY)
def test_without_the_extra_the_refusal_names_it(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg, "is_installed", lambda: False)
    with pytest.raises(
        BadAudio, match=r"which libsndfile does not read: pip install .av>=14., .*audiocls\[formats\]"
    ):
        decode(encoded(tone(RATE), suffix), RATE)


def test_all_suffixes_of_these_formats_are_looked_at() -> None:
    assert {suffix.rpartition(".")[2] for suffix in MADE_BY} <= AUDIO_SUFFIXES


# Its processes


def test_one_process_decodes_one_file_after_the_other() -> None:
    content = encoded(tone(RATE), "m4a")
    numbers = set()
    for _ in range(5):
        decode(content, RATE)
        decode(content, RATE, 1_000)  # left in the middle
        numbers.add(process_of_last_decoding().process.pid)
    assert len(numbers) == 1


def test_threads_decode_beside_each_other() -> None:
    contents = [encoded(tone(RATE * (1 + n % 3)), suffix) for n, suffix in enumerate(("m4a", "webm", "amr"))]
    alone = [decode(content, RATE).waveform for content in contents]
    with ThreadPoolExecutor(6) as threads:
        beside = list(threads.map(lambda n: decode(contents[n % 3], RATE).waveform, range(60)))
    for number, waveform in enumerate(beside):
        np.testing.assert_array_equal(waveform, alone[number % 3])
    assert len(ffmpeg.processes.idle) <= 7


def lose(how: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(process_of_last_decoding().process.pid, how)


@pytest.mark.parametrize(
    ("how", "says", "kind"),
    [
        (signal.SIGKILL, "cannot be read: FFmpeg's process ended with -9", UnreadableAudio),
        (signal.SIGSEGV, "it ends FFmpeg's process (Segmentation fault)", BadAudio),
        (signal.SIGXCPU, "takes too long", BadAudio),
        (signal.SIGSTOP, "gave nothing for 1 s", UnreadableAudio),
    ],
)
def test_a_lost_process_is_told_and_the_next_file_is_read(
    how: signal.Signals, says: str, kind: type[BadAudio], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ffmpeg, "LONGEST_WAIT_SECONDS", 1.0)
    ffmpeg.processes.end()
    content = encoded(tone(RATE), "m4a")
    with ffmpeg.processes.lent() as process:
        os.kill(process.process.pid, how)
        began = time.monotonic()
        with pytest.raises(BadAudio) as lost:
            process.ask({"frames": 10})
    assert says in str(lost.value) and type(lost.value) is kind
    assert time.monotonic() - began < 8
    assert ffmpeg.processes.idle == []
    assert len(decode(content, RATE).waveform) > RATE


# What is interrupted while a process is started is closed when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_decoding_that_is_interrupted_spoils_none_that_follows() -> None:
    content = encoded(tone(60 * RATE), "m4a")
    alone = decode(content, RATE).waveform

    class Interrupted(BaseException):
        pass

    def interrupt(*arguments: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(20):
            signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.004 * number)
            with contextlib.suppress(Interrupted):
                decode(content, RATE)
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    np.testing.assert_array_equal(decode(content, RATE).waveform, alone)


def test_a_process_that_was_killed_while_it_was_idle_is_replaced() -> None:
    content = encoded(tone(RATE), "m4a")
    decode(content, RATE)
    lost = process_of_last_decoding().process
    lost.kill()
    lost.wait()
    assert len(decode(content, RATE).waveform) > RATE


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_is_bounded_and_keeps_no_file_open() -> None:
    decode(encoded(tone(RATE), "m4a"), RATE)
    folder = Path("/proc", str(process_of_last_decoding().process.pid))
    limits = {
        line[:26].strip(): line[26:].split()[0] for line in (folder / "limits").read_text().splitlines()
    }
    assert int(limits["Max address space"]) < 2**30
    assert int(limits["Max cpu time"]) < 60
    assert limits["Max core file size"] == limits["Max file size"] == "0"

    def files_kept_open() -> list[str]:
        names = [str(link.readlink()) for link in (folder / "fd").iterdir()]
        return [name for name in names if not re.match(r"/dev/null|socket:|pipe:|anon_inode:", name)]

    deadline = time.monotonic() + 5  # it closes the file when it hears that the reader is done
    while files_kept_open() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert files_kept_open() == []


def test_no_decoder_runs_that_is_not_on_the_list() -> None:
    """Sound that is G.722 in a WAV file, which is none of the codecs of recordings."""
    content = io.BytesIO()
    with av.open(content, "w", format="wav") as container:
        stream = container.add_stream("g722", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 3_200), np.int16), format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with ffmpeg.processes.lent() as process, pytest.raises(BadAudio, match="is coded as g722"):
        ffmpeg.FFmpegReader(process, io.BytesIO(content.getvalue()), Format("WAV", "wav"))


def test_a_process_ends_itself_where_it_computes_too_long() -> None:
    code = "import ffmpeg_child as child\nchild.limit_time(child.processor_seconds(), 0)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", code], cwd=ffmpeg.CHILD.parent, timeout=60, check=False)
    assert done.returncode == -signal.SIGXCPU


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to such a limit")
def test_a_process_has_no_more_memory_than_it_needs() -> None:
    code = "import ffmpeg_child as child\nchild.limit_memory()\nbytearray(child.MEMORY_BYTES)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ffmpeg.CHILD.parent, stderr=subprocess.PIPE, timeout=60, check=False
    )
    assert b"MemoryError" in done.stderr


ENDS = f"""
import os, signal, sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from encoded import encoded, tone
from audiocls.data import ffmpeg
from audiocls.data.audio import decode
content = encoded(tone(16_000), "m4a")
decode(content, 16_000)
print(ffmpeg.processes.idle[0].process.pid, flush=True)
if os.fork() == 0:
    assert ffmpeg.processes.idle == []
    length = len(decode(content, 16_000).waveform)
    print(ffmpeg.processes.idle[0].process.pid, length > 16_000, flush=True)
    os._exit(0)
os.wait()
length = len(decode(content, 16_000).waveform)
print(ffmpeg.processes.idle[0].process.pid, length > 16_000, flush=True)
HOW
"""


def has_ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    "how", ["", "os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "raise ValueError"]
)
def test_no_process_outlives_ours_and_a_forked_one_has_its_own(how: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", ENDS.replace("HOW", how)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    first, childs, again = done.stdout.splitlines()
    assert childs.endswith("True") and again == f"{first} True"
    numbers = {int(first), int(childs.split()[0])}
    assert len(numbers) == 2
    began = time.monotonic()
    while not all(map(has_ended, numbers)):
        assert time.monotonic() - began < 10
        time.sleep(0.05)


def test_ctrl_c_is_for_us_alone() -> None:
    decode(encoded(tone(RATE), "m4a"), RATE)
    child = process_of_last_decoding().process.pid
    assert os.getpgid(child) != os.getpgid(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(child, number)
    assert len(decode(encoded(tone(RATE), "m4a"), RATE).waveform) > RATE
    assert process_of_last_decoding().process.pid == child


def test_a_file_is_given_and_not_its_name(tmp_path: Path) -> None:
    """Whatever the name would mean to FFmpeg: an address, a list of files, a pipe."""
    content = encoded(tone(RATE), "m4a")
    for name in ("concat:a|b.m4a", "http:__127.0.0.1.m4a", "pipe:0.m4a", "-i.m4a", "subfile,,start,1,:a.m4a"):
        (tmp_path / name).write_bytes(content)
        assert len(decode(tmp_path / name, RATE).waveform) > RATE


def test_recordings_that_are_read_in_part_leave_their_processes_as_they_were() -> None:
    content = encoded(tone(60 * RATE), "m4a")
    alone = decode(content, RATE, 8_000).waveform
    threads = [threading.Thread(target=decode, args=(content, RATE, n)) for n in (1_000, 50_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(decode(content, RATE, 8_000).waveform, alone)
