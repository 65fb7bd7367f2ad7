"""A name on the command line -> clips: folders, tables, Hub data sets, and the order of labels."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest
import soundfile
from data_helpers import noise, write_class_folders, write_table, write_wav
from source_helpers import left_out, load, named, refusal, sizes

from audiocls import __version__
from audiocls.data import sources
from audiocls.data.clips import Source
from audiocls.data.columns import Columns
from audiocls.data.sources import label_order, load_source
from audiocls.errors import InputOutputFailed, UserError

# Folders


def test_a_folder_of_class_folders_is_a_train_split(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"dog": 2, "cat": 1})
    source = load(folder)
    assert named(source) == {"train": [("00.wav", "cat"), ("00.wav", "dog"), ("01.wav", "dog")]}
    assert source.notes == []
    assert source.label_names == []
    for clip in source.splits["train"]:
        assert clip.audio.read() == Path(clip.path) and Path(clip.path).exists()


def test_names_with_spaces_and_other_letters_are_kept(tmp_path: Path) -> None:
    write_wav(tmp_path / "my sounds" / "große Katze" / "première prise 1.wav")
    (clip,) = load(tmp_path / "my sounds").splits["train"]
    assert clip.label == "große Katze"
    assert clip.path == str(tmp_path / "my sounds" / "große Katze" / "première prise 1.wav")


def test_audio_in_subfolders_in_any_case_and_of_any_format_belongs_to_the_class_above(
    tmp_path: Path,
) -> None:
    write_wav(tmp_path / "sounds" / "dog" / "monday" / "A.WAV")
    write_wav(tmp_path / "sounds" / "dog" / "b.wav")
    (tmp_path / "sounds" / "dog" / "c.m4a").write_bytes(b"\0\0\0 ftypM4A ")  # libsndfile cannot read it
    expected = [("b.wav", "dog"), ("c.m4a", "dog"), ("A.WAV", "dog")]
    assert named(load(tmp_path / "sounds")) == {"train": expected}


@pytest.mark.parametrize("names", [("train", "validation", "test"), ("train", "dev", "testing")])
def test_train_validation_and_test_folders_are_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names, start=1):
        write_class_folders(tmp_path / "sounds" / name, {"dog": number, "cat": number})
    source = load(tmp_path / "sounds")
    assert sizes(source) == dict(zip(names, (2, 4, 6), strict=True))
    assert {clip.label for clips in source.splits.values() for clip in clips} == {"dog", "cat"}


def test_hidden_and_other_files_are_passed_over_and_counted(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds", {"dog": 2, "cat": 2})
    (folder / "dog" / "notes.txt").write_text("woof")
    (folder / "dog" / ".DS_Store").write_bytes(b"\0")
    (folder / "cat" / "._00.wav").write_bytes(b"\0")  # what macOS leaves beside a file
    write_wav(folder / ".cache" / "x.wav")
    write_wav(folder / "cat" / ".trash" / "x.wav")
    source = load(folder)
    assert len(source.splits["train"]) == 4
    assert left_out(source) == {"not audio": 1, "hidden": 4}
    assert source.account({"train": 4}) == (
        f"{folder}: 9 files: train 4 clips; "
        "left out: 4 hidden, such as .cache/x.wav; 1 not audio, such as dog/notes.txt"
    )


def test_files_in_no_class_folder_of_a_split_are_counted_too(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "sounds" / "train", {"dog": 1, "cat": 1}).parent
    write_wav(folder / "train" / "stray.wav")
    write_wav(folder / "stray.wav")
    assert left_out(load(folder)) == {"in no class folder": 2}


def test_two_first_demos_at_once_are_both_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path) -> None:  # another process is done just before
        write_class_folders(folder / "train", {"dog": 1, "cat": 1})
        if not list(tmp_path.glob("demo-*")):
            shutil.copytree(folder, tmp_path / f"demo-{__version__}")

    monkeypatch.setattr(sources, "write_demo", write)
    assert len(load_source("demo", Columns(), cache_dir=tmp_path).splits["train"]) == 2
    assert not list(tmp_path.glob("unfinished-*"))


def test_a_folder_without_class_folders_says_how_to_arrange_it(tmp_path: Path) -> None:
    write_wav(tmp_path / "flat" / "a.wav")
    assert "Give each class a folder of its own" in refusal(tmp_path / "flat")
    (tmp_path / "empty").mkdir()
    assert "holds no audio" in refusal(tmp_path / "empty")


def test_what_is_no_data_set_is_said_without_asking_the_hub(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav")
    assert "is a file, not a data set" in refusal(tmp_path / "a.wav")
    assert "There is no " in refusal(tmp_path / "nowhere")
    assert "There is no " in refusal("./nowhere")
    assert "There is no " in refusal("one/two/three")


# Manifests


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_manifest_names_files_relative_to_itself_or_absolutely(tmp_path: Path, suffix: str) -> None:
    away = tmp_path / "else where" / "b.wav"
    rows = [("clips/a.wav", "yes"), (str(away), "no")]
    path = tmp_path / "set" / f"clips.{suffix}"
    path.parent.mkdir()
    if suffix == "jsonl":
        path.write_text("".join(json.dumps({"path": file, "label": label}) + "\n" for file, label in rows))
    else:
        write_table(path, ("path", "label"), rows)
    source = load(path)
    assert [(clip.path, clip.label) for clip in source.splits["train"]] == [
        (str(tmp_path / "set" / "clips" / "a.wav"), "yes"),
        (str(away), "no"),
    ]
    assert source.notes == []


def test_quoted_cells_may_hold_separators_and_quotes(tmp_path: Path) -> None:
    write_table(tmp_path / "clips.csv", ("path", "label"), [("a, b.wav", 'the "best", so far')])
    assert named(load(tmp_path / "clips.csv")) == {"train": [("a, b.wav", 'the "best", so far')]}


def test_a_group_column_names_each_clips_group(tmp_path: Path) -> None:
    rows = [("a.wav", "yes", "ann"), ("b.wav", "no", 7)]
    write_table(tmp_path / "clips.csv", ("path", "label", "speaker"), rows)
    source = load(tmp_path / "clips.csv", group="speaker")
    assert [clip.group for clip in source.splits["train"]] == ["ann", "7"]
    assert [clip.group for clip in load(tmp_path / "clips.csv").splits["train"]] == [None, None]
    message = refusal(tmp_path / "clips.csv", group="person")
    assert "'person'" in message
    assert "path, label, speaker" in message
    assert "--group-column" in message


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_clips_without_a_label_are_left_out_and_counted(tmp_path: Path, suffix: str) -> None:
    labels = ["yes", "", "-1", " ", "no", "0"]
    path = tmp_path / f"clips.{suffix}"
    if suffix == "csv":
        write_table(path, ("path", "label"), [(f"{i}.wav", label) for i, label in enumerate(labels)])
    else:
        values = enumerate([*labels[:2], -1, None, "no", 0])
        path.write_text("\n".join(json.dumps({"path": f"{i}.wav", "label": value}) for i, value in values))
    source = load(path)
    assert named(source) == {"train": [("0.wav", "yes"), ("4.wav", "no"), ("5.wav", "0")]}
    assert left_out(source) == {"without a label": 3}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"path": "a.wav", "label": "yes"}\n{"path": \n'),
        ("a.csv", b"path,label\n\x81\xfe,yes\n"),
        ("a.csv", b""),
        ("a.csv", b"path,label\n"),
        ("a.jsonl", b"\n"),
        ("a.csv", b"path,label\n,yes\n"),
    ],
)
def test_a_manifest_that_says_nothing_usable_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert name in refusal(tmp_path / name)


def test_a_manifest_that_is_not_there_is_an_input_that_failed(tmp_path: Path) -> None:
    with pytest.raises(InputOutputFailed, match=r"nowhere\.csv cannot be read"):
        load(tmp_path / "nowhere.csv")


def test_a_missing_column_is_told_with_those_there_are(tmp_path: Path) -> None:
    write_table(tmp_path / "clips.csv", ("clip_name", "spoken", "split"), [("a.wav", "yes", "train")])
    message = refusal(tmp_path / "clips.csv")
    for words in ("obviously the audio", "clip_name, spoken, split", "--audio-column"):
        assert words in message
    message = refusal(tmp_path / "clips.csv", audio="clip_name", label="label")
    for words in ("'label'", "clip_name, spoken, split", "--label-column"):
        assert words in message


@pytest.mark.parametrize(("audio", "label"), [("wav", "target"), ("file", "class"), ("filename", "category")])
def test_one_obvious_column_is_taken_and_noted(tmp_path: Path, audio: str, label: str) -> None:
    write_table(tmp_path / "clips.csv", (audio, label), [("a.wav", "yes")])
    source = load(tmp_path / "clips.csv")
    assert named(source) == {"train": [("a.wav", "yes")]}
    assert len(source.notes) == 2
    assert f"the column '{audio}' is taken for the audio" in source.notes[0]
    assert f"the column '{label}' is taken for the label" in source.notes[1]


# Hub data sets: their features decide


def hub_source(monkeypatch: pytest.MonkeyPatch, **columns: str) -> Source:
    """What load_source makes of a Hub data set with three clips, held in memory."""
    import datasets

    wav = io.BytesIO()
    soundfile.write(wav, noise(800), 8_000, format="WAV")
    rows = {"intent_class": [1, 0, -1], "lang_id": [0, 1, 0], "speaker": ["ann", "bob", "ann"]}
    audio = [{"bytes": wav.getvalue(), "path": "x.wav"}] * 3
    table = datasets.Dataset.from_dict(rows | {"audio": audio})  # cast afterwards: encoding needs torchcodec
    table = table.cast_column("audio", datasets.Audio(sampling_rate=8_000))
    table = table.cast_column("intent_class", datasets.ClassLabel(names=["zoo", "ant"]))
    table = table.cast_column("lang_id", datasets.ClassLabel(names=["en", "de"]))
    monkeypatch.setattr("audiocls.data.sources.commit_of", lambda *name: "0" * 40)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kw: datasets.DatasetDict({"train": table}))
    return load("owner/name", **columns)


def test_a_hub_data_set_gives_its_class_names_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    source = hub_source(monkeypatch, group="speaker")
    assert source.label_names == ["zoo", "ant"]
    assert [(clip.path, clip.label, clip.group) for clip in source.splits["train"]] == [
        ("owner/name/train/0", "ant", "ann"),
        ("owner/name/train/1", "zoo", "bob"),
    ]
    assert left_out(source) == {"without a label": 1}
    assert source.notes == ["owner/name: columns not used: lang_id"]
    recording = source.splits["train"][0].audio.read()
    assert isinstance(recording, bytes)
    assert recording[:4] == b"RIFF"


def test_a_hub_data_set_says_which_of_its_columns_hold_no_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'speaker' holds no audio"):
        hub_source(monkeypatch, audio="speaker", label="intent_class")
    with pytest.raises(UserError, match=r"no column 'label'\. It has: .*intent_class.*--label-column"):
        hub_source(monkeypatch, audio="audio", label="label")


# The order of labels


def test_labels_are_sorted_as_text_but_whole_numbers_by_value() -> None:
    assert label_order(["b", "a", "C", "b"]) == ["C", "a", "b"]
    assert label_order(["10", "9", "1", "9"]) == ["1", "9", "10"]
    assert label_order(["10", "-2", "0"]) == ["-2", "0", "10"]
    assert label_order(["10", "9", "nine"]) == ["10", "9", "nine"]


@pytest.mark.parametrize("labels", [["1", "01"], ["²", "1"], ["--1", "2"], ["-", "1"], ["٣", "1"]])
def test_labels_that_only_look_like_numbers_are_ordered_too(labels: list[str]) -> None:
    assert set(label_order(labels)) == set(labels)
    assert label_order(labels) == label_order(labels[::-1])


@pytest.mark.skipif(os.name != "posix", reason="other systems refuse such a name")
def test_a_class_folder_whose_name_is_not_unicode_is_refused_or_kept_but_no_bug(tmp_path: Path) -> None:
    dog = write_wav(tmp_path / "sounds" / "dog" / "a.wav")
    shutil.copytree(dog.parent, tmp_path / "sounds" / os.fsdecode(b"caf\xe9"))
    try:
        source = load(tmp_path / "sounds")
    except UserError:
        return
    assert len(source.splits["train"]) == 2
