"""The rows of tables -> clips: which columns say what, which file a row means, which split it is in."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from audiocls.data.clips import Audio, Clip, FileAudio, Source, StoredAudio, counted
from audiocls.data.columns import Columns, clean, find_column, find_split_column, split_meant, texts
from audiocls.data.locations import Locations
from audiocls.data.trees import Tree, walk
from audiocls.errors import UserError, named
from audiocls.hub import import_datasets
from audiocls.tables import Table, read_table


def add_tables(
    source: Source, tables: dict[Path, str | None], columns: Columns, around: Tree | None = None
) -> None:
    """Add the clips of these files, each with its split, if it is one's.

    What no row names of the files that lie `around` the tables, or in --audio-folder, is noted.
    """
    audio_folder = None
    if columns.audio_folder is not None:
        audio_folder = Path(os.path.expanduser(columns.audio_folder))
        if not audio_folder.is_dir():
            raise UserError(f"--audio-folder {columns.audio_folder} is no folder.")
        around = walk(audio_folder)
    used = {os.path.abspath(path) for path in tables}
    for path, split in tables.items():
        table = replace(read_table(path), name=source.name)
        locations = Locations(audio_folder, around) if audio_folder else Locations(path.parent)
        files = add_table(source, table, columns, locations, split)
        if around:
            used |= set(map(os.path.abspath, files))
    if around is None:
        return
    unnamed = {
        why: [file for file in files if os.path.abspath(around.folder / file) not in used]
        for why, files in {"audio": around.audio, **around.others}.items()
    }
    if said := counted(unnamed):
        source.note([f"{around.folder}: files that no row names: {'; '.join(said)}"])


def add_table(
    source: Source, table: Table, columns: Columns, locations: Locations | None, split: str | None
) -> Sequence[str]:
    """Add a table's clips to the source, and return what they are called: the files, where rows name any.

    `locations` is None where a table can name no files; `split` where a column may say which one a row is in.
    Raises UserError.
    """
    if not len(table):
        raise UserError(f"{table.name} holds no rows.")
    notes = list(table.notes)
    audio_column = find_column("audio", columns.audio, table, notes)
    label_column = find_column("label", columns.label, table, notes)
    group_column = find_column("group", columns.group, table, notes) if columns.group else None
    used = [audio_column, label_column, group_column]
    split_column = None
    if split is None or columns.split:
        split_column = find_split_column(columns.split, used, table, notes)
    if unused := [column for column in table.columns if column not in (*used, split_column)]:
        notes.append(f"{table.name}: columns not used: {named(unused)}")

    labels = texts(table, label_column, "label", notes)
    nothing: list[str | None] = [None] * len(table)
    groups = texts(table, group_column, "group", notes) if group_column else nothing
    splits = texts(table, split_column, "split", notes) if split_column else nothing
    if split_column and (num_empty := splits.count(None)):
        notes.append(f"{table.name}: {num_empty} rows name no split in {split_column!r}: taken for train")
    audios: Sequence[Audio]
    if table.rows is not None and audio_column in table.audio_columns:
        audios, names = stored_audio(table, audio_column, locations)
    elif locations is None:
        raise UserError(
            f"{table.name}: the column {audio_column!r} holds no audio. Name it with --audio-column."
        )
    else:
        names = locations.of_column(table, audio_column, notes)
        audios = list(map(FileAudio, names))
        if not split_column and split is None:
            splits = splits_in_names(table, audio_column, notes) or nothing

    for name, audio, label, group, of in zip(names, audios, labels, groups, splits, strict=True):
        clips = source.splits.setdefault(of or split or "train", [])
        if label is not None:
            clips.append(Clip(name, audio, label, group))
    of_table = "" if table.file == source.name else f" of {table.file}"
    for why, places in (("without a label", table.missing(labels)), ("blank", table.blank)):
        source.leave_out(why, [f"{table.place_is} {place}{of_table}" for place in places])
    class_names = [clean(name) for name in table.class_names.get(label_column, ())] or None
    source.label_names = class_names if source.label_names in (None, class_names) else None
    source.note(notes)
    return names


def stored_audio(
    table: Table, column: str, locations: Locations | None
) -> tuple[Sequence[Audio], Sequence[str]]:
    """The recordings that a table of the library `datasets` holds itself, and what to call them."""
    # decode=False: datasets' own decoding needs torchcodec and a system ffmpeg.
    rows = table.rows.select_columns(column).cast_column(column, import_datasets().Audio(decode=False))
    rows = rows.rename_column(column, "audio") if column != "audio" else rows
    folder = locations.folder if locations else None
    audios = [StoredAudio(rows, index, folder) for index in range(len(rows))]
    return audios, [f"{table.file}/{index}" for index in range(len(rows))]


def splits_in_names(table: Table, column: str, notes: list[str]) -> list[str | None] | None:
    """The splits of a table whose files are all named as in a split's folder: train/a.wav, test/b.wav."""
    tops: list[str | None] = []
    for cell in table.cells(column):
        name = cell.get("path") if isinstance(cell, dict) else cell
        tops.append(str(name).replace("\\", "/").removeprefix("./").partition("/")[0])
    distinct = sorted(map(str, set(tops)))
    meant = {split_meant(top) for top in distinct}
    if None in meant or "train" not in meant or len(meant) == 1:
        return None
    notes.append(f"{table.name}: the folders {named(distinct)} in {column!r} are taken for the splits")
    return tops
