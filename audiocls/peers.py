"""How ranks end together: each looks after the next one, and tells all others why it ends itself.

They meet in the store that torchrun keeps (without it, the first rank). A collective that waits for a rank
that is gone may wait for long, and does not say for whom; a process that looks after itself cannot be looked
after by what it waits for. So that is done by a thread beside the training.
"""

import contextlib
import json
import math
import os
import select
import signal
import threading
import time
from typing import NamedTuple

from torch.distributed import PrefixStore, TCPStore

from audiocls.errors import TRAINING_FAILED, Stopped, tell
from audiocls.signals import STOP_SIGNALS, StopSignal, stop_signals_blocked

BEAT_SECONDS = 0.5
JOIN_SECONDS = 600.0  # for the next rank's first sign of life: torch comes from a slow disk, say
# Without a further one a rank is lost: after this, or where something is wrong already.
LOST_SECONDS, LOST_IN_TROUBLE_SECONDS = 60.0, 8.0
KNOWN_SECONDS = 12.0  # within which the end of a rank is known to the others, where something is wrong
KEEP_STORE_SECONDS = 2.0  # for another rank to learn of the end
LEAVE_SECONDS = 10.0  # for a process to end by itself once it knows that it must
NOT_COME = "has not come: killed, or ended by what is printed above"


class Ended(NamedTuple):
    """Why all ranks end, and which of them said so first."""

    rank: int
    says: str
    exit_code: int


class PeerEnded(BaseException):
    """Another rank has failed: this one ends, too. Like Stopped, it passes every `except Exception`."""


