"""A folder is read as what it plainly is, or refused with what it may be; each file is accounted for."""

import os
from pathlib import Path
from typing import Any

import pytest
from data_helpers import config_for, write_class_folders, write_table, write_wav
from source_helpers import labels, left_out, load, named, refusal, said, sizes, write_clips_of

from audiocls.data import trees
from audiocls.data.prepare import prepare_data
from audiocls.data.signatures import AUDIO_SUFFIXES
from audiocls.data.trees import walk
from audiocls.errors import InputOutputFailed, UserError
from audiocls.inference.inputs import expand


def classes(source: Any, split: str = "train") -> set[str]:
    return set(labels(source, split))


def total(folder: Path) -> int:
    """The files below a folder, links to folders not followed."""
    return sum(len(files) for _, _, files in os.walk(folder))


# Links


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "elsewhere", {"zero": 3, "one": 2})
    folder = write_class_folders(tmp_path / "linked", {"two": 2})
    (folder / "zero").mkdir()
    (folder / "zero" / "session1").symlink_to(tmp_path / "elsewhere" / "zero")
    (folder / "one").symlink_to(tmp_path / "elsewhere" / "one")
    (folder / "two" / "loop").symlink_to(folder)
    (folder / "two" / "self").symlink_to("self")
    (folder / "two" / "nowhere").symlink_to("nothing there")
    source = load(folder)
    assert sorted(labels(source)) == ["one"] * 2 + ["two"] * 2 + ["zero"] * 3
    assert left_out(source) == {"not audio": 2, "links to a folder that was read": 1}
    assert source.account({"train": 7}).startswith(f"{folder}: 10 files: train 7 clips; left out: ")


def test_folders_that_link_to_each_other_are_read_once_a_class(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "linked", {"a": 1, "b": 1})
    for one, other in (("a", "b"), ("b", "a")):
        for number in range(12):
            (folder / one / f"to{number}").symlink_to(folder / other)
    assert len(load(folder).splits["train"]) <= 26  # its own, and the other's once a link


def test_a_folder_that_cannot_be_read_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"dog": 1, "cat": 1})
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(trees.os, "scandir", refuse)
    with pytest.raises(InputOutputFailed, match="dog cannot be read: Permission denied"):
        load(folder)


# Splits or classes


@pytest.mark.parametrize("splits", [("train", "test"), ("Training", "dev"), ("train",), ("test", "eval")])
def test_split_folders_without_class_folders_are_refused(tmp_path: Path, splits: tuple[str, ...]) -> None:
    write_clips_of(tmp_path / "flat", [f"{split}/{i}.wav" for split in splits for i in range(3)])
    assert "no class folders in them" in refusal(tmp_path / "flat")


