# ruff: noqa: E402 - the path is set before anything of ours is imported
"""What all the drivers share: a case in a fork of its own, the count of the cases, the arguments.

A process start with its imports takes seconds, a case takes one: this process imports everything and
computes nothing, and each case is a fork of it, the leader of a process group.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch
from conftest import TEST_HOME

torch.set_num_threads(1)  # in a fork of a process with more, the first work that is shared would hang
TEST_HOME.cleanup()  # before a fork would do it, at its end


class Child:
    """Work in a fork, with descriptors, exit code, memory and time of its own."""

    def __init__(self, work: Callable[[], int]) -> None:
        self.files = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self.began = time.monotonic()
        self.code: int | None = None  # negative: the signal that ended it
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            for number, file in enumerate(self.files, start=1):
                os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            code = 1
            try:
                code = work()
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            ended, status, usage = os.wait4(self.pid, os.WNOHANG)
            if not ended:
                return False
            self.code = os.waitstatus_to_exitcode(status)
            self.seconds = time.monotonic() - self.began
            self.megabytes = usage.ru_maxrss / 1024  # at its peak
        return True

    def wait(self, most_seconds: float = 120) -> Self:
        """Wait for the end; where it does not come, the whole group is killed and the code is -9."""
        deadline = time.monotonic() + most_seconds
        while not self.poll():
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(0.003)
        return self

    def printed(self, number: int) -> bytes:
        """What it wrote to descriptor 1 or 2."""
        self.files[number - 1].seek(0)
        return self.files[number - 1].read()


@dataclass
class Tally:
    """The cases so far; prints a line for each that broke a promise, and the figures at the end."""

    what: str
    began: float = field(default_factory=time.monotonic)
    cases: int = 0
    failed: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def add(self, case: str, violations: list[str]) -> None:
        self.cases += 1
        if violations:
            self.failed += 1
            print(f"FAILED {case!r}: {'; '.join(violations)}"[:1500], flush=True)

    def end(self, more: str = "") -> int:
        """Print the figures; 1 where a promise was broken, else 0."""
        counts = ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))
        seconds = time.monotonic() - self.began
        print(f"{self.what}: {self.cases} cases, {self.failed} failed ({counts}){more}; {seconds:.0f} s")
        return 1 if self.failed or not self.cases else 0


def parse(description: str | None, count: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--count", type=int, default=count, help="cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: %(default)s)")
    parser.add_argument("--without-formats", action="store_true", help="as where PyAV is not installed")
    return parser.parse_args()
