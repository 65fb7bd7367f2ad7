"""What a table's columns are and what its cells say: labels, groups, splits."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from data_helpers import config_for, write_table
from source_helpers import labels, left_out, load, named, refusal, said, sizes, write_clips_of

from audiocls.data.columns import SPLIT_NAMES, Columns, clean, split_meant
from audiocls.data.prepare import RunData, prepare_data
from audiocls.data.splits import choose_clips
from audiocls.errors import UserError


def table(
    folder: Path, header: Sequence[str], rows: Sequence[Sequence[Any]], name: str = "clips.csv"
) -> Path:
    return write_table(folder / name, header, rows)


def json_table(folder: Path, cells: Sequence[Any], column: str = "label") -> Path:
    rows = [{"path": f"{index}.wav", column: cell} for index, cell in enumerate(cells)]
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder / "clips.jsonl"


def refused_choice(path: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as refused:
        choose_clips(config_for(path, **settings), path.parent / "cache")
    return str(refused.value)


# Which column


def test_of_several_columns_that_say_the_same_the_one_in_words_is_taken(tmp_path: Path) -> None:
    # As in ESC-50 (target, category) and UrbanSound8K (classID, class).
    for id_name, name in (("target", "category"), ("classID", "class")):
        rows = [("a.wav", 0, "dog"), ("b.wav", 21, "snore"), ("c.wav", 0, "dog")]
        source = load(table(tmp_path, ("filename", id_name, name), rows))
        assert labels(source) == ["dog", "snore", "dog"]
        assert f"the column '{name}' is taken for the label, not '{id_name}'" in said(source, "for the label")


def test_columns_that_say_different_things_are_refused_by_their_names(tmp_path: Path) -> None:
    rows = [("a.wav", "dog", "pet"), ("b.wav", "cat", "pet")]
    message = refusal(table(tmp_path, ("path", "label", "category"), rows))
    assert "several columns that may be the label: 'label', 'category'" in message
    message = refusal(table(tmp_path, ("path", "file", "label"), rows))
    assert "several columns that may be the audio: 'path', 'file'" in message
    assert "--audio-column" in message


def test_the_guides_column_goes_before_others_which_is_said(tmp_path: Path) -> None:
    rows = [("x/a.wav", "a.wav", "yes", "1"), ("x/b.wav", "b.wav", "no", "1")]
    source = load(table(tmp_path, ("file", "audio", "intent_class", "label"), rows))
    assert named(source) == {"train": [("a.wav", "yes"), ("b.wav", "no")]}
    assert "the column 'audio' is taken for the audio, not 'file'" in said(source, "for the audio")
    assert "not 'label'" in said(source, "for the label")


def test_a_named_column_is_found_whatever_its_case_and_spaces(tmp_path: Path) -> None:
    path = table(tmp_path, ("path", "Spoken Word", "spoken-word 2"), [("a.wav", "x", "y")])
    assert labels(load(path, label="spoken_word")) == ["x"]
    path = table(tmp_path, ("path", "Word", "word"), [("a.wav", "x", "y")])
    assert labels(load(path, label="word")) == ["y"]
    assert "no column 'WORD'" in refusal(path, label="WORD")


def test_columns_that_are_not_used_are_a_line(tmp_path: Path) -> None:
    source = load(table(tmp_path, ("path", "label", "duration", "take"), [("a.wav", "x", 0, 1)]))
    assert said(source, "not used").endswith("columns not used: duration, take")


def test_what_is_named_and_cannot_be_used_is_refused(tmp_path: Path) -> None:
    write_clips_of(tmp_path / "sounds", ["dog/a.wav", "cat/b.wav"])
    for flag in ("audio_column", "label_column", "group_column", "split_column", "audio_folder"):
        message = refused_choice(tmp_path / "sounds", **{flag: "x"})
        assert "is a folder, which has no columns" in message
        assert f"--{flag.replace('_', '-')}" in message
    assert "--dataset-config" in refused_choice(tmp_path / "sounds", dataset_config="en")
    assert "--dataset-revision" in refused_choice(tmp_path / "sounds", dataset_revision="main")


# Labels

NOTHING = [None, "", " ", -1, -1.0, "-1", "-1.0", float("nan"), "NaN", "nan", "null", "NULL", "<NA>", "#N/A"]


@pytest.mark.parametrize("cell", NOTHING, ids=repr)
def test_what_means_nothing_in_any_type_is_no_class_and_counted(tmp_path: Path, cell: Any) -> None:
    source = load(json_table(tmp_path, ["a", cell, "b"]))
    assert labels(source) == ["a", "b"]
    assert left_out(source) == {"without a label": 1}
    assert source.left_out["without a label"][0] == "line 2"


@pytest.mark.parametrize(
    "cell",
    [["zero", "speech"], ["zero"], {"name": "zero"}, "['zero', 'speech']", '{"a": 1}', "[1]"],
    ids=repr,
)
def test_lists_and_objects_are_no_label_and_named_with_their_row(tmp_path: Path, cell: Any) -> None:
    message = refusal(json_table(tmp_path, ["a", cell]))
    assert "line 2: its label in 'label'" in message
    assert repr(cell) in message


def test_words_in_brackets_are_a_label_and_none_is_with_a_word(tmp_path: Path) -> None:
    source = load(json_table(tmp_path, ["[noise]", "{}x", "none", "None", "none"]))
    assert labels(source) == ["[noise]", "{}x", "none", "None", "none"]
    assert "'none' is a class like any other, of 2 rows" in said(source, "'none'")


def test_whole_numbers_are_the_same_label_however_json_writes_them(tmp_path: Path) -> None:
    assert labels(load(json_table(tmp_path, [1, 1.0, "1", 2.5, True]))) == ["1", "1", "1", "2.5", "True"]


def test_a_nul_in_a_label_is_refused_by_its_line(tmp_path: Path) -> None:
    assert "line 1: its label in 'label' holds a NUL" in refusal(json_table(tmp_path, ["a\0b"]))


def test_accents_are_compared_in_one_form(tmp_path: Path) -> None:
    composed, decomposed = "Caf\u00e9", "Cafe\u0301"
    source = load(json_table(tmp_path, [composed, decomposed, "tea", decomposed + "\u200b "]))
    assert labels(source) == [composed, composed, "tea", composed]
    assert "in 2 rows, such as" in said(source, "brought to one form")
    assert clean(f"\ufeff {decomposed} ") == composed


def test_labels_that_are_nearly_the_same_stay_and_are_a_line(tmp_path: Path) -> None:
    path = json_table(tmp_path, ["Yes", "yes", "no", "1.0", "1", "on  off", "on off"])
    notes = choose_clips(config_for(path), tmp_path).notes
    near = [note for note in notes if "nearly the same" in note]
    assert len(near) == 3
    assert any("'Yes' and 'yes'" in note for note in near)


# Splits


def prepared(path: Path, **settings: Any) -> RunData:
    return prepare_data(config_for(path, max_seconds=None, **settings), 16_000, 400)


@pytest.fixture
def clips(tmp_path: Path) -> list[str]:
    """Twelve files of two classes."""
    names = [f"{'ab'[i % 2]}{i}.wav" for i in range(12)]
    write_clips_of(tmp_path, names)
    return names


@pytest.mark.parametrize("name", [name for names in SPLIT_NAMES.values() for name in names])
def test_every_name_of_a_split_is_known_in_any_case(name: str) -> None:
    for spelled in (name, name.upper(), f" {name.title()} "):
        assert name in SPLIT_NAMES[split_meant(spelled) or ""]
    assert split_meant(f"{name}x") is None


@pytest.mark.parametrize("column", ["split", "set", "subset", "partition", "Split", "SET"])
@pytest.mark.parametrize(
    ("train", "other"),
    [
        ("train", "eval"),
        ("Training", "Evaluation"),
        ("TRAIN", "DEV"),
        ("train", "Testing"),
    ],
)
def test_a_column_of_splits_is_used(
    tmp_path: Path, clips: list[str], column: str, train: str, other: str
) -> None:
    rows = [(name, name[0], other if i % 3 == 0 else train) for i, name in enumerate(clips)]
    data = prepared(table(tmp_path, ("path", "label", column), rows))
    assert (len(data.train), len(data.evaluation), data.eval_name) == (8, 4, other)
    assert data.test is None
    assert data.accounts == [
        f"{tmp_path / 'clips.csv'}: 12 rows: train 8 clips, evaluation ({other}) 4 clips"
    ]


def test_a_column_called_like_one_of_splits_that_holds_something_else_is_a_line(
    tmp_path: Path, clips: list[str]
) -> None:
    for values in (("A", "B"), ("train", "bus"), ("1", "2")):
        rows = [(name, name[0], values[i % 2]) for i, name in enumerate(clips)]
        data = prepared(table(tmp_path, ("path", "label", "set"), rows))
        assert len(data.train) + len(data.evaluation) == 12
        assert any(note.endswith("columns not used: set") for note in data.notes)


def test_a_split_that_is_not_used_is_a_line_and_accounted_for(tmp_path: Path, clips: list[str]) -> None:
    splits = ("train", "train", "dev", "test", "extra", "")
    rows = [(name, name[0], splits[i % 6]) for i, name in enumerate(clips)]
    data = prepared(table(tmp_path, ("path", "label", "split"), rows))
    assert any("2 rows with no 'split', to train on" in note for note in data.notes)
    says = "train 6 clips, evaluation (dev) 2 clips, test 2 clips; left out: 2 of the split 'extra', not used"
    assert says in data.accounts[0]
    data = prepared(tmp_path / "clips.csv", split_by="stratified")
    assert "2 of the split 'dev', not used" in data.accounts[0]


def test_two_splits_of_one_meaning_are_refused_until_one_is_named(tmp_path: Path, clips: list[str]) -> None:
    splits = ("train", "dev", "eval")  # eval is validation to some, and the test set of challenges
    rows = [(name, name[0], splits[i % 3]) for i, name in enumerate(clips)]
    path = table(tmp_path, ("path", "label", "split"), rows)
    message = refused_choice(path)
    assert "several splits that may be 'validation'" in message
    assert "--eval-split" in message
    data = prepared(path, eval_split="dev", test_split="eval")
    assert (len(data.evaluation), len(data.test or [])) == (4, 4)


def test_two_columns_of_splits_are_refused_until_one_is_named(tmp_path: Path, clips: list[str]) -> None:
    rows = [(n, n[0], ("train", "test")[i % 2], ("train", "dev")[i // 6]) for i, n in enumerate(clips)]
    path = table(tmp_path, ("path", "label", "split", "subset"), rows)
    assert "several columns that may divide it: 'split', 'subset'" in refused_choice(path)
    assert sizes(load(path, split="subset")) == {"train": 6, "dev": 6}
    path = table(tmp_path, ("path", "label", "fold"), [(n, n[0], i % 3) for i, n in enumerate(clips)])
    data = prepared(path, split_column="fold", train_split="1", eval_split="2")
    assert (len(data.train), len(data.evaluation)) == (4, 4)
    assert "4 of the split '0', not used" in data.accounts[0]


def test_a_split_without_labels_is_left_alone_unless_it_is_named(tmp_path: Path, clips: list[str]) -> None:
    rows = [(n, n[0] if i < 10 else "", "train" if i < 10 else "test") for i, n in enumerate(clips)]
    path = table(tmp_path, ("path", "label", "split"), rows)
    data = prepared(path)
    assert (data.eval_name, data.test) == ("held out of train", None)
    assert data.accounts[0].endswith("left out: 2 without a label, such as line 12")
    assert "holds no labelled clips" in refused_choice(path, test_split="test")


def test_split_folders_in_the_names_of_files_are_splits(tmp_path: Path) -> None:
    names = [f"{split}/{'ab'[i % 2]}{i}.wav" for split in ("train", "test") for i in range(4)]
    write_clips_of(tmp_path, names)
    rows = [(name, Path(name).name[0]) for name in names]
    source = load(table(tmp_path, ("path", "label"), rows))
    assert sizes(source) == {"train": 4, "test": 4}
    assert "are taken for the splits" in said(source, "taken for the splits")
    only = load(table(tmp_path, ("path", "label"), rows[4:]))
    assert sizes(only) == {"train": 4}  # a table of test clips, given as a whole


def test_flags_are_named_as_they_are_typed() -> None:
    columns = Columns(audio="a", label="b", group="c", split="d", audio_folder="e")
    assert columns.flags == [
        *("--audio-column", "--label-column", "--group-column", "--split-column", "--audio-folder")
    ]


def test_a_column_of_splits_with_another_name_is_a_line_that_says_what_to_type(
    tmp_path: Path, clips: list[str]
) -> None:
    rows = [(name, name[0], ("train", "test")[i % 2]) for i, name in enumerate(clips)]
    source = load(table(tmp_path, ("path", "label", "phase"), rows))
    assert "phase may say which rows are to test: see --split-column" in said(source, "may say")


def test_empty_cells_of_a_split_column_may_be_null(tmp_path: Path) -> None:
    rows = [{"path": f"{i}.wav", "label": "x", "set": None if i % 3 else "test"} for i in range(9)]
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert sizes(load(tmp_path / "clips.jsonl")) == {"test": 3, "train": 6}


def test_splits_that_differ_in_case_are_one(tmp_path: Path, clips: list[str]) -> None:
    rows = [(n, n[0], ("Train", "train", "TEST")[i % 3]) for i, n in enumerate(clips)]
    source = load(table(tmp_path, ("path", "label", "split"), rows))
    assert sizes(source) == {"Train": 8, "TEST": 4}
    assert "the splits 'Train' and 'train' are one" in said(source, "are one")


@pytest.mark.parametrize("above", ["", "audio/", "/data/set/"])
def test_the_folders_of_splits_are_found_below_others_and_beside_others(tmp_path: Path, above: str) -> None:
    names = [f"{above}{split}/{i}.wav" for split in ("train", "test", "extra") for i in range(2)]
    source = load(table(tmp_path, ("path", "label"), [(name, "x") for name in names]))
    assert sizes(source) == {"train": 2, "test": 2, "extra": 2}


def test_rows_without_a_group_are_said(tmp_path: Path) -> None:
    source = load(
        table(tmp_path, ("path", "label", "speaker"), [("a", "x", "ann"), ("b", "x", "")]), group="speaker"
    )
    assert "1 row with no 'speaker', of no group" in said(source, "no group")


def test_one_file_under_two_labels_is_a_line(tmp_path: Path) -> None:
    folder = write_clips_of(
        tmp_path / "sounds", [f"{label}/{i}.wav" for label in ("cat", "dog") for i in range(4)]
    )
    (folder / "cat" / "x.wav").symlink_to("../dog/0.wav")
    data = prepared(folder)
    (note,) = [note for note in data.notes if "two labels" in note]
    assert "cat/x.wav (cat) is" in note
    assert "dog/0.wav (dog)" in note


def test_labels_of_thousands_of_digits_are_labels(tmp_path: Path) -> None:
    data = choose_clips(config_for(json_table(tmp_path, ["1" * 5_000, "2", "10"])), tmp_path)
    assert set(data.labels) == {"1" * 5_000, "2", "10"}


def test_files_beside_the_folders_of_splits_are_trained_on_and_said(tmp_path: Path) -> None:
    names = ["./train/a.wav", "test/b.wav", "x.wav", "y.wav"]
    source = load(table(tmp_path, ("path", "label"), [(name, "z") for name in names]))
    assert sizes(source) == {"train": 3, "test": 1}
    assert (
        "the folders test, train of its files are taken for the splits, and 2 other files for train"
        in said(source, "splits")
    )


def test_equal_notes_of_two_tables_name_each(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_table(
            tmp_path / f"{split}.csv", ("path", "label", "speaker"), [("a", "x", ""), ("b", "y", "ann")]
        )
    source = load(tmp_path, group="speaker")
    assert len([note for note in source.notes if "of no group" in note]) == 2
    write_table(tmp_path / "train.csv", ("epoch", "loss"), [("1", "2")])
    assert f"{tmp_path}/train.csv has no column that is obviously the audio" in refusal(tmp_path)


def test_labels_of_minus_one_are_named_where_one_class_is_left(tmp_path: Path) -> None:
    message = refused_choice(json_table(tmp_path, ["1", "-1", "1", "-1"]))
    assert "one class, 1, and 2 rows without a label (empty, -1, null, nan)" in message


def test_labels_that_only_the_evaluation_writes_otherwise_are_named_with_their_twins(tmp_path: Path) -> None:
    rows = [("a", "0.0", "train"), ("b", "1.0", "train"), ("c", "0", "test")]
    message = refused_choice(table(tmp_path, ("path", "label", "split"), rows))
    assert "Nearly the same: '0.0' and '0'" in message


def test_labels_that_mean_nothing_are_named(tmp_path: Path) -> None:
    source = load(json_table(tmp_path, ["-1", "0", "1", -1.0, "null", "", None]))
    assert labels(source) == ["0", "1"]
    assert said(source, "rows labelled").endswith("rows labelled '-1', -1.0, 'null' are without a label")


def test_sets_that_are_only_evaluated_on_need_not_have_the_columns_that_training_needs(
    tmp_path: Path, clips: list[str]
) -> None:
    rows = [(name, name[0], "train", f"speaker {i}") for i, name in enumerate(clips)]
    path = table(tmp_path, ("path", "word", "part", "speaker"), rows)
    other = write_table(tmp_path / "held out.csv", ("path", "label"), [(clips[0], "a"), (clips[1], "b")])
    columns = {"label_column": "word", "split_column": "part", "group_column": "speaker"}
    data = prepared(path, eval_dataset=str(other), **columns)
    assert (len(data.train), len(data.evaluation)) == (12, 2)
    assert any("read without the columns 'word', 'speaker', 'part'" in note for note in data.notes)