def test_a_test_folder_of_unlabelled_clips_is_accounted_for(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds" / "train", {"dog": 4, "cat": 4}).parent
    write_clips_of(folder, ["test/0.wav", "test/1.wav"])
    data = prepare_data(config_for(folder, max_seconds=None), 16_000, 400)
    assert data.eval_name == "held out of train"
    assert data.accounts[0].endswith("left out: 2 in no class folder, such as test/0.wav")


@pytest.mark.parametrize(
    "names",
    [
        ("train/bay1/0.wav", "train/bay2/0.wav", "bus/0.wav", "car/0.wav"),
        ("train/bay1/0.wav", "bus/bay1/0.wav", "car/bay2/0.wav"),
        ("train/0.wav", "train/bay1/0.wav", "bus/0.wav"),
        ("train/0.wav", "test/0.wav", "car/0.wav"),
        ("train/0.wav", "train/dog/0.wav", "test/dog/0.wav", "noise/0.wav"),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_refused_by_name(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    write_clips_of(tmp_path / "sounds", names)
    message = refusal(tmp_path / "sounds")
    assert "may be splits or classes" in message
    for name in {name.split("/")[0] for name in names}:
        assert name in message


@pytest.mark.parametrize("names", [("train/0.wav", "bus/0.wav", "car/0.wav"), ("test/a/0.wav", "bus/0.wav")])
def test_a_class_called_like_a_split_is_a_class_where_it_can_be_nothing_else(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    source = load(write_clips_of(tmp_path / "sounds", names))
    assert classes(source) == {name.split("/")[0] for name in names}


def test_other_folders_beside_splits_are_splits_that_are_not_used(tmp_path: Path) -> None:
    names = [f"{split}/{label}/0.wav" for split in ("train", "test") for label in "ab"]
    names += ["noisy/a/0.wav", "music/0.wav"]
    data = prepare_data(config_for(write_clips_of(tmp_path / "sounds", names)), 16_000, 400)
    assert (
        "left out: 1 in no class folder, such as music/0.wav; 1 of the split 'noisy', not used, such as "
        in data.accounts[0]
    )
    assert data.accounts[0].startswith(f"{tmp_path / 'sounds'}: 6 files: train 2 clips, evaluation (test) 2")


def test_one_folder_around_everything_is_refused_with_what_to_type(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "sounds" / "set-v1" / "audio", {"dog": 1, "cat": 1})
    (tmp_path / "sounds" / "__MACOSX").mkdir()
    (tmp_path / "sounds" / "__MACOSX" / "._a.wav").write_bytes(b"\0")
    message = refusal(tmp_path / "sounds")
    assert "holds one folder, set-v1/audio, with cat, dog in it" in message
    assert f"give --dataset {tmp_path / 'sounds' / 'set-v1' / 'audio'}" in message
    assert classes(load(tmp_path / "sounds" / "set-v1" / "audio")) == {"dog", "cat"}


# What is audio, and classes without any


def test_a_class_without_audio_is_named_with_what_it_holds(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"dog": 2, "cat": 2})
    (folder / "emu").mkdir()
    (folder / "fox").mkdir()
    (folder / "fox" / "call.xyz").write_bytes(b"x")
    note = said(load(folder), "no class")
    assert note.endswith("no audio, and so no class, in emu, fox: 1 other file, such as fox/call.xyz")
    write_class_folders(tmp_path / "two" / "train", {"dog": 1, "cat": 1})
    write_class_folders(tmp_path / "two" / "test", {"dog": 1})
    (tmp_path / "two" / "test" / "cat").mkdir()
    assert said(load(tmp_path / "two"), "no class").endswith("in test/cat")


@pytest.mark.parametrize("suffix", sorted(AUDIO_SUFFIXES))
def test_every_kind_of_recording_is_counted_as_one(tmp_path: Path, suffix: str) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"dog": 1, "cat": 1})
    (folder / "dog" / "00.wav").rename(folder / "dog" / f"00.{suffix.upper()}")
    assert classes(load(folder)) == {"dog", "cat"}


def test_class_folders_of_one_name_in_two_forms_are_one_class(tmp_path: Path) -> None:
    write_clips_of(tmp_path / "sounds", ["Caf\u00e9/0.wav", "Cafe\u0301/1.wav", "tea/2.wav"])
    source = load(tmp_path / "sounds")
    assert labels(source).count("Caf\u00e9") == 2
    assert "the class 'Café' is of" in said(source, "the class")


def test_infer_says_of_a_folder_what_training_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"dog": 2, "cat": 1})
    (folder / "notes.txt").write_text("x")
    (folder / "dog" / ".hidden.wav").write_bytes(b"x")
    (tmp_path / "elsewhere").mkdir()
    write_wav(tmp_path / "elsewhere" / "far.wav")
    (folder / "dog" / "link").symlink_to(tmp_path / "elsewhere")
    account = load(folder).account({"train": 4}).partition(": ")[2].replace("train ", "")
    assert len(list(expand([str(folder)]))) == 4
    assert (
        account
        == "6 files: 4 clips; left out: 1 not audio, such as notes.txt; 1 hidden, such as dog/.hidden.wav"
    )
    assert capsys.readouterr().err == f"note: {folder}: {account}\n"


