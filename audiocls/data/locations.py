"""Which file a table means by a name."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiocls.data.columns import clean, shown, written_out
from audiocls.data.trees import Tree, entries_of, is_audio
from audiocls.errors import UserError, named
from audiocls.tables import Table

MOST_NAMED = 3


class Locations:
    """Finds the files that a table names: below a folder, or anywhere by an absolute path.

    A name counts as it stands, if there is such a file. Else, and noted with how often, a file is taken that
    has it but for white space around it, slashes of the other system, the form of accents, the case of
    letters, or the suffix; and in a `tree`, one anywhere below the folder that has its last part.
    """

    def __init__(self, folder: Path, tree: Tree | None = None) -> None:
        """`tree`: what is below `folder`, where a file may lie anywhere in it."""
        self.folder = folder
        self.anywhere = by_name([os.path.join(folder, file) for file in tree.audio] if tree else [])
        self.listed: dict[str, dict[str, list[str]]] = {}  # folder -> its files by name
        self.found: Counter[str] = Counter()  # how, other than by the name as it stands -> how many
        self.examples: dict[str, str] = {}

    def of_column(self, table: Table, column: str, notes: list[str]) -> list[str]:
        """The file of each row, with notes of those found otherwise than as they stand, and of repeated ones.

        Raises UserError that names the row, where it names none or several.
        """
        files = []
        for row, cell in enumerate(table.cells(column)):
            try:
                files.append(self.find(name_in(cell)))
            except ValueError as error:
                raise UserError(f"{table.where(row)} {error}.") from None
        for how, count in self.found.items():
            notes.append(f"{table.name}: {count} files are found {how}, as {self.examples[how]}")
        notes += note_repeated(table, files)
        return files

    def find(self, name: str) -> str:
        """Where the file of that name is; where there is none, where it would be. Raises ValueError."""
        path = name if re.match(r"[A-Za-z]:[\\/]", name) else os.path.join(self.folder, name)
        spelled = name.strip().replace("\\", "/")
        for relative in (name, spelled):
            if ".." in relative and Path(os.path.normpath(relative)).parts[:1] == ("..",):
                raise ValueError(
                    f"names {name}, outside the folder {self.folder}: give an absolute path, or say with "
                    "--audio-folder where the audio lies"
                )
        if os.path.exists(path):
            return path
        folder, last = os.path.split(os.path.join(self.folder, spelled))
        for form in (unicodedata.normalize(form, folder) for form in ("NFC", "NFD")):
            if form not in self.listed:
                self.listed[form] = by_name([entry.path for entry in entries_of(Path(form), must_be=False)])
            if files := self.listed[form].get(key_of(last)):
                return self.noted("spelled otherwise", name, files)
        if files := self.anywhere.get(key_of(last)):
            return self.noted("by the last part", name, files)
        return path

    def noted(self, how: str, name: str, files: list[str]) -> str:
        if len(files) > 1:
            raise ValueError(f"names {name}, which may be {files[0]} or {files[1]}")
        self.found[how] += 1
        self.examples.setdefault(how, f"{name} is {files[0]}")
        return files[0]


def note_repeated(table: Table, files: Sequence[str]) -> list[str]:
    """A note where files are named more than once; none where each is named once."""
    if len(set(files)) == len(files) and not any(os.curdir + os.sep in file for file in files):
        return []
    places: dict[str, list[str]] = defaultdict(list)
    for file, place in zip(files, table.places, strict=True):
        places[os.path.normpath(file)].append(str(place))
    repeated = [
        f"{file} in {table.place_is}s {named(where, MOST_NAMED)}"
        for file, where in places.items()
        if len(where) > 1
    ]
    if not repeated:
        return []
    return [f"{table.name}: the same file more than once: {named(repeated, MOST_NAMED, '; ')}"]


def by_name(files: list[str]) -> dict[str, list[str]]:
    """The files under their last names, and audio also under those without the suffix."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in files:
        last = os.path.basename(file)
        for name in {last, last.rpartition(".")[0] if is_audio(last) else last}:
            found[key_of(name)].append(file)
    return found


def key_of(name: str) -> str:
    """A name as names are compared: whatever the case of its letters and the form of its accents."""
    return clean(name).casefold()


def name_in(cell: Any) -> str:
    """The file's name in a cell: text, a number, or an object with a path. Raises ValueError."""
    cell = written_out(cell) or cell
    if isinstance(cell, dict):
        if not cell.get("path"):
            raise ValueError(f"names no file: {shown(cell)} has no path")
        cell = cell["path"]
    if cell is None or str(cell).strip() in ("", "nan"):
        raise ValueError("names no file")
    if not isinstance(cell, str | int | float):
        raise ValueError(f"names no file: {shown(cell)}")
    name = str(cell)
    if "\0" in name:
        raise ValueError("holds a NUL")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise ValueError(f"names {name!r}, no file's name") from None
    return name
