"""What the command line names -> paths of recordings."""

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from audiocls.data.clips import account
from audiocls.data.trees import walk
from audiocls.errors import UserError, number_of, tell


def expand(inputs: Sequence[str]) -> Iterable[str]:
    """Files as typed, for each folder the audio in it, joined with the folder as typed, and for - the paths
    that standard input lists, as they come. A list, unless there is a -.

    Raises UserError for a folder without audio.
    """
    parts = [paths_from(sys.stdin.buffer) if name == "-" else files_of(name) for name in inputs]
    paths = itertools.chain.from_iterable(parts)
    return paths if "-" in inputs else list(paths)


def files_of(name: str) -> list[str]:
    if not os.path.isdir(name):
        return [name]
    tree = walk(Path(name))
    total = len(tree.audio) + sum(map(len, tree.others.values()))
    said = account(name, number_of(total, "file"), {"": len(tree.audio)}, tree.others)
    if not tree.audio:
        raise UserError(f"The folder {name} holds no audio files. ({said})")
    if tree.others:
        tell(f"note: {said}")
    return [str(tree.folder / file) for file in tree.audio]


def paths_from(file: BinaryIO) -> Iterator[str]:
    """Paths as they come: ended by NULs where the first ones are (`find -print0`), else by newlines."""
    separator, rest = b"", b""
    while piece := file.read1(2**16):  # type: ignore[attr-defined]
        rest += piece
        separator = separator or (b"\0" if b"\0" in rest else b"\n" if b"\n" in rest else b"")
        *complete, rest = rest.split(separator) if separator else [rest]
        yield from paths_in(complete, separator)
    yield from paths_in([rest], separator)


def paths_in(names: list[bytes], separator: bytes) -> Iterator[str]:
    ending = b"" if separator == b"\0" else b"\r"  # of a list that was written on Windows
    return (os.fsdecode(path) for name in names if (path := name.removesuffix(ending)))