def test_the_sums_add_up_to_the_files_there_are(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds" / "train", {"dog": 12, "cat": 12}).parent
    write_class_folders(folder / "dev", {"dog": 2, "cat": 3})
    write_clips_of(folder, ["stray.wav", "train/stray.wav", ".git/x.wav"])
    (folder / "train" / "dog" / "broken.wav").write_bytes(b"RIFF")
    (folder / "README.md").write_text("x")
    (folder / "dev" / "dog" / ".DS_Store").write_text("x")
    data = prepare_data(config_for(folder, max_bad_clips=0.5), 16_000, 400)
    (account,) = data.accounts
    assert account == (
        f"{folder}: {total(folder)} files: train 24 clips, evaluation (dev) 5 clips; left out: "
        "2 hidden, such as .git/x.wav; 2 in no class folder, such as stray.wav; "
        "1 not audio, such as README.md; "
        f"1 that cannot be used, such as {folder}/train/dog/broken.wav"
    )
    assert total(folder) == 24 + 5 + 2 + 2 + 1 + 1


# Tables in folders, and what the library `datasets` saves


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_the_hubs_audiofolder_is_read_by_its_metadata(tmp_path: Path, suffix: str) -> None:
    folder = write_clips_of(tmp_path / "set", ["data/a.wav", "b.wav", "unnamed.wav"])
    if suffix == "csv":
        (folder / "metadata.csv").write_text("file_name,label\ndata/a.wav,yes\nb.wav,no\n")
    else:
        lines = '{"file_name": "data/a.wav", "label": "yes"}\n{"file_name": "b.wav", "label": "no"}\n'
        (folder / "metadata.jsonl").write_text(lines)
    source = load(folder)
    assert named(source) == {"train": [("a.wav", "yes"), ("b.wav", "no")]}
    assert said(source, "no row names").endswith("files that no row names: 1 audio, such as unnamed.wav")


def test_metadata_in_split_folders_and_of_files_in_split_folders_divides(tmp_path: Path) -> None:
    names = [f"{split}/{i}.wav" for split in ("train", "test") for i in range(2)]
    folder = write_clips_of(tmp_path / "each", names)
    for split in ("train", "test"):
        (folder / split / "metadata.csv").write_text("file_name,label\n0.wav,yes\n1.wav,no\n")
    assert sizes(load(folder)) == {"test": 2, "train": 2}
    folder = write_clips_of(tmp_path / "one", names)
    write_table(folder / "metadata.csv", ("file_name", "label"), [(name, "x") for name in names])
    assert sizes(load(folder)) == {"train": 2, "test": 2}


def test_tables_called_like_splits_are_splits_and_others_a_line(tmp_path: Path) -> None:
    folder = write_clips_of(tmp_path / "cv", ["clips/a.wav", "clips/b.wav", "clips/c.wav"])
    for name, file in (("train", "a"), ("dev", "b"), ("validated", "a")):
        write_table(folder / f"{name}.tsv", ("path", "gender"), [(f"{file}.wav", "male")])
    source = load(folder, label="gender", audio_folder=str(folder / "clips"))
    assert named(source) == {"dev": [("b.wav", "male")], "train": [("a.wav", "male")]}
    assert said(source, "read as tables").endswith("dev.tsv, train.tsv")
    source = load(folder, label="gender")
    assert "1 not audio, such as validated.tsv" in said(source, "no row names")
    write_table(folder / "train.csv", ("path", "gender"), [("a.wav", "male")])
    assert "several tables, train.csv, train.tsv" in refusal(folder, label="gender")


def test_class_folders_with_some_table_beside_them_are_classes(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"dog": 2, "cat": 2})
    write_table(folder / "eval_notes.csv", ("a", "b"), [("1", "2")])
    source = load(folder)
    assert classes(source) == {"dog", "cat"}
    assert source.left_out["not audio"][0] == "eval_notes.csv"


def test_a_folder_with_a_table_of_another_name_says_what_to_type(tmp_path: Path) -> None:
    folder = write_clips_of(tmp_path / "ESC-50", ["audio/a.wav", "audio/b.wav"])
    write_clips_of(folder, [])
    (folder / "meta").mkdir()
    write_table(folder / "meta" / "esc50.csv", ("filename", "category"), [("a.wav", "dog")])
    message = refusal(folder)
    assert f"--dataset {folder}/meta/esc50.csv --audio-folder {folder}/audio" in message


