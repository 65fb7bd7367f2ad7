"""FFmpeg, which PyAV brings: it decodes in processes of its own, that end without harm and are used again."""

import atexit
import contextlib
import importlib.metadata
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from audiocls.data.limits import BadAudio, UnreadableAudio
from audiocls.data.signatures import Format

CHILD = Path(__file__).with_name("ffmpeg_child.py")
NEARLY_SECONDS = 0.1  # by which a header may be wrong without a word
LONGEST_WAIT_SECONDS = 120.0  # for one answer, of a process that may be starved; it counts its own time
TO_INSTALL = "pip install 'av>=14', which audiocls[formats] brings"


@cache
def version() -> str | None:
    """PyAV's, where it is installed and new enough."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
        found = importlib.metadata.version("av")
        return found if int(found.partition(".")[0]) >= 14 else None
    return None


def is_installed() -> bool:
    return version() is not None


class Process:
    """One process that decodes a recording at a time (ffmpeg_child.py)."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        with theirs:
            # -P: nothing is imported from the folder that the file lies in.
            command = [sys.executable, "-P", str(CHILD), str(theirs.fileno())]
            self.process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for us
            )
        self.socket.settimeout(LONGEST_WAIT_SECONDS)
        self.answers = self.socket.makefile("rb")

    def ask(self, request: dict[str, Any], descriptors: tuple[int, ...] = ()) -> Any:
        """The answer: bytes, or a value from JSON. Raises BadAudio; the process may be no more then."""
        try:
            socket.send_fds(self.socket, [json.dumps(request).encode()], descriptors)
            kind, length = struct.unpack("<cI", self.answers.read(5))
            content = self.answers.read(length)
        except TimeoutError:
            self.end()
            raise UnreadableAudio(f"gave nothing for {LONGEST_WAIT_SECONDS:g} s") from None
        except (OSError, struct.error):
            raise self.loss() from None
        except BaseException:  # a signal's: the answer is still to come, and would be taken for another's
            self.end()
            raise
        if kind == b"E":
            raise BadAudio(json.loads(content))
        return content if kind == b"B" else json.loads(content)

    def loss(self) -> BadAudio:
        """How the process ended: by the recording, or, as far as can be told, by something else."""
        self.answers.close()
        self.socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        code = self.process.poll()
        self.end()
        if code == -signal.SIGXCPU:
            return BadAudio("takes too long to decode")
        if code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL):
            return BadAudio(f"does not decode: it ends FFmpeg's process ({signal.strsignal(-code)})")
        how = "answers no more" if code is None else f"ended with {code}"
        return UnreadableAudio(f"cannot be read: FFmpeg's process {how}")

    @property
    def is_alive(self) -> bool:
        return not self.answers.closed and self.process.poll() is None

    def end(self) -> None:
        self.answers.close()
        self.socket.close()
        self.process.kill()
        self.process.wait()


class Processes:
    """Those that are idle. A process that was forked has none of its parent's."""

    def __init__(self) -> None:
        self.idle: list[Process] = []  # shared by threads: each is taken and put back at once, without a lock
        os.register_at_fork(after_in_child=self.forget)
        atexit.register(self.end)

    @contextlib.contextmanager
    def lent(self) -> Iterator[Process]:
        one = self.living() or Process()
        try:
            yield one
        finally:
            if one.is_alive:
                with contextlib.suppress(BadAudio):
                    one.ask({"close": True})
                    self.idle.append(one)

    def living(self) -> Process | None:
        """An idle one that nobody has ended."""
        with contextlib.suppress(IndexError):  # there is none
            while True:
                one = self.idle.pop()
                if one.is_alive:
                    return one
                one.end()
        return None

    def forget(self) -> None:
        for one in self.idle:
            one.socket.close()
        self.idle = []

    def end(self) -> None:
        while self.idle:
            self.idle.pop().end()


processes = Processes()


class FFmpegReader:
    """A recording that FFmpeg decodes: a Reader, as in data/decoders.py."""

    is_length_sure = False
    position = 0  # in frames
    has_ended = False

    def __init__(self, process: Process, file: BinaryIO, format: Format) -> None:
        self.process = process
        with contextlib.ExitStack() as stack:
            if not has_descriptor(file):  # what is in memory
                content, file = file, stack.enter_context(tempfile.TemporaryFile())
                content.seek(0)
                while part := content.read(2**20):
                    file.write(part)
                file.flush()
            opened = process.ask({"demuxer": format.demuxer}, (file.fileno(),))
        self.rate, self.channels, self.claimed = opened

    def read(self, frames: int) -> np.ndarray:
        content = self.process.ask({"frames": frames})
        block = np.frombuffer(content, np.float32).reshape(-1, self.channels)
        self.position += len(block)
        self.has_ended = len(block) < frames
        return block

    @property
    def notes(self) -> list[str]:
        seconds, claimed = self.position / self.rate, self.claimed / self.rate
        lacks = self.has_ended and seconds < claimed - NEARLY_SECONDS
        return ([damage_note(seconds, claimed)] if lacks else []) + self.packet_notes

    @property
    def packet_notes(self) -> list[str]:
        """What FFmpeg met with, as far as it has read."""
        return self.process.ask({})


def damage_note(seconds: float, claimed: float) -> str:
    """How much is read of a damaged recording, or, where that is nearly all, how much is lost."""
    lost = claimed - seconds
    if 0 <= lost < 0.0005:
        return f"damaged: all of its {claimed:.1f} s are read"
    if 0 <= lost < 0.1 * claimed:
        return f"damaged: {1000 * lost:.0f} ms of its {claimed:.1f} s are lost"
    return f"damaged: {seconds:.1f} s{f' of its {claimed:.1f} s' if claimed else ''} are read"


def has_descriptor(file: BinaryIO) -> bool:
    try:
        return file.fileno() >= 0
    except OSError:
        return False
