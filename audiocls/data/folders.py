"""What a folder holds: tables, classes, or splits of classes. What could be two of them is refused."""

import os
import re
from collections import defaultdict
from pathlib import Path

from audiocls.data.clips import Clip, FileAudio
from audiocls.data.columns import clean, split_meant
from audiocls.data.trees import NO_AUDIO, Tree
from audiocls.errors import UserError, named
from audiocls.tables import FORMATS

NO_CLASS = "in no class folder"
LISTS = "_list.txt"  # Speech Commands' validation_list.txt and testing_list.txt: the path of a clip a line


def tables_in(name: str, tree: Tree) -> dict[str, str | None]:
    """The tables in a folder that say what its clips are, each with the name of its split, if it has one.

    That is the Hub's metadata.csv, or tables called like splits (train.csv, test-00000-of-00002.parquet),
    train among them or no class folders beside them, or parquet files where nothing else holds audio. Raises
    UserError where it is not clear which of them.
    """
    found: dict[str, str | None] = {}
    for file in tree.others[NO_AUDIO]:
        if not is_table(file):
            continue
        *above, last = parts(file)
        split = next(
            (word for word in (re.split(r"[-_.]", last)[0], *above[::-1]) if split_meant(word)), None
        )
        is_metadata = Path(file).stem == "metadata" and (not above or above == [split])
        is_split = not above and split is not None and last.startswith(split)
        if is_metadata or is_split or (file.lower().endswith(".parquet") and not tree.audio):
            found[file] = split
    splits = list(found.values())
    says_train = any(split is None or split_meant(split) == "train" for split in splits)
    if not says_train and len(folders_with_audio(tree)) > 1:
        return {}
    shared = [file for file, split in found.items() if splits.count(split) > 1 or None in splits]
    if len(shared) > 1 and not all(file.lower().endswith(".parquet") for file in shared):
        raise UserError(f"{name} holds several tables, {named(shared)}: give one of them as --dataset.")
    return found


def is_table(file: str) -> bool:
    return Path(file).suffix.lower() in FORMATS


def folders_with_audio(tree: Tree) -> set[str]:
    """Those directly in the folder."""
    return {parts(file)[0] for file in tree.audio if len(parts(file)) > 1}


def check_class_folders(name: str, tree: Tree) -> None:
    """Raises UserError where no class folders are there, with what there is."""
    tops = folders_with_audio(tree)
    files = [file for files in (tree.audio, *tree.others.values()) for file in files]
    tables = list(filter(is_table, files))
    there = f"{len(files)} files, as {files[0]}" if files else "no files"
    if len(tops) < 2 and tables:
        audio_folder = f" --audio-folder {Path(name, *tops)}" if tops else ""
        raise UserError(
            f"{name} holds no class folders, but a table: give --dataset {Path(name, tables[0])}"
            f"{audio_folder}."
        )
    if not tree.audio:
        raise UserError(f"{name} holds no audio: {there}. Give each class a folder of its own.")
    if not tops:
        raise UserError(
            f"{name} holds no audio in class folders: {there}. Give each class a folder of its own, or a "
            "table with the labels."
        )
    common = Path(os.path.commonpath([Path(file).parent for file in tree.audio]))
    is_around = common.parts and all(Path(file).parent != common for file in tree.audio)
    if is_around and not split_meant(common.parts[0]):
        depth = len(common.parts)
        inside = sorted({parts(file)[depth] for file in tree.audio if len(parts(file)) > depth + 1})
        if inside:
            raise UserError(
                f"{name} holds one folder, {common}, with {named(inside)} in it: if these are the classes "
                f"(or splits), give --dataset {Path(name, common)}."
            )