@pytest.mark.parametrize(
    "layout", ["{}-00000-of-00002.parquet", "data/{}-00000-of-00001.parquet", "{}/0000.parquet"]
)
def test_folders_of_parquet_are_read_by_their_splits(tmp_path: Path, layout: str) -> None:
    import datasets

    for split, count in (("train", 3), ("validation", 2)):
        cells = [{"bytes": b"x", "path": "x.wav"}] * count
        path = tmp_path / "set" / layout.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict({"audio": cells, "label": ["a"] * count}).to_parquet(path)
        if "of-00002" in layout:
            second = Path(str(path).replace("00000-of", "00001-of"))
            datasets.Dataset.from_dict({"audio": cells, "label": ["b"] * count}).to_parquet(second)
    twice = 2 if "of-00002" in layout else 1
    source = load(tmp_path / "set")
    assert sizes(source) == {"train": 3 * twice, "validation": 2 * twice}
    assert len(source.notes) == 1 and "read as tables" in source.notes[0]


def test_a_folder_of_save_to_disk_is_read_with_or_without_splits(tmp_path: Path) -> None:
    import datasets

    cells = [
        {"bytes": b"x", "path": "x.wav"},
        {"bytes": None, "path": "y.wav"},
        {"bytes": None, "path": None},
    ]
    rows = datasets.Dataset.from_dict({"audio": cells, "label": ["a", "b", "a"]})
    rows.save_to_disk(tmp_path / "one")
    source = load(tmp_path / "one")
    assert labels(source) == ["a", "b", "a"]
    first, second, third = (clip.audio for clip in source.splits["train"])
    assert first.read() == b"x"
    with pytest.raises(ValueError, match=r"names .*y\.wav, which is not there"):
        second.read()
    write_wav(tmp_path / "elsewhere" / "y.wav")
    second = load(tmp_path / "one", audio_folder=str(tmp_path / "elsewhere")).splits["train"][1].audio
    assert second.read() == tmp_path / "elsewhere" / "y.wav"
    with pytest.raises(ValueError, match="neither audio nor the path"):
        third.read()
    datasets.DatasetDict({"train": rows, "dev": rows}).save_to_disk(tmp_path / "two")
    assert sizes(load(tmp_path / "two")) == {"train": 3, "dev": 3}


# Layouts of well-known data sets


def test_esc_50_is_read_as_it_is(tmp_path: Path) -> None:
    rows = [
        ("1-100032-A-0.wav", 1, 0, "dog", "True", 100032, "A"),
        ("1-100038-A-14.wav", 1, 14, "chirping_birds", "False", 100038, "A"),
        ("2-100210-A-0.wav", 2, 0, "dog", "True", 100210, "A"),
    ]
    root = write_clips_of(tmp_path / "ESC-50-master", [f"audio/{name}" for name, *_ in rows])
    (root / "meta").mkdir()
    header = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    source = load(write_table(root / "meta" / "esc50.csv", header, rows), audio_folder=str(root / "audio"))
    assert named(source) == {"train": [(row[0], row[3]) for row in rows]}
    assert all(Path(clip.path).exists() for clip in source.splits["train"])


def test_urbansound8k_is_read_as_it_is(tmp_path: Path) -> None:
    rows = [
        ("100032-3-0-0.wav", 100032, 0.0, 0.317551, 1, 5, 3, "dog_bark"),
        ("100263-2-0-117.wav", 100263, 58.5, 62.5, 1, 9, 2, "children_playing"),
    ]
    root = tmp_path / "UrbanSound8K"
    for row in rows:  # cut already: start and end are places in the recordings that they were cut out of
        write_wav(root / f"audio/fold{row[5]}/{row[0]}", row[3] - row[2])
    (root / "metadata").mkdir()
    header = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
    path = write_table(root / "metadata" / "UrbanSound8K.csv", header, rows)
    source = load(path, audio_folder=str(root / "audio"))
    assert named(source) == {"train": [(row[0], row[-1]) for row in rows]}
    assert all(Path(clip.path).exists() for clip in source.splits["train"])


