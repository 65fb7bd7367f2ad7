"""What a folder holds: tables, classes, or splits of classes. What could be two of them is refused."""

import os
import re
from collections import defaultdict
from pathlib import Path

from audiocls.data.clips import Clip, FileAudio
from audiocls.data.columns import clean, split_meant
from audiocls.data.trees import NO_AUDIO, Tree, parts
from audiocls.errors import UserError, named, number_of
from audiocls.tables import FORMATS, failing_to_read, open_text

NO_CLASS = "in no class folder"
PART_OF_NAME = {"data", "set", "split", "clips", "labels", "metadata", "manifest"}  # train_data.csv
LISTS = "_list.txt"  # Speech Commands' validation_list.txt and testing_list.txt: the path of a clip a line


def tables_in(name: str, tree: Tree) -> dict[str, str | None]:
    """The tables in a folder that say what its clips are, each with the name of its split, if it has one.

    That is the Hub's metadata.csv, or tables called like splits (train.csv, test_data.csv), train among them
    or no class folders beside them, or parquet files without those. Raises UserError where it is not clear
    which of them.
    """
    has_classes = len(folders_with_audio(tree)) > 1
    found: dict[str, str | None] = {}
    for file in filter(is_table, tree.others[NO_AUDIO]):
        *above, last = parts(file)
        first, *words = re.split(r"[-_.]", Path(last).stem)
        split = next((word for word in (first, *above[::-1]) if split_meant(word)), None)
        is_metadata = Path(file).stem == "metadata" and (not above or above == [split])
        is_split = not above and split == first and (is_parquet(file) or PART_OF_NAME.issuperset(words))
        if is_metadata or is_split or (is_parquet(file) and not has_classes):
            found[file] = split
    splits = list(found.values())
    if has_classes and not any(split is None or split_meant(split) == "train" for split in splits):
        return {}
    shared = [file for file, split in found.items() if splits.count(split) > 1 or None in splits]
    folders = {parts(file)[:-1] for file in shared} - {(split,) for split in splits}
    is_mixed = None in splits and any(splits)
    are_shards = all(map(is_parquet, shared)) and len(folders) < 2 and not is_mixed
    if len(shared) > 1 and not are_shards:
        or_folder = ", or its folder" if len(folders) > 1 else ""
        raise UserError(f"{name} holds several tables, {named(shared)}: give one of them{or_folder}.")
    return found


def is_table(file: str) -> bool:
    return Path(file).suffix.lower() in FORMATS


def is_parquet(file: str) -> bool:
    return file.lower().endswith(".parquet")


def class_of(file: str) -> str | None:
    """The class of a file by its folder, or by that in its split's folder; None where it lies in none."""
    *above, _ = parts(file)
    if above and split_meant(above[0]):
        above = above[1:]
    return clean(above[0]) if above else None


def folders_with_audio(tree: Tree) -> list[str]:
    """Those directly in the folder."""
    return sorted({parts(file)[0] for file in tree.audio if len(parts(file)) > 1})


