"""A name on the command line -> clips: a Hub data set, a folder of class folders, or a manifest.

Nothing is decoded here. Every source gives the same thing: for each split a list of clips with their label
as text, and notes (a line each) about what was assumed or passed over.
"""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiocls.config import MANIFEST_SUFFIXES, is_missing_path
from audiocls.data.audio import AUDIO_SUFFIXES
from audiocls.data.clips import Clip, FileAudio, HubAudio
from audiocls.data.demo import write_demo
from audiocls.data.tables import clip_files, note_repeated, read_manifest
from audiocls.errors import InputOutputFailed, UserError
from audiocls.hub import commit_of, loading
from audiocls.storage import failing_as, unfinished_folder
from audiocls.version import __version__

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Tried where no column is named: the guide's, then other obvious names.
GUIDE_COLUMNS = {"audio": "audio", "label": "intent_class"}
AUDIO_COLUMNS = ("audio", "path", "file", "file_name", "filename", "wav", "audio_path")
LABEL_COLUMNS = ("label", "labels", "class", "category")


@dataclass
class Source:
    """Everything one --dataset names."""

    name: str
    splits: dict[str, list[Clip]] = field(default_factory=dict)
    label_names: list[str] | None = None  # a ClassLabel's, in their order
    notes: list[str] = field(default_factory=list)
    commit: str | None = None  # on the Hub, where it comes from there


@dataclass(frozen=True)
class Columns:
    """The columns asked for on the command line."""

    audio: str | None = None
    label: str | None = None
    group: str | None = None


def load_source(
    name: str, columns: Columns, *, config: str | None = None, revision: str | None = None, cache_dir: Path
) -> Source:
    """The clips that `name` stands for.

    Raises UserError where the name, a column or the layout is wrong, InputOutputFailed where a file or the
    Hub cannot be read.
    """
    path = Path(os.path.expanduser(name))
    if name == "demo":
        return load_folder(name, demo_folder(cache_dir), columns)
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return load_manifest(name, path, columns)
    if os.path.isdir(path):
        return load_folder(name, path, columns)
    if os.path.exists(path):
        raise UserError(
            f"{name} is a file, not a data set: give a folder or a .csv, .tsv or .jsonl manifest."
        )
    if is_missing_path(name):
        raise UserError(f"There is no file or folder {name}.")
    return load_hub(name, columns, config, revision)


# A folder: one folder a class, or train/validation/test folders of those


def load_folder(name: str, folder: Path, columns: Columns) -> Source:
    if columns.group is not None:
        raise UserError(f"{name} is a folder, which has no columns: --group-column needs a manifest.")
    source = Source(name)
    folders = visible_folders(folder)
    if any(SPLIT_FOLDERS.get(child.name.lower()) == "train" and visible_folders(child) for child in folders):
        split_of = {child: SPLIT_FOLDERS.get(child.name.lower(), child.name) for child in folders}
    else:
        split_of = {folder: "train"}
    passed_over = 0
    for split_folder, split in split_of.items():
        for class_folder in visible_folders(split_folder):
            files, others = audio_files(class_folder)
            clips = [Clip(str(file), FileAudio(file), class_folder.name) for file in files]
            source.splits.setdefault(split, []).extend(clips)
            passed_over += others
    passed_over += sum(child.is_file() for place in {folder, *split_of} for child in place.iterdir())
    if passed_over:
        source.notes.append(
            f"{name}: {passed_over} files are passed over: hidden, not audio, or in no class folder"
        )
    if not any(source.splits.values()):
        raise UserError(f"{name} holds no audio in class folders: give each class a folder of its own.")
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


def visible_folders(folder: Path) -> list[Path]:
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise InputOutputFailed(f"{folder} cannot be read: {error.strerror}.") from None
    return [child for child in children if child.is_dir() and not child.name.startswith(".")]


def audio_files(folder: Path) -> tuple[list[Path], int]:
    """The audio files below `folder`, sorted, and how many others were passed over: hidden, or not audio."""
    found: list[Path] = []
    num_files = 0
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        num_files += len(files)
        found += [Path(parent, name) for name in files if is_audio(name)]
    return sorted(found), num_files - len(found)


def is_audio(name: str) -> bool:
    return not name.startswith(".") and name.rpartition(".")[2].lower() in AUDIO_SUFFIXES


# A manifest: a table of paths and labels, the paths relative to it


