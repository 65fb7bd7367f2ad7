"""What the columns of a table are, and what their cells say: label, group, split."""

import ast
import contextlib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from audiocls.errors import UserError, named, number_of, shown
from audiocls.tables import Table, is_in_quotes

# The usual names of columns, as `plain` writes them; the guide's come first, and are taken before others.
USUAL_COLUMNS = {
    "audio": (
        "audio path file filename filepath fname audiopath audiofile audiofilename audiofilepath "
        "wav wavfile wavpath wavfilename slicefilename recording sound soundfile"
    ).split(),
    "label": (
        "intentclass label labels labelname labelid class classname classlabel classid category "
        "categoryname categoryid target targetname"
    ).split(),
    "split": "split set subset partition".split(),
}
EXPECTED_COLUMNS = ("audio", "path", "intent_class", "label", "split")  # taken without a word
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
NO_LABEL = ("", "-1", "nan", "null", "<na>", "#n/a")  # in small letters
MAY_BE_NO_LABEL = ("none", "na", "n/a")  # a class or an empty cell: taken for classes, with a note
MOST_SPLITS = 50  # different values of a column that may be names of splits
INVISIBLE = "\ufeff\u200b"  # beside white space: left by editors at a cell's ends


@dataclass(frozen=True)
class Columns:
    """The columns named on the command line, and where the audio that a table names lies."""

    audio: str | None = None
    label: str | None = None
    group: str | None = None
    split: str | None = None
    audio_folder: str | None = None
    may_cut: bool = True  # whether columns may say which part of its recording a row is
    are_optional: bool = False  # whether a table need not have those: one that is only evaluated on

    @classmethod
    def named_in(cls, config: Any) -> "Columns":
        """Those of a TrainConfig or an InferConfig, which has no group."""
        return cls(
            config.audio_column,
            config.label_column,
            getattr(config, "group_column", None),
            config.split_column,
            config.audio_folder,
            config.segments == "auto",
        )

    @property
    def flags(self) -> list[str]:
        """The flags that were given."""
        flags = ("audio", "label", "group", "split", "audio_folder")
        given = [name for name in flags if getattr(self, name) is not None]
        return [f"--{name}-column" if name != "audio_folder" else "--audio-folder" for name in given]


def clean(text: str) -> str:
    """Text as it is compared: accents composed (Unicode's NFC), no white space around it."""
    return unicodedata.normalize("NFC", text).strip().strip(INVISIBLE).strip()


def plain(name: str) -> str:
    """A column's name without case, spaces and punctuation."""
    return re.sub(r"[\W_]+", "", name.casefold())


def split_meant(name: str) -> str | None:
    """The split that a name is one for, of SPLIT_NAMES; None for any other name."""
    said = clean(name).casefold()
    return next((split for split, names in SPLIT_NAMES.items() if said in names), None)


# Which column is what


def find_column(kind: str, asked: str | None, table: Table, notes: list[str]) -> str:
    """The column of this kind: the one asked for, else the one that has a usual name, which is noted.

    Of several it is the guide's, or, where they say the same of every row, the one in words. Raises
    UserError where none or several may be meant.
    """
    if asked is not None:
        return asked_column(kind, asked, table)
    usual = USUAL_COLUMNS[kind]
    by_name = [column for column in table.columns if plain(column) in usual]
    if kind == "audio":
        by_type = table.audio_columns
        found = table.declared_audio or list(dict.fromkeys(by_name + by_type))
    else:
        by_type = [column for column in table.class_names if plain(column) not in USUAL_COLUMNS["split"]]
        found = by_name or by_type
    found = [column for column in by_name if column in by_type] or found
    guides = [column for column in found if plain(column) == usual[0]]
    others: list[str] = []  # that mean the same
    if len(guides) == 1:
        found, others = guides, [column for column in found if column not in guides]
    elif len(found) > 1 and kind != "audio" and say_the_same([table.cells(column) for column in found]):
        found.sort(key=lambda column: all(map(is_number, set(map(str, table.cells(column))))))
        found, others = found[:1], found[1:]
    if len(found) == 1:
        rather = f", not {named([repr(other) for other in others])}" if others else ""
        if found[0] not in EXPECTED_COLUMNS or others:
            notes.append(f"{table.name}: the column {found[0]!r} is taken for the {kind}{rather}")
        return found[0]
    which = (
        f"several columns that may be the {kind}: {named([repr(column) for column in found])}"
        if found
        else f"no column that is obviously the {kind}"
    )
    raise UserError(f"{table.file} has {which}. {name_it(kind, table)}")


