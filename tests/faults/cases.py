"""What all the drivers share: a case in a fork of its own, the count of the cases, the arguments."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO


def fork(work: Callable[[], int], stdout: IO[bytes], stderr: IO[bytes]) -> int:
    """Do `work` in a fork that writes to these files and ends with its result; returns the fork's number."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        code = 1
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return pid


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
    return parser.parse_args()