def class_clips(name: str, tree: Tree, notes: list[str]) -> dict[str, list[Clip]]:
    """The clips of each split, of the audio that lies in class folders.

    Audio that lies in none goes over to `tree.others`. Raises UserError where the folders do not say what the
    classes are.
    """
    depth = 2 if are_splits(name, tree, notes) else 1  # of a class's folder
    if strays := [file for file in tree.audio if len(parts(file)) <= depth]:
        tree.others[NO_CLASS] += strays
        tree.audio = [file for file in tree.audio if len(parts(file)) > depth]
    split_of = listed_splits(name, tree, notes) if depth == 1 else {}
    clips: dict[str, list[Clip]] = defaultdict(list)
    folders_of: dict[str, set[str]] = defaultdict(set)
    for file in tree.audio:
        *split, folder = parts(file)[:depth]
        label, path = clean(folder), os.path.join(tree.folder, file)
        folders_of[label].add(folder)
        clips[split[0] if split else split_of.get(file, "train")].append(Clip(path, FileAudio(path), label))
    for label, folders in folders_of.items():
        if folders != {label}:
            notes.append(f"{name}: the class {label!r} is of {named([repr(one) for one in sorted(folders)])}")
    note_empty(name, tree, depth, notes)
    return clips


def are_splits(name: str, tree: Tree, notes: list[str]) -> bool:
    """Whether the folders are splits, which hold class folders; if not, they are classes."""
    flat = {parts(file)[0] for file in tree.audio if len(parts(file)) == 2}  # folders that hold audio
    nested = {parts(file)[0] for file in tree.audio if len(parts(file)) > 2}  # whose folders do
    folders = sorted(flat | nested)
    splits = [folder for folder in folders if split_meant(folder)]
    train = {folder for folder in splits if split_meant(folder) == "train"}
    has_others = len(splits) < len(folders)
    if splits and not has_others:
        if not nested >= (train or set(splits)):
            raise UserError(
                f"{name} holds the split folders {named(splits)}, but no class folders in them: give each "
                "class a folder in each split, or give a table with the labels."
            )
        return True
    if not train:
        return False
    has_several = len({split_meant(folder) for folder in splits}) > 1
    if has_several and nested >= train and not flat & train:
        return True
    if has_several or nested & train:
        raise UserError(
            f"{name} holds the folders {named(folders)}, which may be splits or classes. For splits, leave "
            f"no other folders beside them; for classes, rename {named(splits)}; or give a table."
        )
    notes.append(f"{name}: the folder {named(splits)} is taken for a class, beside {named(folders)}")
    return False


def listed_splits(name: str, tree: Tree, notes: list[str]) -> dict[str, str]:
    """The split of each file that a list of a split names, where there are such lists beside the classes."""
    split_of: dict[str, str] = {}
    there = set(tree.audio)
    for file in list(tree.others[NO_AUDIO]):
        if not file.endswith(LISTS) or not split_meant(split := file.removesuffix(LISTS)):
            continue
        listed = (tree.folder / file).read_text(encoding="utf-8", errors="replace").split("\n")
        files = [os.path.normpath(line.strip()) for line in listed if line.strip()]
        found = [one for one in files if one in there]
        split_of |= dict.fromkeys(found, split)
        lacking = f", {len(files) - len(found)} more that it names are not there" if found != files else ""
        notes.append(f"{name}: {len(found)} clips in {file} are the split {split!r}{lacking}")
    return split_of


def note_empty(name: str, tree: Tree, depth: int, notes: list[str]) -> None:
    """Name the class folders that hold no audio, and what they hold."""
    holding = {parts(file)[:depth] for file in tree.audio}
    empty = [one for one in tree.folders if len(parts(one)) == depth and parts(one) not in holding]
    held = {parts(one) for one in empty}
    others = [file for file in tree.others[NO_AUDIO] if parts(file)[:depth] in held]
    if empty:
        what = f": {len(others)} other files there, as {others[0]}" if others else ""
        notes.append(f"{name}: no class, as no audio, in the folder {named(empty)}{what}")


def parts(file: str) -> tuple[str, ...]:
    return tuple(file.split(os.sep))
