"""What the C libraries that decode say by themselves: libmpg123 a few lines for each broken frame."""

import contextlib
import os
import threading
from typing import Self


class QuietStderr:
    """Sends descriptor 2, which C libraries write to, to nowhere while any thread is inside.

    Python's own sys.stderr shares it: what must be seen meanwhile goes to a copy made before (`os.dup`).
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
