"""A name on the command line -> clips: a Hub data set, a table, a folder of either kind.

Nothing is decoded here. Every source gives the same thing: for each split a list of clips with their label
as text, notes (a line each) about what was assumed, and how many rows or files were left out, and why.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from audiocls.config import is_missing_path
from audiocls.data.clips import Source, counted
from audiocls.data.columns import Columns, is_number, say_the_same, split_meant
from audiocls.data.demo import write_demo
from audiocls.data.folders import (
    check_class_folders,
    class_clips,
    class_of,
    folders_with_audio,
    is_table,
    tables_in,
)
from audiocls.data.locations import Locations
from audiocls.data.rows import add_table, add_tables, folder_of_audio
from audiocls.data.trees import NO_AUDIO, Tree, entries_of, parts, walk
from audiocls.errors import InputOutputFailed, UserError, named
from audiocls.hub import commit_of, import_datasets, loading
from audiocls.storage import failing_as, unfinished_folder
from audiocls.tables import FORMATS, table_of
from audiocls.version import __version__

MOST_BESIDE = 2**27  # bytes of a table beside class folders that is looked into
# What datasets' save_to_disk leaves in a folder: of several splits, or of one.
SAVED = (["dataset_dict.json"], ["state.json", "dataset_info.json"])


def load_source(
    name: str, columns: Columns, *, config: str | None = None, revision: str | None = None, cache_dir: Path
) -> Source:
    """The clips that `name` stands for.

    Raises UserError where the name, a column or the layout is wrong, InputOutputFailed where a file or the
    Hub cannot be read.
    """
    path = Path(os.path.expanduser(name))
    is_local = name == "demo" or os.path.exists(path) or path.suffix.lower() in FORMATS
    if is_local and (config or revision):
        raise UserError(f"{name} is not on the Hub: leave out --dataset-config and --dataset-revision.")
    if name == "demo":
        return load_folder(name, demo_folder(cache_dir), columns)
    if os.path.isdir(path):
        return load_folder(name, path, columns)
    if path.suffix.lower() in FORMATS:
        source = Source(name)
        add_tables(source, {path: None}, columns)
        return source
    if os.path.exists(path):
        raise UserError(
            f"{name} is a file, not a data set: give a folder, or a table ({', '.join(FORMATS)})."
        )
    if is_missing_path(name):
        raise UserError(f"There is no file or folder {name}.")
    return load_hub(name, columns, config, revision)


# A folder


def load_folder(name: str, folder: Path, columns: Columns) -> Source:
    """Class folders, splits of them, tables, or what the library `datasets` saved: whichever is there."""
    if (folder / "run.json").exists():
        raise UserError(f"{name} holds a run: give another --output-dir, and move the run elsewhere.")
    if saved := saved_in(name, folder):
        return load_saved(name, folder, saved, columns)
    tree = walk(folder)
    source = Source(name, "files")
    if tables := tables_in(name, tree):
        source.holds = "rows"
        source.note([f"{name}: read as tables: {named(list(tables))}"])
        try:
            paths = {folder / file: split for file, split in tables.items()}
            check_all_named(tree, add_tables(source, paths, columns, tree))
            check_one_reading(source, tree, columns)
        except UserError as error:
            classes = folders_with_audio(tree)
            if len(classes) < 2:
                raise
            raise UserError(
                f"{error} {name} holds {named(list(tables))}, and the folders {named(classes)}: if those are "
                f"the classes or splits, move {named(list(tables))} out of it."
            ) from None
        return source
    check_class_folders(name, tree)
    if others := list(filter(is_table, tree.others[NO_AUDIO])):
        for file in others:
            check_other_table(name, tree, file, columns)
        source.note([f"{name}: tables not read, beside class folders: {named(others)}"])
    for split, clips in class_clips(name, tree, source.notes).items():
        source.add(split, clips)
    for why, files in tree.others.items():
        source.leave_out(why, files)
    return source


def check_other_table(name: str, tree: Tree, file: str, columns: Columns) -> None:
    """Raises UserError where a table that is not read gives clips other labels than their folders do.

    Or cuts clips out of the files.
    """
    other, path = Source(file), tree.folder / file
    if not path.is_file() or path.stat().st_size > MOST_BESIDE:
        return
    try:
        add_tables(other, {path: None}, columns, tree)
    except UserError:  # no table of clips
        return
    try:
        if other.has_segments:
            raise UserError(f"{name} holds class folders, and {file}, which cuts clips out of recordings.")
        check_one_reading(other, tree, columns)
    except UserError as error:
        table = Path(name, file)
        raise UserError(f"{error} Give --dataset {table}, or move it out of {name}.") from None


def check_one_reading(source: Source, tree: Tree, columns: Columns) -> None:
    """Raises UserError where the tables give clips other labels than the folders that they lie in do.

    Numbers may stand for the folders' names. Parts of recordings have labels of their own.
    """
    folders = {str(tree.folder / file): class_of(file) for file in tree.audio}
    if columns.label is not None or len({*folders.values()} - {None}) < 2:
        return
    clips = [clip for clips in source.splits.values() for clip in clips if folders.get(clip.path)]
    pairs = [(clip.label, folders[clip.path]) for clip in clips]
    if say_the_same(list(zip(*pairs, strict=True))) and all(is_number(label) for label, _ in pairs):
        return
    for clip, (label, folder) in zip(clips, pairs, strict=True):
        if label != folder:
            raise UserError(
                f"{clip.path} is {label!r} by its table, and {folder!r} by its folder: if the table is "
                "right, name its column with --label-column."
            )


def check_all_named(tree: Tree, used: set[str]) -> None:
    """Raises UserError where a clip in a class folder of a split is none of the files `used` by tables."""
    for file in tree.audio:
        is_of_split = len(parts(file)) > 2 and split_meant(parts(file)[0])
        if is_of_split and str(tree.folder.absolute() / file) not in used:
            raise UserError(f"{file}, in a split's class folder, is in no table.")


def demo_folder(cache_dir: Path) -> Path:
    """The demo's files, written when they are first asked for: all of them or none."""
    folder = cache_dir / f"demo-{__version__}"
    if not os.path.exists(folder):
        with failing_as(folder), unfinished_folder(folder) as unfinished:
            write_demo(unfinished)
            try:
                unfinished.rename(folder)
            except OSError:
                if not folder.exists():  # else another process was first
                    raise
    return folder


