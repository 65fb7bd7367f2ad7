"""What lies below a folder: its audio files, and all others with the reason why they are not read."""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from audiocls.data.signatures import AUDIO_SUFFIXES
from audiocls.errors import InputOutputFailed

HIDDEN, NO_AUDIO, AGAIN, RUN = "hidden", "not audio", "links to a folder that was read", "of a run"


@dataclass(eq=False)
class Tree:
    """The files and folders below a folder, named relative to it and sorted."""

    folder: Path
    audio: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)  # the visible ones
    others: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # why -> files


def walk(folder: Path) -> Tree:
    """Everything below `folder`, sorted; audio is told by its suffix.

    Links to folders are followed, after all other folders: each folder is read once, and loops end. Raises
    InputOutputFailed where a folder cannot be read.
    """
    tree = Tree(folder)
    read = {identity(folder)}
    pending: list[str] = [""]
    links: list[str] = []
    while pending or links:
        if pending:
            inside = pending.pop()
        else:
            links.sort(reverse=True, key=parts)
            inside = links.pop()
            if identity(folder / inside) in read:
                tree.others[AGAIN].append(inside)
                continue
            read.add(identity(folder / inside))
        tree.folders.append(inside)
        for entry in entries_of(folder / inside):
            path = os.path.join(inside, entry.name)
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder and os.path.exists(os.path.join(entry.path, "run.json")):
                tree.others[RUN] += files_below(folder, path)
            elif entry.name.startswith("."):
                tree.others[HIDDEN] += files_below(folder, path) if is_folder else [path]
            elif is_folder and (mine := identity(entry.path)) not in read:
                read.add(mine)
                pending.append(path)
            elif is_folder:  # read by a link from elsewhere
                tree.others[AGAIN].append(path)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                links.append(path)
            elif is_audio(entry.name):
                tree.audio.append(path)
            else:
                tree.others[NO_AUDIO].append(path)
    tree.folders.remove("")
    for names in (tree.audio, tree.folders, *tree.others.values()):
        names.sort(key=parts)
    return tree


def identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def files_below(folder: Path, path: str) -> list[str]:
    """The files in a folder that is passed over, which need not be readable."""
    below = os.walk(folder / path)
    return [
        os.path.relpath(os.path.join(parent, name), folder) for parent, _, names in below for name in names
    ]


def parts(file: str) -> tuple[str, ...]:
    return tuple(file.split(os.sep))


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