def torchrun_keeps_store() -> bool:
    """Else the first rank does: without torchrun, and with some of its ways for machines to meet."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


class Peers:
    """The other ranks of a run, and what they leave for each other in the store.

    `beat R`    a number that rank R raises while it lives
    `trouble`   something is wrong, for one of them at least: from then on ranks are lost sooner
    `ended`     why all end, of the first rank that had to
    `knows R`   rank R has read that
    `done R`    rank R has done all its work, and waits for the others
    `gone R`    rank R asks the store nothing more
    """

    def __init__(self, store: TCPStore, name: str, rank: int, world_size: int, stop: StopSignal) -> None:
        """Nothing else of this process waits in `store`; `name` is that of this start of all ranks."""
        self.rank, self.world_size, self.stop = rank, world_size, stop
        self.lasting = PrefixStore("audiocls", store)  # as long as torchrun
        self.store = PrefixStore(name, self.lasting)
        # What starts ranks without torchrun may end before them.
        self.parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self.keeps_store = rank == 0 and not torchrun_keeps_store()
        # One of them has the word where the store is gone, and with it what they could agree on.
        self.has_word = rank == (0 if torchrun_keeps_store() else 1)
        self.ended: Ended | None = None
        self.is_in_trouble = self.is_over = self.is_leaving = False
        self.is_quiet = threading.Event()  # once the thread asks the store nothing more
        # A stop signal is written here even while the main thread is deep in a collective.
        self.woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        with stop_signals_blocked():
            self.thread = threading.Thread(target=self.watch, daemon=True)
            self.thread.start()

    def tell(self, says: str, exit_code: int) -> bool:
        """End all ranks. Prints the line, unless another rank was first: then it returns False."""
        mine = Ended(self.rank, says, exit_code)
        try:
            self.ended = Ended(*json.loads(self.store.compare_set("ended", "", json.dumps(mine))))
            is_first = self.ended == mine
        except RuntimeError:
            self.ended, is_first = mine, self.has_word
        if is_first:
            tell(says)
        return is_first

    def why_ended(self) -> Ended | None:
        """Why another rank has ended; None where all live on, or none is known to have after some time."""
        self.is_in_trouble = True
        deadline = time.monotonic() + KNOWN_SECONDS
        silent, before = set(range(self.world_size)) - {self.rank}, None
        while self.ended is None and silent and time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):  # the store is gone: `watch` finds that, too
                beats = {rank: self.beat_of(rank) for rank in silent}
                before = before or beats
                silent = {rank for rank in silent if beats[rank] == before[rank]}
            time.sleep(0.2)
        return self.ended

    def wait_for_all(self) -> None:
        """Until every rank has come here: then nobody needs anybody any more."""
        self.store.set(f"done {self.rank}", "")
        for rank in range(self.world_size):
            self.wait_for(f"done {rank}")
        self.is_over = True
        self.thread.join()
        self.let_others_leave("gone")

    def let_others_leave(self, word: str) -> None:
        """The rank that keeps the store leaves last, if the others have not been lost."""
        with contextlib.suppress(RuntimeError):
            self.store.set(f"{word} {self.rank}", "")
            for rank in range(self.world_size if self.keeps_store else 0):
                self.wait_for(f"{word} {rank}", KEEP_STORE_SECONDS)

    def wait_for(self, key: str, most_seconds: float = math.inf) -> None:
        """Until another rank has set a key of the store; for as long as that takes."""
        deadline = time.monotonic() + most_seconds
        while not self.store.check([key]) and time.monotonic() < deadline:
            time.sleep(0.05)

    def watch(self) -> None:
        """What the thread does: say that this rank lives, see that the next one does, learn of an end."""
        after = (self.rank + 1) % self.world_size
        beat, beat_at, last = b"", time.monotonic(), time.monotonic()
        number = 0
        while not self.is_over and self.ended is None:
            number += 1
            now = time.monotonic()
            if now - last > LOST_IN_TROUBLE_SECONDS / 2:  # it was this process that stood still
                beat_at = now
            last = now
            try:
                self.store.set(f"beat {self.rank}", str(number))
                if self.is_in_trouble:
                    self.store.set("trouble", "")
                elif self.store.check(["trouble"]):  # not `|=`: the main thread may set it meanwhile
                    self.is_in_trouble = True
                if self.store.check(["ended"]):
                    self.ended = Ended(*json.loads(self.store.get("ended")))
                    self.store.set(f"knows {self.rank}", "")
                elif self.parent not in (None, os.getppid()):
                    self.tell(f"error: rank {self.rank}: what started it has ended.", TRAINING_FAILED)
                elif self.beat_of(after) != beat or self.store.check([f"gone {after}"]):
                    beat, beat_at = self.beat_of(after), now
                elif now - beat_at > self.patience(has_joined=beat != b""):
                    silent = f"has given no sign of life for {now - beat_at:.0f} s: killed or stopped"
                    if beat == b"":
                        silent = NOT_COME
                    self.tell(f"error: rank {after} {silent}.", TRAINING_FAILED)
            except RuntimeError:
                gone = "the store is gone: rank 0, or the torchrun that keeps it, has ended"
                self.tell(f"error: rank {self.rank}: {gone}.", TRAINING_FAILED)
            is_woken = select.select([self.woken], [], [], BEAT_SECONDS if self.ended is None else 0)[0]
            if is_woken and set(os.read(self.woken, 64)) & set(STOP_SIGNALS):
                self.is_in_trouble = True
        self.is_quiet.set()
        if self.ended is not None:
            self.leave(self.ended.exit_code)

    def patience(self, *, has_joined: bool) -> float:
        """In seconds, with a next rank that gives no sign of life."""
        if self.is_in_trouble:
            return LOST_IN_TROUBLE_SECONDS
        return LOST_SECONDS if has_joined else JOIN_SECONDS

    def beat_of(self, rank: int) -> bytes:
        """Its latest sign of life; empty before its first."""
        key = f"beat {rank}"
        return self.store.get(key) if self.store.check([key]) else b""

    def leave(self, exit_code: int) -> None:
        """End this process: by itself, or where it hangs without it."""
        self.stop.exit_code = exit_code
        if not self.is_leaving:
            self.stop.interrupt(Stopped("stopped") if exit_code == 0 else PeerEnded())
        time.sleep(LEAVE_SECONDS)
        self.stop.leave_now()