def test_common_voice_is_read_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "cv" / "en"
    header = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\tsegment"
    for split, first in (("train", 0), ("dev", 4), ("test", 6), ("invalidated", 8)):
        lines = [header]
        for number in range(first, first + (4 if split == "train" else 2)):
            # The first version's names have no suffix.
            name = f"common_voice_en_{number}" + ("" if number % 2 else ".wav")
            gender = ("male", "female", "", "male")[number % 4]
            lines.append(f'c{number}\t{name}\t"Said he, {number}.\t2\t0\ttwenties\t{gender}\t\ten\t')
            write_wav(root / "clips" / f"common_voice_en_{number}.wav", seed=number)
        root.mkdir(exist_ok=True, parents=True)
        (root / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = load(root, label="gender", audio_folder=str(root / "clips"))
    assert sizes(source) == {"train": 3, "dev": 2, "test": 1}
    assert left_out(source) == {"without a label": 2}
    clips = [clip for split in source.splits.values() for clip in split]
    assert all(Path(clip.path).exists() for clip in clips)
    only = load(root / "train.tsv", label="gender", audio_folder=str(root / "clips"))
    assert labels(only) == ["male", "female", "male"]


def test_superbs_keyword_spotting_is_read_with_its_lists(tmp_path: Path) -> None:
    names = [f"{word}/{i:08x}_nohash_0.wav" for word in ("yes", "no") for i in range(4)]
    root = write_clips_of(tmp_path / "speech_commands", [*names, "_background_noise_/pink_noise.wav"])
    (root / "validation_list.txt").write_text(f"{names[0]}\n{names[4]}\nup/gone_nohash_0.wav\n")
    (root / "testing_list.txt").write_text(f"{names[1]}\r\n{names[5]}\r\n")
    (root / "LICENSE").write_text("CC")
    source = load(root)
    assert sizes(source) == {"train": 5, "validation": 2, "testing": 2}
    assert (
        "2 clips in validation_list.txt are the split 'validation', 1 more that it names are not there"
        in said(source, "validation_list")
    )


def test_superbs_intent_tables_and_hub_rows_are_read_as_they_are(tmp_path: Path) -> None:
    root = write_clips_of(tmp_path / "fluent", ["wavs/speakers/a1/x.wav", "wavs/speakers/b2/y.wav"])
    (root / "data").mkdir()
    header = ("", "path", "speakerId", "transcription", "action", "object", "location")
    for name, file in (("train", "a1/x"), ("valid", "b2/y")):
        row = (0, f"wavs/speakers/{file}.wav", file[:2], "Turn on, please", "activate", "lights", "none")
        write_table(root / "data" / f"{name}_data.csv", header, [row])
    source = load(root / "data", label="action", group="speakerId", audio_folder=str(root))
    assert sizes(source) == {"train": 1, "valid": 1}
    assert [clip.group for clip in source.splits["train"]] == ["a1"]
    assert all(Path(clip.path).exists() for clips in source.splits.values() for clip in clips)
    rows = '{{"file": "a{0}.wav", "audio": {{"path": "a{0}.wav", "sampling_rate": 16000}}, "label": {0}}}\n'
    (tmp_path / "ks.jsonl").write_text(rows.format(3) + rows.format(11))
    assert labels(load(tmp_path / "ks.jsonl")) == ["3", "11"]


# The walk itself


def test_a_tree_names_everything_once_and_in_order(tmp_path: Path) -> None:
    write_clips_of(tmp_path, ["b/1.wav", "a/z/2.wav", "a/1.wav", "a-b/1.wav", "c.wav"])
    (tmp_path / "a" / "x.txt").write_text("x")
    tree = walk(tmp_path)
    assert tree.audio == ["a/1.wav", "a/z/2.wav", "a-b/1.wav", "b/1.wav", "c.wav"]
    assert tree.folders == ["a", "a/z", "a-b", "b"]
    assert dict(tree.others) == {"not audio": ["a/x.txt"]}
    with pytest.raises(UserError, match="holds no audio"):
        (tmp_path / "empty").mkdir()
        load(tmp_path / "empty")


# Layouts that may mean two things


def test_a_hidden_link_takes_nothing_from_a_visible_folder(tmp_path: Path) -> None:
    folder = write_clips_of(tmp_path / "sounds", ["dog/x/real/0.wav", "dog/x/real/1.wav", "cat/0.wav"])
    (folder / "dog" / "x" / ".zz").symlink_to("real")
    assert labels(load(folder)) == ["cat", "dog", "dog"]


def test_a_folder_and_a_link_to_it_are_read_once_under_the_folders_name(tmp_path: Path) -> None:
    folder = write_clips_of(tmp_path / "sounds", ["cat/0.wav", "dog/real/0.wav", "dog/real/1.wav"])
    (folder / "dog" / "alias").symlink_to("real")
    (folder / "bird").symlink_to("cat")
    source = load(folder)
    assert [Path(clip.path).relative_to(folder).as_posix() for clip in source.splits["train"]] == [
        *("cat/0.wav", "dog/real/0.wav", "dog/real/1.wav")
    ]
    assert source.left_out == {"links to a folder that was read": ["bird", "dog/alias"]}


@pytest.mark.parametrize(
    "names",
    [
        [f"{label}/{split}/0.wav" for label in ("dog", "cat") for split in ("train", "test")],
        [
            f"{lang}/{split}/{word}/0.wav"
            for lang in ("en", "de")
            for split in ("train", "dev")
            for word in "ab"
        ],
        [f"fold{fold}/{label}/0.wav" for fold in (1, 2, 3) for label in ("dog", "cat")],
        [f"{split}/{label}/0.wav" for split in ("train1", "train2", "test1") for label in ("a", "b")],
        [f"audio_{split}/{label}/0.wav" for split in ("train", "test") for label in ("a", "b")],
        [f"train/audio/{label}/0.wav" for label in ("yes", "no")] + ["test/audio/0.wav"],
    ],
)
def test_classes_that_may_lie_a_level_deeper_are_refused(tmp_path: Path, names: list[str]) -> None:
    message = refusal(write_clips_of(tmp_path / "sounds", names))
    assert "the classes may be" in message
    assert "Arrange them as train/class/file" in message


def test_folders_of_one_kind_in_each_class_are_said(tmp_path: Path) -> None:
    names = [f"{label}/{speaker}/0.wav" for label in ("yes", "no") for speaker in ("ann", "ben")]
    source = load(write_clips_of(tmp_path / "sounds", names))
    assert classes(source) == {"yes", "no"}
    assert said(source, "may be").endswith(
        "may be no, yes, or the folders in them, ann, ben: the former are taken"
    )


def test_class_folders_beside_a_table_of_other_labels_are_refused_until_its_column_is_named(
    tmp_path: Path,
) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"dog": 1, "cat": 1})
    rows = [("dog/00.wav", "indoor"), ("cat/00.wav", "outdoor")]
    write_table(folder / "metadata.csv", ("file_name", "category"), rows)
    message = refusal(folder)
    assert "is 'indoor' by its table, and 'dog' by its folder" in message
    assert "if those are the classes or splits, move metadata.csv out of it" in message
    assert classes(load(folder, label="category")) == {"indoor", "outdoor"}
    write_table(
        folder / "metadata.csv", ("file_name", "category"), [("dog/00.wav", "dog"), ("cat/00.wav", "cat")]
    )
    assert classes(load(folder)) == {"dog", "cat"}