def asked_column(kind: str, asked: str, table: Table) -> str:
    """The column of that name, or of that name but for case, spaces and punctuation. Raises UserError."""
    if column := column_called(asked, table):
        return column
    raise UserError(f"{table.file} has no column {asked!r}. {name_it(kind, table)}")


def column_called(name: str, table: Table) -> str | None:
    alike = [column for column in table.columns if plain(column) == plain(name)]
    return name if name in table.columns else alike[0] if len(alike) == 1 else None


def has_labels(table: Table, columns: Columns) -> bool:
    """Whether a table has a column that may be the label."""
    usual = [column for column in table.columns if plain(column) in USUAL_COLUMNS["label"]]
    return bool(usual or table.class_names or (columns.label and column_called(columns.label, table)))


def columns_of(columns: Columns, table: Table, notes: list[str]) -> Columns:
    """The columns asked for; of a table that need not have all of them, those that it has."""
    asked = {"label": columns.label, "group": columns.group, "split": columns.split}
    lacking = [kind for kind, name in asked.items() if name is not None and not column_called(name, table)]
    if not columns.are_optional or not lacking:
        return columns
    notes.append(f"{table.file}: read without the columns {named([repr(asked[kind]) for kind in lacking])}")
    nothing: dict[str, Any] = dict.fromkeys(lacking)
    return replace(columns, **nothing)


def name_it(kind: str, table: Table) -> str:
    said = f"It has: {', '.join(table.columns)}. Name the right one with --{kind}-column."
    looks_like_data = any(re.search(r"\.(wav|mp3|flac|ogg)$", column.lower()) for column in table.columns)
    return said + (" (Its first line must be the names of the columns.)" if looks_like_data else "")


def find_split_column(
    asked: str | None, taken: Sequence[str | None], table: Table, notes: list[str]
) -> str | None:
    """The column that says which split a row is in: `split`, or another usual name over names of splits."""
    if asked is not None:
        return asked_column("split", asked, table)
    usual = [c for c in table.columns if plain(c) in USUAL_COLUMNS["split"] and c not in taken]
    found = [column for column in usual if holds_splits(table.cells(column))]
    found = found or [column for column in usual if plain(column) == "split"]
    if len(found) > 1 and not say_the_same([table.cells(column) for column in found]):
        raise UserError(
            f"{table.file} has several columns that may divide it: {named([repr(c) for c in found])}. "
            "Name the right one with --split-column."
        )
    if found and found[0] not in EXPECTED_COLUMNS:
        notes.append(f"{table.name}: the column {found[0]!r} is taken for the split")
    return found[0] if found else None


def holds_splits(cells: Sequence[Any]) -> bool:
    """Whether these are names of splits: all of them, or train and another one among others."""
    values: set[str] = set()
    for cell in cells:
        if cell is not None and str(cell) not in values:
            values.add(str(cell))
            if len(values) > MOST_SPLITS:
                return False
    meant = {split_meant(value) for value in values if clean(value).casefold() not in NO_LABEL}
    return bool(meant) and (None not in meant or (len(meant - {None}) > 1 and "train" in meant))


def say_the_same(columns: Sequence[Sequence[Any]]) -> bool:
    """Whether each value of one column always stands beside the same value of the others."""
    try:
        together = len(set(zip(*columns, strict=True)))
        return all(len(set(column)) == together for column in columns)
    except TypeError:  # lists or objects
        return False


def is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def note_unused(table: Table, used: Sequence[str | None], notes: list[str]) -> None:
    """Name the columns that are not used, and those of them that divide the rows."""
    unused = [column for column in table.columns if column not in used]
    if not unused:
        return
    notes.append(f"{table.name}: columns not used: {named(unused)}")
    of_text = filter(table.is_text, unused)
    if dividing := [column for column in of_text if holds_splits(table.cells(column))]:
        notes.append(f"{table.name}: {named(dividing)} may say which rows are to test: see --split-column")