def check_class_folders(name: str, tree: Tree) -> None:
    """Raises UserError where no class folders are there, with what there is."""
    tops = folders_with_audio(tree)
    files = [file for files in (tree.audio, *tree.others.values()) for file in files]
    tables = list(filter(is_table, files))
    there = f"{number_of(len(files), 'file')}, such as {files[0]}" if files else "no files"
    if len(tops) < 2 and tables:
        table = Path(name, tables[0])
        apart = tops and tops[0] != parts(tables[0])[0]
        audio_folder = f" --audio-folder {Path(name, *tops)}" if apart else ""
        of_splits = any(
            split_meant(Path(file).stem) or split_meant(Path(file).parent.name) for file in tables
        )
        other = Path(name, parts(tables[0])[0]) if of_splits and len(parts(tables[0])) > 1 else table
        raise UserError(
            f"{name} holds no class folders, but {named(tables, 3)}: give --dataset {other}{audio_folder}."
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


def check_depth(name: str, tree: Tree, depth: int, notes: list[str]) -> None:
    """Raises UserError where the classes may be the folders below those at `depth`, or notes it.

    It is an error where those hold splits, are called like splits or folds, or where they are one folder.
    """
    inside: dict[str, set[str]] = defaultdict(set)  # class -> the folders in it, "" for files
    for file in tree.audio:
        if len(parts(file)) > depth:
            *folders, _ = parts(file)[depth - 1 :]
            inside[folders[0]].add(folders[1] if len(folders) > 1 else "")
    below = set().union(*inside.values()) - {""}
    words = [re.split(r"[\W_\d]+", folder.casefold()) for folder in inside]
    are_divisions = len(inside) > 1 and all(any(w == "fold" or split_meant(w) for w in of) for of in words)
    hold_splits = any(len({split_meant(one) for one in folders} - {None}) > 1 for folders in inside.values())
    is_one = depth == 2 and len(inside) == 1 and len(below) > 1
    either = (
        f"{name}: the classes may be {named(sorted(inside))}, or the folders in them, {named(sorted(below))}"
    )
    if are_divisions or hold_splits or is_one:
        raise UserError(f"{either}. Arrange them as train/class/file, or class/file, or give a table.")
    if len(inside) > 1 and len(below) > 1 and all(folders == below for folders in inside.values()):
        notes.append(f"{either}: the former are taken")


def class_clips(name: str, tree: Tree, notes: list[str]) -> dict[str, list[Clip]]:
    """The clips of each split, of the audio that lies in class folders.

    Audio that lies in none goes over to `tree.others`. Raises UserError where the folders do not say what the
    classes are.
    """
    depth = 2 if are_splits(name, tree, notes) else 1  # of a class's folder
    if strays := [file for file in tree.audio if len(parts(file)) <= depth]:
        tree.others[NO_CLASS] += strays
        tree.audio = [file for file in tree.audio if len(parts(file)) > depth]
    check_depth(name, tree, depth, notes)
    split_of = listed_splits(name, tree, notes) if depth == 1 else {}
    clips: dict[str, list[Clip]] = defaultdict(list)
    folders_of: dict[str, set[str]] = defaultdict(set)
    for file in tree.audio:
        *split, folder = parts(file)[:depth]
        label, path = clean(folder) or folder, os.path.join(tree.folder, file)
        folders_of[label].add(folder)
        clips[split[0] if split else split_of.get(file, "train")].append(Clip(path, FileAudio(path), label))
    for label, folders in folders_of.items():
        if folders != {label}:
            spelled = [ascii(one) for one in sorted(folders)]
            notes.append(f"{name}: the class {label!r} is of {named(spelled)}")
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
    others = [folder for folder in folders if folder not in splits]
    notes.append(f"{name}: the folder {named(splits)} is taken for a class, beside {named(others)}")
    return False


def listed_splits(name: str, tree: Tree, notes: list[str]) -> dict[str, str]:
    """The split of each file that a list of a split names, where there are such lists beside the classes.

    Raises UserError where a file is in two of them.
    """
    split_of: dict[str, str] = {}
    there = set(tree.audio)
    for file in list(tree.others[NO_AUDIO]):
        split = file.lower().removesuffix(LISTS)
        if split == file.lower() or not split_meant(split):
            continue
        with failing_to_read(tree.folder / file), open_text(tree.folder / file, notes) as lines:
            listed = {os.path.normpath(line.strip("\ufeff \t\r\n").replace("\\", "/")) for line in lines}
        listed -= {"."}
        if not listed & there:
            raise UserError(f"{name}: {file} names no clip that is there: move it out of the folder.")
        if twice := sorted(listed & split_of.keys()):
            raise UserError(f"{name}: {twice[0]} is in the lists of {split_of[twice[0]]} and of {split}.")
        split_of |= dict.fromkeys(listed & there, split)
        lacking = f", {len(listed - there)} more that it names are not there" if listed - there else ""
        notes.append(
            f"{name}: {number_of(len(listed & there), 'clip')} in {file} are the split {split!r}{lacking}"
        )
        tree.others[NO_AUDIO].remove(file)
        tree.others["read as the list of a split"].append(file)
    if "train" in map(split_meant, split_of.values()) and (rest := len(there - split_of.keys())):
        notes.append(f"{name}: {number_of(rest, 'clip')} in no list are trained on too")
    return split_of


def note_empty(name: str, tree: Tree, depth: int, notes: list[str]) -> None:
    """Name the class folders that hold no audio, and what they hold."""
    holding = {parts(file)[:depth] for file in tree.audio}
    empty = [one for one in tree.folders if len(parts(one)) == depth and parts(one) not in holding]
    held = {parts(one) for one in empty}
    others = [file for file in tree.others[NO_AUDIO] if parts(file)[:depth] in held]
    if empty:
        what = f": {number_of(len(others), 'other file')}, such as {others[0]}" if others else ""
        notes.append(f"{name}: no audio, and so no class, in {named(empty)}{what}")