@pytest.mark.parametrize("name", ["metadata.csv", "train_data.csv", "training.csv"])
def test_a_table_of_something_else_beside_class_folders_is_named(tmp_path: Path, name: str) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"dog": 1, "cat": 1})
    write_table(folder / name, ("epoch", "loss"), [("1", "2.0")])
    message = refusal(folder)
    assert f"{name}, and the folders cat, dog" in message
    assert f"move {name} out of it" in message


def test_a_table_of_test_clips_beside_class_folders_is_a_line(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"dog": 2, "cat": 2})
    write_table(folder / "test.csv", ("path", "label"), [("dog/00.wav", "dog")])
    assert said(load(folder), "not read").endswith("tables not read, beside class folders: test.csv")


def test_lists_of_splits_in_any_spelling_and_what_is_in_two_of_them(tmp_path: Path) -> None:
    names = [f"{word}/{i}.wav" for word in ("yes", "no") for i in range(4)]
    root = write_clips_of(tmp_path / "commands", names)
    (root / "Testing_List.TXT").write_bytes("yes\\0.wav\r\nno/0.wav\r\nno/0.wav\r\n".encode("utf-16"))
    source = load(root)
    assert sizes(source) == {"train": 6, "testing": 2}
    assert "2 clips in Testing_List.TXT are the split 'testing'" in said(source, "Testing_List")
    assert source.left_out == {"read as the list of a split": ["Testing_List.TXT"]}
    (root / "validation_list.txt").write_bytes(b"\xef\xbb\xbfyes/0.wav\n")
    assert "yes/0.wav is in the lists of testing and of validation" in refusal(root)
    (root / "validation_list.txt").unlink()
    os.mkfifo(root / "validation_list.txt")
    with pytest.raises(InputOutputFailed, match="not a regular file"):
        load(root)


