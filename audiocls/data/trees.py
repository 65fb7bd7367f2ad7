"""What lies below a folder: its audio files, and all others with the reason why they are not read."""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from audiocls.data.audio import AUDIO_SUFFIXES
from audiocls.errors import InputOutputFailed

HIDDEN, NO_AUDIO, AGAIN = "hidden", "not audio", "links to a folder that was read"


@dataclass
class Tree:
    """The files and folders below a folder, named relative to it and sorted."""

    folder: Path
    audio: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)  # the visible ones
    others: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # why -> files


def walk(folder: Path) -> Tree:
    """Everything below `folder`; audio is told by its suffix.

    A link to a folder is followed, unless it leads to a folder above, or to one that was read in the same
    class: loops end. Raises InputOutputFailed where a folder cannot be read.
    """
    tree = Tree(folder)
    status = os.stat(folder)
    visited: dict[str, set[tuple[int, int]]] = defaultdict(set)  # below each class, or split and class
    pending = [("", frozenset([(status.st_dev, status.st_ino)]), False)]
    while pending:
        inside, above, is_hidden = pending.pop()
        for entry in entries_of(folder / inside, must_be=not is_hidden):
            path = os.path.join(inside, entry.name)
            hides = is_hidden or entry.name.startswith(".")
            if not entry.is_dir(follow_symlinks=False) and not (
                entry.is_symlink() and os.path.isdir(entry.path)
            ):
                if hides or not is_audio(entry.name):
                    tree.others[HIDDEN if hides else NO_AUDIO].append(path)
                else:
                    tree.audio.append(path)
                continue
            status = os.stat(entry.path)
            identity = (status.st_dev, status.st_ino)
            in_class = visited[os.sep.join(path.split(os.sep)[:2])]
            if identity in above or identity in in_class:
                tree.others[AGAIN].append(path)
                continue
            in_class.add(identity)
            if not hides:
                tree.folders.append(path)
            pending.append((path, above | {identity}, hides))
    for names in (tree.audio, tree.folders, *tree.others.values()):
        names.sort(key=lambda name: name.split(os.sep))
    return tree


def entries_of(folder: Path, *, must_be: bool = True) -> list[os.DirEntry]:
    """What is directly in a folder; nothing where it cannot be read and need not be."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        if must_be:
            raise InputOutputFailed(f"{folder} cannot be read: {error.strerror}.") from None
        return []


def is_audio(name: str) -> bool:
    return not name.startswith(".") and name.rpartition(".")[2].lower() in AUDIO_SUFFIXES