# What the library `datasets` has: from the Hub, or saved by it


def saved_in(name: str, folder: Path) -> dict[str | None, Path]:
    """The folders in which datasets' save_to_disk has put rows, each with its split; none where it has not.

    That is the folder itself, or folders in it that are called like splits. Raises UserError for others.
    """

    def is_saved(place: Path) -> bool:
        return any(all(os.path.exists(place / file) for file in files) for files in SAVED)

    if is_saved(folder):
        return {None: folder}
    saved = sorted(entry.name for entry in entries_of(folder) if is_saved(Path(entry.path)))
    if not all(map(split_meant, saved)):
        raise UserError(f"{name} holds saved data sets, {named(saved)}: give one, as {name}/{saved[0]}.")
    return {split: folder / split for split in saved}


def load_saved(name: str, root: Path, saved: dict[str | None, Path], columns: Columns) -> Source:
    """What Dataset.save_to_disk or DatasetDict.save_to_disk wrote in `root`, or in folders in it."""
    source = Source(name)
    tree = walk(root)
    beside = [file for file in tree.audio + tree.others[NO_AUDIO] if not re.search(r"\.(arrow|json)$", file)]
    if said := counted({"not read": beside}):
        source.note([f"{name}: of the files beside what was saved, {said[0]}"])
    for split, folder in saved.items():
        with loading(str(folder), is_local=True):
            loaded = import_datasets().load_from_disk(str(folder))
        load_tables(source, {split: loaded} if split else loaded, columns, folder)
    return source


def load_hub(name: str, columns: Columns, config: str | None, revision: str | None) -> Source:
    if columns.audio_folder is not None:
        raise UserError(f"{name} on the Hub has audio of its own: leave out --audio-folder.")
    commit = commit_of("dataset", name, revision)
    if commit is None and revision is not None:
        # datasets would take the newest it has, whatever was asked for.
        raise InputOutputFailed(
            f"The Hub cannot be asked for --dataset-revision {revision}: leave it out offline."
        )
    with loading(f"The data set {name}"):
        try:
            loaded = import_datasets().load_dataset(name, config, revision=commit)
        except ValueError as error:
            if "config" not in str(error).lower():
                raise
            raise UserError(f"{name}: {error} Name one with --dataset-config.") from None
    return load_tables(Source(name, commit=commit), loaded, columns, None)


def load_tables(source: Source, loaded: Any, columns: Columns, folder: Path | None) -> Source:
    """The source with the clips of a datasets.DatasetDict, or of a datasets.Dataset."""
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    locations = None
    if folder is not None:
        audio_folder = folder_of_audio(columns)
        locations = Locations(audio_folder, walk(audio_folder)) if audio_folder else Locations(folder)
    for split, rows in splits.items():
        only = None if list(splits) == ["train"] else str(split)  # which a column may divide
        table = table_of(f"{source.name}/{split}" if splits is loaded else source.name, rows)
        table.name = source.name
        add_table(source, table, columns, locations, only)
    return source


# What the sources share


def label_order(labels: Iterable[str]) -> list[str]:
    """The distinct labels, sorted; whole numbers in the order of their values."""
    distinct = sorted(set(labels))
    if all(re.fullmatch(r"-?\d{1,300}", label) for label in distinct):
        distinct.sort(key=int)  # "01" and "1" stay in the order of their names
    return distinct
