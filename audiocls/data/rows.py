"""The rows of tables -> clips: which columns say what, which file a row means, which split it is in."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from audiocls.data.clips import (
    Audio,
    Clip,
    FileAudio,
    Segment,
    Source,
    Span,
    StoredAudio,
    counted,
    segment_name,
)
from audiocls.data.columns import (
    Columns,
    asked_column,
    clean,
    columns_of,
    find_column,
    find_split_column,
    has_labels,
    note_unused,
    split_meant,
    texts,
)
from audiocls.data.locations import Locations, note_repeated
from audiocls.data.spans import are_cut_already, check_spans_are_used, find_spans, note_on_spans
from audiocls.data.trees import Tree, parts, walk
from audiocls.errors import UserError, named, number_of
from audiocls.hub import import_datasets
from audiocls.tables import Table, read_table


def add_tables(
    source: Source, tables: dict[Path, str | None], columns: Columns, around: Tree | None = None
) -> set[str]:
    """Add the clips of tables, each of which may be of one split, and return the files used, absolute.

    The audio is found in --audio-folder, or else beside its table and `around` it. What no row names of the
    files there is noted.
    """
    audio_folder = folder_of_audio(columns)
    audio = walk(audio_folder) if audio_folder else around
    locations: dict[str | None, Locations] = {}  # by the folder of the tree that they are kept to
    used = {os.path.abspath(path) for path in tables}
    holds_audio = False  # or paths, which are not looked at here
    for path, split in tables.items():
        table = replace(read_table(path), name=source.name)
        if split and split_meant(split) != "train" and not has_labels(table, columns):
            source.leave_out(f"of {path.name}, which has no label", list(map(table.where, range(len(table)))))
            continue
        place = split if audio and any(parts(file)[0] == split for file in audio.audio) else None
        if place not in locations or not audio_folder:
            locations[place] = Locations(audio_folder or path.parent, audio, below=place)
        files = add_table(source, table, columns, locations[place], split)
        holds_audio |= files is None
        used |= {os.path.abspath(file) for file in files or () if file}
    is_around = around and audio and audio.folder.resolve().is_relative_to(around.folder.resolve())
    for tree in (around,) if is_around else (around, audio):
        if tree is None:
            continue
        there = {"audio": [] if holds_audio else tree.audio, **tree.others}
        left = {
            why: [file for file in files if os.path.abspath(tree.folder / file) not in used]
            for why, files in there.items()
        }
        if said := counted(left):
            source.note([f"{tree.folder}: files that no row names: {'; '.join(said)}"])
    return used


def folder_of_audio(columns: Columns) -> Path | None:
    """--audio-folder, where it is given. Raises UserError where it is no folder."""
    if columns.audio_folder is None:
        return None
    folder = Path(os.path.expanduser(columns.audio_folder))
    if not folder.is_dir():
        raise UserError(f"--audio-folder {columns.audio_folder} is no folder.")
    return folder


def add_table(
    source: Source, table: Table, columns: Columns, locations: Locations | None, split: str | None
) -> Sequence[str | None] | None:
    """Add a table's clips to the source, and return the file that each row names; None if it holds them.

    `locations` is None where a table can name no files; `split` where a column may say which one a row is in.
    Raises UserError.
    """
    if not len(table):
        raise UserError(f"{table.file} holds no rows.")
    notes = list(table.notes)
    columns = columns_of(columns, table, notes)
    audio_column = find_column("audio", columns.audio, table, notes)
    label_column = find_column("label", columns.label, table, notes)
    group_column = asked_column("group", columns.group, table) if columns.group else None
    used = [audio_column, label_column, group_column]
    split_column = None
    if split is None or columns.split:
        split_column = find_split_column(columns.split, used, table, notes)
    # A group's column may well be one of these: where the parts of one recording are to be divided.
    taken = [audio_column, label_column, split_column]
    found = find_spans(table, taken, notes) if columns.may_cut else None
    spans, span_columns = found or (None, [])
    note_unused(table, [*used, split_column, *span_columns], notes)

    nothing: list[str | None] = [None] * len(table)
    labels = texts(table, label_column, "label", notes)
    groups = texts(table, group_column, "group", notes) if group_column else nothing
    splits = texts(table, split_column, "split", notes) if split_column else nothing
    if group_column and (num_empty := groups.count(None)):
        notes.append(f"{table.file}: {number_of(num_empty, 'row')} with no {group_column!r}, of no group")
    if split_column and (num_empty := splits.count(None)):
        notes.append(f"{table.file}: {number_of(num_empty, 'row')} with no {split_column!r}, to train on")

    files, audios = recordings(table, audio_column, locations, notes)
    names = files or [f"{table.file}/{index}" for index in range(len(table))]
    cut: Sequence[Audio | Segment | None] = audios
    if spans:
        are_cut = are_cut_already(spans, audios)
        notes.append(note_on_spans(table, span_columns, spans, are_cut=are_cut))
        if not are_cut:
            names, cut = segments(names, audios, spans)
    elif files and columns.may_cut:
        check_spans_are_used(table, taken, files)
    if files:
        notes += note_repeated(table, names)
    if files and not split_column and split is None:
        splits = splits_in_names(table, files, notes) or nothing
    clips: dict[str, list[Clip]] = {}
    for name, audio, label, group, of in zip(names, cut, labels, groups, splits, strict=True):
        of_split = clips.setdefault(of or split or "train", [])
        if label is not None and name is not None and audio is not None:
            of_split.append(Clip(name, audio, label, group))
    for of_all, some in clips.items():
        source.add(of_all, some)

    pathless = table.missing(files) if files else []
    unlabelled = table.missing(labels)
    if pathless:
        unlabelled = sorted(set(unlabelled) - set(pathless))
    of_table = "" if table.file == source.name else f" of {table.file}"
    left_out = {"without a file's name": pathless, "without a label": unlabelled, "blank": table.blank}
    for why, places in left_out.items():
        source.leave_out(why, [f"{table.place_is} {place}{of_table}" for place in places])
    class_names = table.class_names.get(label_column, ())
    source.label_lists.append(list(dict.fromkeys(map(clean, class_names))))
    if len(source.label_lists[-1]) < len(class_names):
        notes.append(f"{table.file}: names of {label_column!r} that differ in form alone are one class")
    source.note(notes)
    return files


def recordings(
    table: Table, column: str, locations: Locations | None, notes: list[str]
) -> tuple[Sequence[str | None] | None, Sequence[Audio | None]]:
    """The file that each row names, if rows do, and the recording of each; None for a row that names none.

    Raises UserError where the column holds neither.
    """
    is_held = table.rows is not None and column in table.audio_columns
    rows = audio_rows(table, column) if is_held else None
    cells: Sequence[Any] | None = table.cells(column) if rows is None else None
    if rows is not None and locations is not None:
        cells = paths_alone(rows)
    if cells is None:
        find = locations.find if locations else str
        return None, [StoredAudio(rows, index, find) for index in range(len(table))]
    if locations is None:
        raise UserError(f"{table.file}: the column {column!r} holds no audio. Name it with --audio-column.")
    files = locations.of_cells(table, cells, notes)
    if not any(files):
        raise UserError(f"{table.file} names no file in the column {column!r}.")
    return files, [None if file is None else FileAudio(file) for file in files]


def segments(
    names: Sequence[str | None], audios: Sequence[Audio | None], spans: Sequence[Span | None]
) -> tuple[list[str | None], list[Audio | Segment | None]]:
    """The name and the recording of each row's part of its recording; a row without a span is the whole."""
    shared: dict[Audio, Audio] = {}  # one object for each recording, however many rows name it
    cut: list[Audio | Segment | None] = []
    cut_names: list[str | None] = []
    for name, audio, span in zip(names, audios, spans, strict=True):
        if name is None or audio is None or span is None:
            cut.append(audio)
            cut_names.append(name)
        else:
            cut.append(Segment(shared.setdefault(audio, audio), *span))
            cut_names.append(segment_name(name, span))
    return cut_names, cut