# What cells say


def texts(table: Table, column: str, kind: str, notes: list[str]) -> list[str | None]:
    """A column's cells as text, in one normal form; None for what means nothing: empty, null, NaN, -1.

    Raises UserError where a cell is no text or number.
    """
    if column in table.class_names:  # where "null" is a class, if it is one of the names
        return [None if name is None else clean(name) for name in table.cells(column)]
    made: list[str | None] = []
    known: dict[tuple[type, Any], str | None] = {}
    changed: Counter[str] = Counter()
    doubtful: Counter[str] = Counter()
    for row, cell in enumerate(table.cells(column)):
        try:
            key = (type(cell), cell)
            text = known[key]
        except (KeyError, TypeError):
            text = cell_text(cell, f"{table.where(row)}: its {kind} in {column!r}")
            if text is not None and isinstance(cell, str):
                if text != cell:
                    changed[cell] = 0
                if text.casefold() in MAY_BE_NO_LABEL:
                    doubtful[text] = 0
            known[key] = text
        made.append(text)
        if cell in changed:
            changed[cell] += 1
        if text is not None and text in doubtful:
            doubtful[text] += 1
    if quoted := [text for text in made if text and is_in_quotes(text)]:
        rows = number_of(len(quoted), "row")
        notes.append(f"{table.file}: the {kind} is in quote marks in {rows}, such as {quoted[0]}")
    if changed:
        notes.append(
            f"{table.file}: white space or accents of the {kind} are brought to one form in "
            f"{number_of(changed.total(), 'row')}, such as {next(iter(changed))!r}"
        )
    none = dict.fromkeys(shown(cell) for (_, cell), text in known.items() if says_none(cell, text))
    if kind == "label" and none:
        notes.append(f"{table.file}: rows labelled {named(list(none))} are without a label")
    for text, count in doubtful.items():
        if kind == "label":
            notes.append(
                f"{table.file}: {text!r} is a class like any other, of {number_of(count, 'row')}: leave "
                "cells empty where there is no label"
            )
    return made


def says_none(cell: Any, text: str | None) -> bool:
    """Whether a cell that is not empty, such as -1 or null, was taken for none."""
    return text is None and cell is not None and cell == cell and str(cell).strip() != ""  # noqa: PLR0124


def cell_text(cell: Any, what: str) -> str | None:
    """A cell as text; a float that is whole as the whole number. Raises UserError."""
    if isinstance(cell, float):
        if math.isnan(cell):
            return None
        cell = int(cell) if cell.is_integer() else cell
    is_several = isinstance(cell, Collection) and not isinstance(cell, str)
    if is_several or written_out(cell) is not None:
        is_a = "reads as a list" if isinstance(cell, str) else f"is a {type(cell).__name__}"
        raise UserError(f"{what} {is_a}, {shown(cell)}: give one text or number.")
    text = "" if cell is None else clean(str(cell))
    if "\0" in text:
        raise UserError(f"{what} holds a NUL.")
    says_nothing = text.casefold() in NO_LABEL or (is_number(text) and float(text) == -1)
    return None if says_nothing else text


def written_out(cell: Any) -> list | dict | None:
    """The list or object that a cell's text is, as pandas writes one: ['yes', 'no']; None for [noise]."""
    text = cell.strip() if isinstance(cell, str) else ""
    if (text[:1], text[-1:]) not in (("[", "]"), ("{", "}")):
        return None
    for parse in (ast.literal_eval, json.loads):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            if isinstance(value := parse(text), list | dict):
                return value
    return None


def alike_labels(labels: Iterable[str]) -> list[list[str]]:
    """Those of the labels that differ in case, spaces, punctuation's width or as numbers' spelling alone."""
    groups: dict[Any, list[str]] = {}
    for label in labels:
        key = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
        groups.setdefault(float(key) if is_number(key) else key, []).append(label)
    return [group for group in groups.values() if len(group) > 1]
