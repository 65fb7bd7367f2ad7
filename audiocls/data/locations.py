"""Which file a table means by a name."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiocls.data.columns import clean, written_out
from audiocls.data.trees import Tree, entries_of, is_audio, parts
from audiocls.errors import MOST_EXAMPLES, UserError, named, number_of, shown
from audiocls.tables import Table, is_in_quotes


class Locations:
    """Finds the files that a table names: below a folder, or anywhere by an absolute path.

    A name counts as it stands, if there is such a file. Else, and noted with how often, a file is taken that
    has it but for white space or quote marks around it, slashes of the other system, the form of accents, or,
    in its last part, the case of letters or a suffix that the name lacks. In a `tree`, a name without folders
    also means a file anywhere in it, and one with folders the file whose whole path in the tree it ends with.
    """

    def __init__(self, folder: Path, tree: Tree | None = None, below: str | None = None) -> None:
        """
        Args:
            folder: where names begin.
            tree: what lies where the audio does: in that folder, or around it.
            below: the one folder of the tree in which it lies.
        """
        self.folder = folder
        self.root = tree.folder if tree else folder
        files = tree.audio if tree else []
        self.anywhere = by_name([file for file in files if below is None or parts(file)[0] == below])
        self.listed: dict[str, dict[str, list[str]]] = {}  # folder -> its files by name
        self.found: Counter[str] = Counter()  # how, other than by the name as it stands -> how many
        self.examples: dict[str, str] = {}

    def of_cells(self, table: Table, cells: Sequence[Any], notes: list[str]) -> list[str | None]:
        """The file that each row names in its cell, None where that is empty.

        Notes files that were found otherwise than as they stand. Raises UserError that names the row, where a
        cell names several, or cannot name a file.
        """
        files: list[str | None] = []
        for row, cell in enumerate(cells):
            try:
                name = name_in(cell)
                files.append(None if name is None else self.find(name))
            except ValueError as error:
                raise UserError(f"{table.where(row)} {error}.") from None
        for how, count in self.found.items():
            example = self.examples[how]
            notes.append(f"{table.file}: {number_of(count, 'file')} found {how}, such as {example}")
        self.found.clear()
        return files

    def find(self, name: str) -> str:
        """Where the file of that name is; where there is none, where it would be. Raises ValueError."""
        path = name if re.match(r"[A-Za-z]:[\\/]", name) else os.path.join(self.folder, name)
        spelled = name.strip().replace("\\", "/")
        spelled = spelled[1:-1] if is_in_quotes(spelled) else spelled
        for relative in (name, spelled):
            if ".." in relative and Path(os.path.normpath(relative)).parts[:1] == ("..",):
                raise ValueError(
                    f"names {name}, outside the folder {self.folder}: give an absolute path, or say with "
                    "--audio-folder where the audio lies"
                )
        if os.path.exists(path) and not os.path.isdir(path):
            return path
        if files := self.spelled_otherwise(spelled):
            return self.noted("spelled otherwise", name, files)
        if files := self.anywhere_else(spelled):
            return self.noted("by the end of the name", name, files)
        return path

    def spelled_otherwise(self, name: str) -> list[str]:
        """The files in the folder that a name means, whose last part is the same to `key_of`."""
        folder, last = os.path.split(os.path.join(self.folder, name))
        for form in ("NFC", "NFD"):
            place = unicodedata.normalize(form, folder)
            if place not in self.listed:
                entries = entries_of(Path(place), must_be=False)
                self.listed[place] = by_name([entry.path for entry in entries if not entry.is_dir()])
            if files := self.listed[place].get(key_of(last)):
                return files
        return []

    def anywhere_else(self, name: str) -> list[str]:
        """The files of the tree of that last part, if the name has no folders, or ends with all of theirs."""
        *above, last = map(key_of, name.split("/"))
        files = [file for file in self.anywhere.get(last, ()) if not above or ends_with(above, file)]
        if above and files:
            longest = max(len(parts(file)) for file in files)
            files = [file for file in files if len(parts(file)) == longest]
        return [os.path.join(self.root, file) for file in files]

    def noted(self, how: str, name: str, files: list[str]) -> str:
        if len(files) > 1:
            raise ValueError(f"names {name}, which may be {files[0]} or {files[1]}: name it in full")
        self.found[how] += 1
        self.examples.setdefault(how, f"{name} is {files[0]}")
        return files[0]


def note_repeated(table: Table, files: Sequence[str | None]) -> list[str]:
    """A note where files, or the same parts of them, are named more than once; none where each is once."""
    there = [file for file in files if file is not None]
    if len(set(there)) == len(there) and not any(os.curdir + os.sep in file for file in there):
        return []
    places: dict[str, list[str]] = defaultdict(list)
    for file, place in zip(files, table.places, strict=True):
        if file is not None:
            places[os.path.normpath(file)].append(str(place))
    repeated = [
        f"{file} in {table.place_is}s {named(where, MOST_EXAMPLES)}"
        for file, where in places.items()
        if len(where) > 1
    ]
    if not repeated:
        return []
    return [f"{table.file}: the same file more than once: {named(repeated, MOST_EXAMPLES, '; ')}"]


def ends_with(above: list[str], file: str) -> bool:
    """Whether these folders, as keys, end with all those that a file of the tree lies in."""
    folders = [key_of(folder) for folder in parts(file)[:-1]]
    return not folders or above[-len(folders) :] == folders


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


def name_in(cell: Any) -> str | None:
    """The file's name in a cell: text, a number, or an object with a path; None where it is empty.

    Raises ValueError for anything else, and for what can be no file's name.
    """
    cell = written_out(cell) or cell
    if isinstance(cell, dict):
        if "path" not in cell:
            raise ValueError(f"names no file: {shown(cell)} has no path")
        cell = cell["path"]
    if cell is None or str(cell).strip() in ("", "nan"):
        return None
    if not isinstance(cell, str | int | float):
        raise ValueError(f"names no file: {shown(cell)}")
    name = str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell)
    if "\0" in name:
        raise ValueError("holds a NUL")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise ValueError(f"names {name!r}, no file's name") from None
    return name