def audio_rows(table: Table, column: str) -> Any:
    """The recordings that a table of the library `datasets` holds, as its one column "audio", not decoded."""
    # decode=False: datasets' own decoding needs torchcodec and a system ffmpeg.
    rows = table.rows.select_columns(column).cast_column(column, import_datasets().Audio(decode=False))
    return rows.rename_column(column, "audio") if column != "audio" else rows


def paths_alone(rows: Any) -> list[str | None] | None:
    """The paths of rows that hold no bytes; None where any of them does."""
    from pyarrow import compute

    audio = rows.with_format("arrow")[:]["audio"]  # mapped: nothing is read but what is asked for
    if not compute.all(compute.is_null(compute.struct_field(audio, "bytes"))).as_py():
        return None
    return compute.struct_field(audio, "path").to_pylist()


def splits_in_names(table: Table, files: Sequence[str | None], notes: list[str]) -> list[str | None] | None:
    """The splits of a table whose files lie in the folders of splits: audio/train/a.wav, audio/test/b.wav.

    That is, where the paths differ first, there is a folder of train and another split's. None for a file
    that lies in none of these.
    """
    paths = [parts(os.path.normpath(file)) for file in files if file is not None]
    if not paths:
        return None
    pairs = enumerate(zip(min(paths), max(paths), strict=False))
    depth = next((number for number, (first, last) in pairs if first != last), 0)
    folders = iter([path[depth] if len(path) > depth + 1 else None for path in paths])
    splits = [None if file is None else next(folders) for file in files]
    meant = {folder: split_meant(folder) for folder in set(splits) if folder}
    if len({*meant.values()} - {None}) < 2 or "train" not in meant.values():
        return None
    others = number_of(splits.count(None), "other file")
    rest = f", and {others} for train" if None in splits else ""
    notes.append(
        f"{table.file}: the folders {named(sorted(meant))} of its files are taken for the splits{rest}"
    )
    return splits
