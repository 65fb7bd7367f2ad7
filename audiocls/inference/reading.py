"""Recordings -> their pieces, in order; for a GPU, threads read them ahead of their use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Self

import torch

from audiocls.devices import available_cores
from audiocls.inference.forms import Recording, Segments
from audiocls.inference.recordings import Piece

MOST_THREADS = 8
RECORDINGS_AHEAD = 16  # being read, or read and not yet used
CHUNK_SAMPLES = 2**20  # of a recording's windows read ahead: a minute, 4 MB
CHUNK_PIECES = 64

Chunks = Iterator[list[Piece]]  # of one recording


class Reader:
    """The pieces of `recordings` in their order, to iterate over once; its threads end with its context.

    Without threads a recording is read when its pieces are asked for. With them up to RECORDINGS_AHEAD are
    read before, of each no more than a chunk of its windows. Whoever iterates takes the recordings, and gets
    their errors in the recordings' order.
    """

    def __init__(
        self,
        recordings: Iterable[Recording],
        pieces_of: Callable[[Recording], Iterator[Piece]],
        num_threads: int = 0,
    ) -> None:
        self.recordings = recordings
        self.pieces_of = pieces_of
        # Of each recording its chunks to come, the next one of them, and whether it holds several clips.
        self.ahead: deque[tuple[Chunks, Future, bool]] = deque()
        self.threads = None
        if num_threads:
            # One of torch's threads in each: resampling one recording is too small to share (data/cache.py).
            self.threads = ThreadPoolExecutor(num_threads, "read", torch.set_num_threads, (1,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.threads:
            self.threads.shutdown(cancel_futures=True)
            torch.set_num_threads(torch.get_num_threads())  # in threads to come, too, as it is in this one

    def __iter__(self) -> Iterator[Piece]:
        if self.threads is None:
            for recording in self.recordings:
                yield from self.pieces_of(recording)
            return
        for begun in self.begun(self.threads):
            self.ahead.append(begun)
            if len(self.ahead) == RECORDINGS_AHEAD:
                yield from self.first(self.threads)
        while self.ahead:
            yield from self.first(self.threads)

    def begun(self, threads: ThreadPoolExecutor) -> Iterator[tuple[Chunks, Future, bool]]:
        """Each recording, the reading of its first chunk begun."""
        try:
            for recording in self.recordings:
                chunks = in_lists(self.pieces_of(recording), CHUNK_PIECES, CHUNK_SAMPLES)
                yield chunks, threads.submit(next, chunks), isinstance(recording, Segments)
        except Exception as error:  # of the caller's own generator: to be raised when its turn comes
            failed: Future = Future()
            failed.set_exception(error)
            yield iter(()), failed, False

    def first(self, threads: ThreadPoolExecutor) -> Iterator[Piece]:
        """The pieces of the first recording ahead."""
        is_last = False
        while not is_last:
            chunks, job, holds_several = self.ahead[0]
            chunk = job.result()
            # No window: the whole recording comes last. Several clips end with the chunk that is empty.
            is_last = not chunk if holds_several else chunk[-1][0].start is None
            if is_last:
                self.ahead.popleft()
            else:
                self.ahead[0] = chunks, threads.submit(next, chunks, []), holds_several
            yield from chunk

    def rest(self) -> None:
        """Wait until no thread reads: while one does, what is written to standard error may be lost."""
        wait([job for _, job, _ in self.ahead])


def reading_threads() -> int:
    """How many threads read, where the CPU has nothing else to compute."""
    return min(available_cores(), MOST_THREADS)


def in_lists(pieces: Iterable[Piece], most: int, most_samples: int) -> Iterator[list[Piece]]:
    """The pieces in lists of `most`, fewer where they are long: one ends with the piece that fills it."""
    held: list[Piece] = []
    num_samples = 0
    for piece in pieces:
        held.append(piece)
        num_samples += 0 if piece[1] is None else len(piece[1])
        if len(held) >= most or num_samples >= most_samples:
            yield held
            held, num_samples = [], 0
    if held:
        yield held
