"""A manifest: the rows of a table, and which file each of them means."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiocls.errors import InputOutputFailed, UserError, named
from audiocls.storage import open_regular

MISSING = "\0missing"  # stands for a cell that a row of a csv lacks
MOST_NAMED = 3

Row = dict[str, Any]


def read_manifest(path: Path) -> list[Row]:
    """The rows of a .csv, .tsv or .jsonl file; a byte order mark and any line ends are fine.

    Raises UserError where the file is no such table, naming the first row that does not fit.
    """
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".jsonl":
                rows = [json.loads(line) for line in file if line.strip()]
            else:
                separator = "\t" if path.suffix.lower() == ".tsv" else ","
                rows = list(csv.DictReader(file, delimiter=separator, strict=True, restval=MISSING))
    except OSError as error:
        raise InputOutputFailed(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{path} is not a valid {path.suffix[1:]} file: {error}.") from None
    for number, row in enumerate(rows, start=1):
        # csv puts cells beyond the header under None.
        if not isinstance(row, dict) or None in row or MISSING in row.values():
            raise UserError(f"{path}: row {number} does not have one cell for each column.")
        if any("\0" in cell for cell in row.values() if isinstance(cell, str)):
            raise UserError(f"{path}: row {number} holds a NUL.")
    return rows


def clip_files(manifest: Path, rows: Sequence[Row], column: str) -> list[Path]:
    """The file that each row names: beside or below the manifest, or anywhere by an absolute path.

    A manifest may come from elsewhere: `..` does not lead it out of its folder. Links are followed, by which
    the folder's owner keeps recordings on another disk. Raises UserError that names the row.
    """
    files = []
    for number, row in enumerate(rows, start=1):
        name = str(row.get(column) or "")
        if not name:
            raise UserError(f"{manifest}: row {number} names no file in the column {column!r}.")
        try:
            os.fsencode(name)
        except UnicodeEncodeError:
            raise UserError(f"{manifest}: row {number} names {name!r}, no file's name.") from None
        if Path(os.path.normpath(name)).parts[:1] == ("..",):
            raise UserError(
                f"{manifest}: row {number} names {name}, outside the manifest's folder: move the "
                "manifest up, or give an absolute path."
            )
        files.append(manifest.parent / name)  # an absolute path replaces the folder
    return files


def note_repeated(manifest: Path, files: Sequence[Path]) -> list[str]:
    """A note where files are named more than once; none where each is named once."""
    rows: dict[str, list[int]] = {}
    for number, file in enumerate(files, start=1):
        rows.setdefault(os.path.normpath(file), []).append(number)
    repeated = [
        f"{file} in rows {', '.join(map(str, numbers[:MOST_NAMED]))}"
        for file, numbers in rows.items()
        if len(numbers) > 1
    ]
    if not repeated:
        return []
    return [f"{manifest}: the same file more than once: {named(repeated, MOST_NAMED, '; ')}"]