def test_tables_one_level_down_are_named_by_their_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_clips_of(tmp_path / "set" / "data" / split, ["0.wav"])
        (tmp_path / "set" / "data" / split / "metadata.csv").write_text("file_name,label\n0.wav,x\n")
    message = refusal(tmp_path / "set")
    assert f"give --dataset {tmp_path}/set/data" in message
    assert sizes(load(tmp_path / "set" / "data")) == {"test": 1, "train": 1}


def test_saved_data_sets_a_level_down_are_splits_or_named(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"audio": [{"bytes": b"x", "path": "x"}], "label": ["a"]})
    for split in ("train", "dev"):
        rows.save_to_disk(tmp_path / "set" / split)
    write_clips_of(tmp_path / "set" / "dev", ["stray.wav"])
    source = load(tmp_path / "set")
    assert sizes(source) == {"dev": 1, "train": 1}
    assert "1 not read, such as dev/stray.wav" in said(source, "beside what was saved")
    rows.save_to_disk(tmp_path / "set" / "german")
    assert "holds saved data sets, dev, german, train" in refusal(tmp_path / "set")


def test_parquet_beside_a_sample_and_of_several_configurations(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"audio": [{"bytes": b"x", "path": "x"}], "label": ["a"]})
    (tmp_path / "set").mkdir()
    rows.to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    write_clips_of(tmp_path / "set", ["sample.wav"])
    assert sizes(load(tmp_path / "set")) == {"train": 1}
    for config in ("en", "de"):
        (tmp_path / "configs" / config).mkdir(parents=True)
        rows.to_parquet(tmp_path / "configs" / config / "0000.parquet")
    assert "several tables, de/0000.parquet, en/0000.parquet" in refusal(tmp_path / "configs")


def test_a_table_beside_split_folders_that_lacks_their_clips_is_refused(tmp_path: Path) -> None:
    names = [f"{split}/{label}/0.wav" for split in ("train", "test") for label in ("dog", "cat")]
    folder = write_clips_of(tmp_path / "sounds", names)
    write_table(folder / "train.csv", ("path", "label"), [("train/dog/0.wav", "dog")])
    message = refusal(folder)
    assert "in a split's class folder, is in no table" in message
    assert "move train.csv out of it" in message


@pytest.mark.parametrize("table", ["labels.csv", "meta/annotations.csv"])
def test_a_table_that_gives_clips_other_labels_than_their_folders_is_refused(
    tmp_path: Path, table: str
) -> None:
    folder = write_clips_of(tmp_path / "sounds", ["Actor_01/a.wav", "Actor_02/b.wav"])
    (folder / table).parent.mkdir(exist_ok=True)
    write_table(folder / table, ("path", "label"), [("a.wav", "angry"), ("b.wav", "calm")])
    message = refusal(folder)
    assert "Actor_01/a.wav is 'angry' by its table, and 'Actor_01' by its folder" in message
    assert f"Give --dataset {folder / table}, or move it out" in message
    write_table(folder / table, ("path", "label"), [("a.wav", "Actor_01"), ("b.wav", "Actor_02")])
    assert said(load(folder), "not read").endswith(f"beside class folders: {table}")
    write_table(folder / table, ("path", "label"), [("a.wav", "7"), ("b.wav", "8")])
    assert classes(load(folder)) == {"Actor_01", "Actor_02"}


@pytest.mark.parametrize(
    "names",
    [
        ["train_data/cat/0.wav", "train_data/dog/0.wav", "test_data/cat/0.wav"],
        ["fold1/a/0.wav", "fold1/b/0.wav", "fold2/a/0.wav"],
        ["train-clean-100/19/0.wav", "dev-clean/84/0.wav"],
        ["train_set/0.wav", "test_set/0.wav"],
        ["Fold1/0.wav", "Fold2/0.wav"],
    ],
)
def test_folders_called_like_divisions_are_no_classes(tmp_path: Path, names: list[str]) -> None:
    assert "the classes may be" in refusal(write_clips_of(tmp_path / "sounds", names))


