"""A table's file -> its columns: csv, tsv, json lines and parquet, as people's programs write them.

What a file leaves open is decided by what stands in it, and noted: how its text is encoded, what separates
its columns. What does not fit, or could be meant in two ways, is refused, with the file's own line.
"""

import codecs
import contextlib
import csv
import io
import itertools
import json
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiocls.errors import InputOutputFailed, UserError, number_of, shown
from audiocls.hub import import_datasets, loading
from audiocls.storage import open_regular

SEPARATORS = ",;\t|"
MARKS = {  # the first bytes of a text that says how it is encoded
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WINDOWS = "cp1252"  # of Western Europe and America: what its programs write where they write no Unicode
IN_NO_TEXT = bytes([*range(8), *range(0x0E, 0x20)])
csv.field_size_limit(2**24)  # characters of a cell, for the whole process: a transcript of hours
MOST_SHARED = 10_000  # different cells of a column that are kept in memory once, however often they come


@dataclass
class Table:
    """Rows under named columns."""

    file: str
    columns: list[str]
    cells: Callable[[str], Sequence[Any]]  # those of a column, one a row
    places: Sequence[int]  # of each row: its line in the file, or its number where a file has no lines
    place_is: str = "line"
    blank: Sequence[int] = ()  # the places of rows whose cells are all empty, which are not among these
    notes: list[str] = field(default_factory=list)
    audio_columns: list[str] = field(default_factory=list)  # whose cells are objects with a path or bytes
    declared_audio: list[str] = field(default_factory=list)  # those that the table itself calls audio
    # Where the library `datasets` has the rows: itself, and what the numbers in columns of classes mean.
    rows: Any = None
    class_names: dict[str, list[str]] = field(default_factory=dict)
    name: str = ""  # what notes call it: its file, if nothing else

    def __post_init__(self) -> None:
        self.name = self.name or self.file

    def __len__(self) -> int:
        return len(self.places)

    def where(self, row: int) -> str:
        """How a message names a row."""
        return f"{self.file}: {self.place_is} {self.places[row]}"

    def is_text(self, column: str) -> bool:
        """Whether a column holds text that costs little to read: no images, arrays or recordings."""
        if self.rows is None:
            return column not in self.audio_columns
        return getattr(self.rows.features[column], "dtype", "") in ("string", "large_string")

    def missing(self, cells: Sequence[Any]) -> list[int]:
        """The places of the rows where these are None."""
        return [place for place, cell in zip(self.places, cells, strict=True) if cell is None]


def read_table(path: Path) -> Table:
    """The table in a file of one of FORMATS.

    Raises UserError where it is none, naming the first line that does not fit, InputOutputFailed where the
    file cannot be read.
    """
    with failing_to_read(path):
        return FORMATS[path.suffix.lower()](path)


@contextlib.contextmanager
def failing_to_read(path: Path) -> Iterator[None]:
    """Raise an operating system's error as InputOutputFailed."""
    try:
        yield
    except OSError as error:
        raise InputOutputFailed(f"{path} cannot be read: {error.strerror or error}.") from None


def no_formula(text: str) -> str:
    """A cell of text, with a ' before what a spreadsheet would run as a formula."""
    text = text.replace("\r", "\\r")  # csv.writer leaves one unquoted, which ends the row
    # https://owasp.org/www-community/attacks/CSV_Injection
    return f"'{text}" if text.startswith(tuple("=+-@\t\n")) else text


# Text of any encoding


def open_text(path: Path, notes: list[str]) -> io.TextIOWrapper:
    """The file to be read as text: Unicode by its first bytes, else UTF-8, else cp1252, which is noted.

    Raises UserError for what is no text, or UTF-8 in a part of its lines.
    """
    with open_regular(path) as file:
        start = file.read(4)
        may_be = [name for mark, name in MARKS.items() if start.startswith(mark)][:1] or ["utf-8", WINDOWS]
        if len(start) == 4 and start[0::2] == b"\0\0" != start[1::2]:
            may_be = ["utf-16-be"]  # without a mark: two letters of English, each in two bytes
        elif len(start) == 4 and start[1::2] == b"\0\0" != start[0::2]:
            may_be = ["utf-16-le"]
        encoding = next((name for name in may_be if is_text(file, name)), None)
    if encoding is None:
        raise UserError(f"{path} is no text: save it as UTF-8.")
    if encoding == WINDOWS:
        notes.append(f"{path} is not UTF-8: read as {WINDOWS}, in which {odd_line(path)}")
    return io.TextIOWrapper(open_regular(path), encoding, newline="")


def is_text(file: io.BufferedReader, encoding: str) -> bool:
    file.seek(0)
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while piece := file.read(2**20):
            # Nearly all bytes are a letter of cp1252: what tells a text is what no text holds.
            if encoding == WINDOWS and len(piece.translate(None, IN_NO_TEXT)) < len(piece):
                return False
            decoder.decode(piece)
        decoder.decode(b"", final=True)
    except UnicodeError:
        return False
    return True


def odd_line(path: Path) -> str:
    """The first line that is not UTF-8, as cp1252 has it. Raises UserError where another one is UTF-8."""
    odd = ""
    with open_regular(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                is_unicode = not line.decode().isascii()
            except UnicodeError:
                is_unicode = False
                odd = odd or f"line {number} is {line.decode(WINDOWS).strip()!r}"
            if is_unicode:
                raise UserError(
                    f"{path} is UTF-8 in some lines, as line {number}, not in all: save it as UTF-8."
                )
    return odd


# csv and tsv


def read_separated(path: Path) -> Table:
    """A .csv, or a .tsv, which quotes nothing unless the names of its columns are in quotes."""
    notes: list[str] = []
    places, blank = array("q"), array("q")
    with open_text(path, notes) as file:
        ends = 0  # lines read
        try:
            dialect, num_skipped = dialect_of(path, file, notes)
            reader = csv.reader(file, **dialect)
            header = next((row for row in reader if "".join(row).strip()), [])
            columns = column_names(path, header)
            values: list[list[str]] = [[] for _ in columns]
            shared: list[dict[str, str]] = [{} for _ in columns]
            ends = reader.line_num + num_skipped
            for row in reader:
                begins, ends = ends + 1, reader.line_num + num_skipped
                if not "".join(row).strip():
                    blank.extend([begins] * bool(row))
                    continue
                row = fitted(f"{path}: line {begins}", row, header, quotes_nothing="quoting" in dialect)
                if ends > begins:
                    check_long_cells(f"{path}: line {begins}", row, dialect["delimiter"])
                places.append(begins)
                for cells, known, cell in zip(values, shared, row, strict=True):
                    is_new = len(known) < MOST_SHARED
                    cells.append(known.setdefault(cell, cell) if is_new else known.get(cell, cell))
        except csv.Error as error:
            raise UserError(f"{path}: line {ends + 1} is not valid {path.suffix[1:]}: {error}.") from None
    cells_of = dict(zip(columns, values, strict=True))
    return Table(str(path), columns, cells_of.__getitem__, places, blank=blank, notes=notes)


def dialect_of(path: Path, file: io.TextIOWrapper, notes: list[str]) -> tuple[dict[str, Any], int]:
    """How the file is to be read by csv.reader, and the number of lines before its header, then read."""
    own = "\t" if path.suffix.lower() == ".tsv" else ","
    first, *others = [*itertools.islice(filter(str.strip, file), 2)] or [""]
    file.seek(0)
    if hint := re.fullmatch(r'"?sep=(.)"?[\r\n]*', first):  # Excel's own word for the separator
        file.readline()
        return {"delimiter": hint[1], "strict": True}, 1
    separator = separator_of([first, *others], own)
    if separator != own:
        notes.append(f"{path}: its columns are separated by {separator!r}")
    if own == separator == "\t" and not all(map(is_in_quotes, first.split("\t"))):
        return {"delimiter": separator, "quoting": csv.QUOTE_NONE}, 0
    return {"delimiter": separator, "strict": True, "skipinitialspace": True}, 0


def separator_of(lines: Sequence[str], own: str) -> str:
    """What separates the header, the first of `lines`, into names: `own`, if nothing does so better.

    The best one divides the row that follows alike, leaves no other separators and quote marks in the names,
    and makes most names.
    """
    plain = [line.replace('"', "") for line in lines]

    def fitness(separator: str) -> tuple:
        names, *rows = csv.reader(plain if separator == "\t" else lines, delimiter=separator)
        row = rows[0] if rows else names
        fits = len(row) >= len(names) and not "".join(row[len(names) :]).strip()
        num_odd = sum(any(mark in name for mark in (*SEPARATORS, '"')) for name in names)
        return fits and len(names) > 1, -num_odd, len(names), separator == own

    return max(SEPARATORS, key=fitness)


def fitted(where: str, row: list[str], header: Sequence[str], *, quotes_nothing: bool) -> list[str]:
    """A row without empty cells beyond the header. Raises UserError where it does not fit the header."""
    if not "".join(row[len(header) :]).strip():
        row = row[: len(header)]
    if len(row) != len(header):
        quotes = " (a .tsv quotes nothing)" if quotes_nothing and '"' in "".join(row) else ""
        raise UserError(f"{where} has {number_of(len(row), 'cell')}, its header {len(header)}{quotes}.")
    if row == header:
        raise UserError(f"{where} is the header again: leave it out.")
    return row


def is_in_quotes(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def column_names(path: Path, header: Sequence[str]) -> list[str]:
    """The header's names; a column without one, as pandas' index, gets its number."""
    names = [name.strip("\ufeff \t\r\n") or f"(column {i})" for i, name in enumerate(header, start=1)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path} has two columns named {name!r}: rename one.")
    return names


def check_long_cells(where: str, row: Sequence[str], separator: str) -> None:
    """Raises UserError where a cell in quotes runs over lines that look like rows: a quote mark too many."""
    for index, cell in enumerate(row):
        first, *others = cell.splitlines() or [""]
        if not others:
            continue
        *inner, last = others
        after = len(row) - 1 - index
        seem_rows = first.count(separator) >= after and last.count(separator) >= index
        if index > 0:  # rows begin with a file of the same kind, where they begin with files
            begins = last.partition(separator)[0]
            seem_rows &= Path(begins).suffix.lower() == Path(row[0]).suffix.lower()
        if seem_rows and all(line.count(separator) >= len(row) - 1 for line in inner):
            raise UserError(
                f"{where}: a quote mark opens a cell that takes in {len(others)} more lines, which look like "
                f"rows: {shown(cell)}. Write a quote mark within a cell twice, or use a .tsv, which "
                "quotes nothing."
            )


# JSON lines


def read_json_lines(path: Path) -> Table:
    """An object a line; a column for each name in any of them."""
    notes: list[str] = []
    values: dict[str, list[Any]] = {}
    places, blank = array("q"), array("q")
    parse = json.JSONDecoder(object_pairs_hook=each_once).decode
    with open_text(path, notes) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip("\ufeff \t\r\n"):
                continue
            try:
                row = parse(line.strip())
            except json.JSONDecodeError as error:
                why = f"{error.msg}, character {error.colno}"
                raise UserError(f"{path}: line {number} is not valid JSON: {why}.") from None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is not valid JSON: {error}.") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}: line {number} is no JSON object, as {{...}}.")
            stripped = {name.strip(): cell for name, cell in row.items()}
            if len(stripped) < len(row):
                raise UserError(f"{path}: line {number} has a name twice, but for spaces.")
            row = stripped
            if all(cell in (None, "") for cell in row.values()):
                blank.append(number)
                continue
            for name in [name for name in row if name not in values]:
                values[name] = [None] * len(places)
            for name, cells in values.items():
                cells.append(row.get(name))
            places.append(number)
    first = {name: next((cell for cell in cells if cell is not None), None) for name, cells in values.items()}
    audio = [
        name for name, cell in first.items() if isinstance(cell, dict) and {"path", "bytes"} & cell.keys()
    ]
    columns, cells_of = list(values), values.__getitem__
    return Table(str(path), columns, cells_of, places, blank=blank, notes=notes, audio_columns=audio)


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return made


# What the library `datasets` reads


def read_parquet(path: Path) -> Table:
    with open_regular(path) as file:
        if file.read(4) != b"PAR1":
            raise UserError(f"{path} is no parquet file.")
    with loading(str(path), is_local=True):
        rows = import_datasets().Dataset.from_parquet(str(path))
    return table_of(str(path), rows)


def table_of(name: str, rows: Any) -> Table:
    """The table of a datasets.Dataset. Its recordings are not read here, its other cells when asked for."""
    datasets = import_datasets()

    def may_hold_audio(feature: Any) -> bool:
        if isinstance(feature, dict):
            return bool({"bytes", "path"} & feature.keys())
        return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")

    features = rows.features
    classes = {key: it.names for key, it in features.items() if isinstance(it, datasets.ClassLabel)}

    def cells(column: str) -> Sequence[Any]:
        values = rows[column][:]
        if (names := classes.get(column)) is None:
            return values
        # -1: without a label, as in many a test split on the Hub.
        return [names[id] if id is not None and 0 <= id < len(names) else None for id in values]

    declared = [column for column, feature in features.items() if isinstance(feature, datasets.Audio)]
    audio = declared + [column for column, feature in features.items() if may_hold_audio(feature)]
    return Table(
        name,
        list(features),
        cells,
        range(1, len(rows) + 1),
        place_is="row",
        audio_columns=audio,
        declared_audio=declared,
        rows=rows,
        class_names=classes,
    )


# A format more is a line here: a suffix, and what reads such a file.
FORMATS: dict[str, Callable[[Path], Table]] = {
    ".csv": read_separated,
    ".tsv": read_separated,
    ".jsonl": read_json_lines,
    ".parquet": read_parquet,
}
