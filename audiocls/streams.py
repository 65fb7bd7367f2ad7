"""Standard output and standard error: what is said there, and what is kept from them."""

import contextlib
import os
import sys
import threading
from typing import Self, TextIO

from audiocls.errors import one_line


def say(text: str, file: TextIO | None = None) -> None:
    """A line on standard output, or on `file`, above the progress bar where there is one."""
    from tqdm import tqdm

    file = file or sys.stdout
    tqdm.write(one_line(text), file=file)
    file.flush()


class QuietStderr:
    """Silences what C libraries write to file descriptor 2 while any thread is inside a `with` block of it.

    libmpg123, for one, writes a few lines for each broken frame. Python's sys.stderr shares the descriptor:
    what must be seen meanwhile is written to a copy made before (`os.dup`).
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.num_inside = 0
        self.real: int | None = None  # where descriptor 2 led, while it leads nowhere

    def __enter__(self) -> Self:
        with self.lock:
            self.num_inside += 1
            if self.num_inside == 1:
                with contextlib.suppress(OSError):  # closed already: nothing to keep quiet
                    self.real = os.dup(2)
                    nowhere = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nowhere, 2)
                    os.close(nowhere)
        return self

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.num_inside -= 1
            if self.num_inside == 0 and self.real is not None:
                os.dup2(self.real, 2)
                os.close(self.real)
                self.real = None


quiet_stderr = QuietStderr()