def test_a_runs_own_files_are_no_clips(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"dog": 2, "cat": 2})
    write_clips_of(folder / "runs" / "x", ["errors/0.wav"])
    (folder / "runs" / "x" / "run.json").write_text("{}")
    source = load(folder)
    assert classes(source) == {"dog", "cat"}
    assert left_out(source) == {"of a run": 2}
    assert "holds a run" in refusal(folder / "runs" / "x")
    problems = list(config_for(folder, output_dir=f"{folder}/").problems())
    assert problems == ["--output-dir is the data set's own folder: name another."]


def test_parquet_of_a_split_beside_others_and_tables_of_results_are_not_mixed_in(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "set").mkdir()
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": b"x", "path": "x"}], "label": ["a"]})
    for name in ("test", "all"):
        rows.to_parquet(tmp_path / "set" / f"{name}.parquet")
    assert "several tables, all.parquet, test.parquet" in refusal(tmp_path / "set")
    folder = write_clips_of(tmp_path / "tables", ["a.wav", "b.wav"])
    for name in ("train", "test_results"):
        write_table(folder / f"{name}.csv", ("path", "label"), [("a.wav", "x"), ("b.wav", "y")])
    assert sizes(load(folder)) == {"train": 2}


def test_kaggles_tables_beside_folders_of_their_splits_are_read(tmp_path: Path) -> None:
    folder = write_clips_of(tmp_path / "kaggle", ["train/0.wav", "train/1.wav", "test/0.wav", "test/1.wav"])
    write_table(folder / "train.csv", ("fname", "label"), [("0.wav", "x"), ("1.wav", "y")])
    write_table(folder / "test.csv", ("fname", "usage"), [("0.wav", "Public"), ("1.wav", "Private")])
    source = load(folder)
    assert [clip.path for clip in source.splits["train"]] == [
        f"{folder}/train/0.wav",
        f"{folder}/train/1.wav",
    ]
    assert left_out(source) == {"of test.csv, which has no label": 2}
    write_table(folder / "test.csv", ("fname", "label"), [("0.wav", "x"), ("1.wav", "y")])
    assert [clip.path for clip in load(folder).splits["test"]] == [
        f"{folder}/test/0.wav",
        f"{folder}/test/1.wav",
    ]


def test_split_folders_contradicted_by_metadata_are_refused(tmp_path: Path) -> None:
    names = [f"{split}/{label}/0.wav" for split in ("train", "test") for label in ("cat", "dog")]
    folder = write_clips_of(tmp_path / "sounds", names)
    write_table(folder / "metadata.csv", ("file_name", "label"), [(name, "x") for name in names])
    assert "is 'x' by its table, and 'cat' by its folder" in refusal(folder)


def test_a_list_of_training_clips_says_how_many_are_in_none_and_one_of_nothing_is_refused(
    tmp_path: Path,
) -> None:
    folder = write_clips_of(tmp_path / "sounds", [f"{label}/{i}.wav" for label in "ab" for i in range(4)])
    (folder / "train_list.txt").write_text("a/0.wav\nb/0.wav\n")
    assert "6 clips in no list are trained on too" in said(load(folder), "in no list")
    (folder / "validation_list.txt").write_text("x/0.wav\n")
    assert "validation_list.txt names no clip that is there" in refusal(folder)


def test_a_link_to_no_table_beside_class_folders_is_passed_over(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"dog": 1, "cat": 1})
    (folder / "labels.csv").symlink_to("gone.csv")
    assert said(load(folder), "not read").endswith("labels.csv")


def test_audio_elsewhere_is_accounted_for_beside_a_folder_of_a_longer_name(tmp_path: Path) -> None:
    folder = write_clips_of(tmp_path / "set", ["other.wav"])
    audio = write_clips_of(tmp_path / "set audio", ["a.wav", "unused.wav"])
    write_table(folder / "train.csv", ("path", "label"), [("a.wav", "x")])
    notes = [note for note in load(folder, audio_folder=str(audio)).notes if "no row names" in note]
    assert [note.rpartition(": ")[2] for note in notes] == [
        *("1 audio, such as other.wav", "1 audio, such as unused.wav")
    ]
