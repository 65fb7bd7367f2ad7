"""A name on the command line -> clips: a Hub data set, a table, a folder of either kind.

Nothing is decoded here. Every source gives the same thing: for each split a list of clips with their label
as text, notes (a line each) about what was assumed, and how many rows or files were left out, and why.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from audiocls.config import is_missing_path
from audiocls.data.clips import Source
from audiocls.data.columns import Columns
from audiocls.data.demo import write_demo
from audiocls.data.folders import check_class_folders, class_clips, tables_in
from audiocls.data.locations import Locations
from audiocls.data.rows import add_table, add_tables
from audiocls.data.trees import walk
from audiocls.errors import InputOutputFailed, UserError, named
from audiocls.hub import commit_of, import_datasets, loading
from audiocls.storage import failing_as, unfinished_folder
from audiocls.tables import FORMATS, table_of
from audiocls.version import __version__

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
    if any(all(os.path.exists(folder / file) for file in files) for files in SAVED):
        return load_saved(name, folder, columns)
    tree = walk(folder)
    if tables := tables_in(name, tree):
        source = Source(name)
        source.note([f"{name}: read as tables: {named(list(tables))}"])
        add_tables(source, {folder / file: split for file, split in tables.items()}, columns, tree)
        return source
    source = Source(name, "files")
    check_class_folders(name, tree)
    source.splits = dict(class_clips(name, tree, source.notes))
    for why, files in tree.others.items():
        source.leave_out(why, files)
    return source


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


def load_saved(name: str, folder: Path, columns: Columns) -> Source:
    """A folder that Dataset.save_to_disk or DatasetDict.save_to_disk wrote."""
    with loading(name, is_local=True):
        loaded = import_datasets().load_from_disk(str(folder))
    return load_tables(Source(name), loaded, columns, folder)


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
    locations = Locations(folder) if folder else None
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
    if all(label.removeprefix("-").isdecimal() for label in distinct):
        distinct.sort(key=int)  # "01" and "1" stay in the order of their names
    return distinct