def load_manifest(name: str, path: Path, columns: Columns) -> Source:
    source = Source(name)
    rows = read_manifest(path)
    if not rows:
        raise UserError(f"{name} holds no rows.")
    there = list(dict.fromkeys(key for row in rows for key in row))
    audio_column = find_column("audio", columns.audio, AUDIO_COLUMNS, there, source)
    label_column = find_column("label", columns.label, LABEL_COLUMNS, there, source)
    group_column = find_column("group", columns.group, (), there, source) if columns.group else None
    files = clip_files(path, rows, audio_column)
    source.notes += note_repeated(path, files)
    for row, file in zip(rows, files, strict=True):
        label = label_text(row.get(label_column))
        if label is None:
            continue
        split = str(row.get("split") or "train").lower()
        group = label_text(row.get(group_column)) if group_column else None
        clips = source.splits.setdefault(SPLIT_FOLDERS.get(split, split), [])
        clips.append(Clip(str(file), FileAudio(file), label, group))
    note_unlabelled(source, len(rows) - sum(map(len, source.splits.values())))
    return source


# A data set on the Hub


def load_hub(name: str, columns: Columns, config: str | None, revision: str | None) -> Source:
    commit = commit_of("dataset", name, revision)
    if commit is None and revision is not None:
        # datasets would take the newest it has, whatever was asked for.
        raise InputOutputFailed(
            f"The Hub cannot be asked for --dataset-revision {revision}: leave it out offline."
        )
    with loading(f"The data set {name}"):
        import datasets

        datasets.utils.logging.set_verbosity_error()
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        try:
            loaded = datasets.load_dataset(name, config, revision=commit)
        except ValueError as error:
            if "config" not in str(error).lower():
                raise
            raise UserError(f"{name}: {error} Name one with --dataset-config.") from None
    source = Source(name, commit=commit)
    for split, table in loaded.items():
        features = table.features
        class_labels = [key for key, value in features.items() if isinstance(value, datasets.ClassLabel)]
        audios = [key for key, value in features.items() if isinstance(value, datasets.Audio)]
        audio_column = find_column("audio", columns.audio, audios, list(features), source)
        guesses = class_labels if len(class_labels) == 1 else LABEL_COLUMNS
        label_column = find_column("label", columns.label, guesses, list(features), source)
        if not isinstance(features[audio_column], datasets.Audio):
            raise UserError(
                f"{name}: the column {audio_column!r} holds no audio. Name it with --audio-column."
            )
        labels = table[label_column][:]
        if isinstance(features[label_column], datasets.ClassLabel):
            source.label_names = features[label_column].names
            labels = [source.label_names[id] if id is not None and id >= 0 else None for id in labels]
        groups = [None] * len(table)
        if columns.group:
            groups = table[find_column("group", columns.group, (), list(features), source)][:]
        # decode=False: datasets' own decoding needs torchcodec and a system ffmpeg.
        audio = table.select_columns(audio_column).cast_column(audio_column, datasets.Audio(decode=False))
        audio = audio.rename_column(audio_column, "audio") if audio_column != "audio" else audio
        clips = [
            Clip(f"{name}/{split}/{index}", HubAudio(audio, index), text, label_text(group))
            for index, (label, group) in enumerate(zip(labels, groups, strict=True))
            if (text := label_text(label)) is not None
        ]
        source.splits[str(split)] = clips
        note_unlabelled(source, len(table) - len(clips))
    return source


# What the sources share


def find_column(
    kind: str, named: str | None, candidates: Iterable[str], there: list[str], source: Source
) -> str:
    """The column of this kind: the one `named`, else the guide's, else the one candidate, which is noted."""
    first = GUIDE_COLUMNS.get(kind, "") if named is None else named
    if first in there:
        return first
    obvious = [column for column in candidates if column in there]
    if named is None and len(obvious) == 1:
        note = f"{source.name}: the column {obvious[0]!r} is taken for the {kind}"
        if note not in source.notes:
            source.notes.append(note)
        return obvious[0]
    which = f"no column {named!r}" if named else f"no column that is obviously the {kind}"
    raise UserError(
        f"{source.name} has {which}. It has: {', '.join(map(str, there))}. "
        f"Name the right one with --{kind}-column."
    )


def label_text(value: Any) -> str | None:
    """A label as text; None for what means unlabelled: nothing, an empty cell, -1."""
    text = "" if value is None else str(value).strip()
    return None if text in ("", "-1") else text


def note_unlabelled(source: Source, count: int) -> None:
    if count:
        clips = "1 clip" if count == 1 else f"{count} clips"
        source.notes.append(f"{source.name}: {clips} without a label left out")


def label_order(labels: Iterable[str]) -> list[str]:
    """The distinct labels, sorted; whole numbers in the order of their values."""
    distinct = sorted(set(labels))
    if all(label.removeprefix("-").isdecimal() for label in distinct):
        distinct.sort(key=int)  # "01" and "1" stay in the order of their names
    return distinct
