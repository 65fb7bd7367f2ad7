"""WAV files whose header says nothing of their sound, or only of a part of it.

A recorder that stops without going back to the header leaves sizes of 0; `cat a.wav b.wav` leaves a second
header in the middle. libsndfile believes the first header.
"""

import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from audiocls.data.ffmpeg import NEARLY_SECONDS

HEADER_BYTES = 12  # RIFF, the size of what follows, WAVE
MOST_CHUNKS = 2**13  # looked at
MOST_BEHIND = 100  # chunks behind the samples
MOST_BYTES = 2**32 - 2**10  # of samples, which a size of 4 bytes can say
UNSAID = (0, 2**31 - 1, 2**31, 2**32 - 1)  # sizes that programs write which do not know it
NEXT = re.compile(rb"RIFF....WAVE", re.DOTALL)
SEARCHED_BYTES = 2**20  # at a time
MOST_SEARCHED = 2**30
LEAST_SECONDS = 0.1  # behind the end, to be spoken of


class Spliced(io.RawIOBase):
    """Reads some bytes, and behind them stretches of a file, as one file."""

    def __init__(self, header: bytes, file: BinaryIO, stretches: list[tuple[int, int]]) -> None:
        self.header = header
        self.file = file
        self.stretches = stretches  # where each begins and ends in the file
        self.size = len(header) + sum(end - start for start, end in stretches)
        self.position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = b"".join(self.parts(len(buffer)))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)

    def parts(self, num_bytes: int) -> Iterator[bytes]:
        """The next bytes, piece by piece."""
        begins = self.position  # within what is still to be passed
        part = self.header[begins : begins + num_bytes]
        yield part
        num_bytes -= len(part)
        begins = max(0, begins - len(self.header))
        for start, end in self.stretches:
            if num_bytes and begins < end - start:
                self.file.seek(start + begins)
                part = self.file.read(min(num_bytes, end - start - begins))
                yield part
                num_bytes -= len(part)
            begins = max(0, begins - (end - start))


def repaired(file: BinaryIO, *, is_empty: bool = False) -> tuple[Spliced | None, list[str]]:
    """The file as it should have been written (None: as it is), and what is wrong with it.

    `is_empty` says that it seems to hold nothing: else a header that says the file's size is believed.
    """
    size = file.seek(0, io.SEEK_END)
    if not is_empty and says(file, 4) + 8 in (size, size - 1):
        return None, []
    format = b""  # the chunk of it, of the first recording
    stretches: list[tuple[int, int]] = []  # of samples
    notes: list[str] = []
    start = cut = 0
    is_mended = is_other = False
    for _ in range(MOST_CHUNKS):
        file.seek(start)
        name, length = file.read(4), says(file, start + 4)
        if name == b"RIFF":
            length = HEADER_BYTES - 8  # what follows is within it, or should be
        elif name == b"fmt ":
            file.seek(start)
            chunk = file.read(8 + min(length, 64))
            is_other = format not in (b"", chunk)
            format = format or chunk
        elif name == b"data":
            begin, claimed = start + 8, length
            is_unsaid = claimed in UNSAID and not (claimed == 0 and chunks_follow(file, begin, size))
            end = next_recording(file, begin, size) if is_unsaid else min(begin + claimed, size)
            is_mended |= claimed == 0 and end > begin
            cut = claimed - (end - begin) if not is_unsaid else 0
            stretches.append((begin, end))
            length = end - begin
        elif not (name.strip(b" ").isalnum() and start + 8 + length <= size):  # no chunk
            # A recording of odd length may lack the byte that fills its chunk up; zeros may lie between two.
            start = next_recording(file, max(0, start - 1), size)
            if start == size:
                break
            continue
        if is_other:
            break
        start += 8 + length + (length % 2 if name != b"data" or end < size else 0)
    else:
        notes.append(f"what follows its first {MOST_CHUNKS:,} chunks is not read")
    if not format or not stretches:
        return None, []
    bytes_a_second = max(1, int.from_bytes(format[16:20], "little"))
    if is_mended:
        notes.append("its header says that it is empty: all that follows is read")
    if len(stretches) > 1:
        notes.append(f"{len(stretches)} recordings are joined in its file: all are read")
    if is_other:
        notes.append("a recording of another format follows in its file, which is not read")
    seconds = sum(end - begin for begin, end in stretches) / bytes_a_second
    if cut > NEARLY_SECONDS * bytes_a_second:
        notes.append(f"cut off: {seconds:.1f} s of its {seconds + cut / bytes_a_second:.1f} s are there")
    last = stretches[-1][1]
    is_longer = size - last > LEAST_SECONDS * bytes_a_second
    if is_longer and not is_other and not chunks_follow(file, last, size):
        notes.append(f"{size - last:,} bytes lie behind its end, which are not read")
    if not (is_mended or is_other) and len(stretches) == 1:
        return None, notes
    num_bytes = min(sum(end - begin for begin, end in stretches), MOST_BYTES)
    riff = b"RIFF" + size_in_4(num_bytes + len(format) + 12) + b"WAVE"
    return Spliced(riff + format + b"data" + size_in_4(num_bytes), file, stretches), notes


def size_in_4(value: int) -> bytes:
    return value.to_bytes(4, "little")


def says(file: BinaryIO, place: int) -> int:
    """The size that is written there; 0 at the file's end."""
    file.seek(place)
    return int.from_bytes(file.read(4), "little")


def next_recording(file: BinaryIO, start: int, size: int) -> int:
    """Where the next recording begins in the file, or its end."""
    last = min(size, start + MOST_SEARCHED)
    while start < last:
        file.seek(start)
        content = file.read(SEARCHED_BYTES)
        if found := NEXT.search(content):
            return start + found.start()
        if start + len(content) >= size:
            break
        start += len(content) - HEADER_BYTES  # it may begin within this part
    return size


def chunks_follow(file: BinaryIO, start: int, size: int) -> bool:
    """Whether what follows is chunks, exactly to the file's end."""
    start += start % 2
    for _ in range(MOST_BEHIND):
        if start >= size:
            break
        file.seek(start)
        if not file.read(4).strip(b" ").isalnum():
            return False
        length = says(file, start + 4)
        start += 8 + length + length % 2
    return start in (size, size + 1)
