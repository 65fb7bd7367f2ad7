"""--drop and --relabel: which clips a table names, and what is said of rows that name none."""

from pathlib import Path

import pytest
from data_helpers import config_for, write_class_folders, write_table

from audiocls.data.prepare import RunData, prepare_data
from audiocls.errors import UserError

HEADER = ("path", "label", "suggested_label", "confidence")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path / "clips", {"cat": 4, "dog": 4})


def prepared(folder: Path, **settings: str) -> RunData:
    return prepare_data(config_for(folder, split_by="nothing", **settings), 16_000, 400)


def labels(data: RunData) -> dict[str, str]:
    return {"/".join(Path(clip.path).parts[-2:]): clip.label for clip in data.train.clips}


def test_dropped_clips_are_left_out_and_accounted_for(folder: Path) -> None:
    rows = [(folder / "cat" / "01.wav", "cat", "dog", 0.9), (folder / "dog" / "03.wav", "dog", "cat", 0.8)]
    data = prepared(folder, drop=str(write_table(folder.parent / "doubted.csv", HEADER, rows)))
    assert len(data.train) == 6
    assert not {"cat/01.wav", "dog/03.wav"} & labels(data).keys()
    assert "8 files: train 6 clips" in data.accounts[0]
    assert f"2 dropped by {folder.parent}/doubted.csv" in data.accounts[0]


def test_relabelled_clips_are_of_the_suggested_class_and_named(folder: Path) -> None:
    rows = [(folder / "cat" / "01.wav", "cat", "dog", 0.9)]
    data = prepared(folder, relabel=str(write_table(folder.parent / "doubted.tsv", HEADER, rows)))
    assert len(data.train) == 8
    assert labels(data)["cat/01.wav"] == "dog"
    assert data.labels == ["cat", "dog"]
    assert any("1 label changed by" in note and "cat/01.wav (cat -> dog)" in note for note in data.notes)


def test_a_path_from_elsewhere_names_the_same_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    table = write_table(folder.parent / "doubted.csv", ("path",), [("clips/../clips/cat/01.wav",)])
    assert len(prepared(folder, drop=str(table)).train) == 7


def test_both_at_once_drop_first(folder: Path) -> None:
    drop = write_table(folder.parent / "drop.csv", ("path",), [(folder / "cat" / "00.wav",)])
    rows = [(folder / "cat" / name, "cat", "dog", 1) for name in ("00.wav", "01.wav")]
    relabel = write_table(folder.parent / "relabel.csv", HEADER, rows)
    data = prepared(folder, drop=str(drop), relabel=str(relabel))
    assert len(data.train) == 7
    assert labels(data)["cat/01.wav"] == "dog"
    assert f"{relabel}: of 2 rows 1 name no clip" in data.notes


def test_of_two_rows_of_one_file_the_one_of_the_label_is_meant(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "clips", {"x": 3})
    rows = [(f"clips/x/{n:02d}.wav", label) for n in range(3) for label in ("cat", "dog")]
    dataset = write_table(tmp_path / "clips.csv", ("path", "label"), rows)
    drop = write_table(tmp_path / "drop.csv", ("path", "label"), [(folder / "x" / "01.wav", "dog")])
    data = prepared(dataset, drop=str(drop))
    kept = [clip.label for clip in data.train.clips if clip.path.endswith("01.wav")]
    assert (len(data.train), kept) == (5, ["cat"])


def test_a_name_that_was_kept_from_being_a_formula_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "=clips", {"-a": 2, "b": 2})
    table = write_table(tmp_path / "doubted.csv", HEADER, [("'=clips/-a/00.wav", "'-a", "b", 1)])
    data = prepare_data(
        config_for(Path("=clips"), split_by="nothing", relabel=str(table), cache_dir=str(tmp_path / "cache")),
        16_000,
        400,
    )
    assert labels(data)["-a/00.wav"] == "b"


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        (HEADER, ("gone.wav", "cat", "dog", 1), "names no clip of the data set: are its paths"),
        (HEADER, ("{}/cat/00.wav", "dog", "cat", 1), "its clips bear other labels"),
        (HEADER, ("{}/cat/00.wav", "cat", "bird", 1), "'bird' is no label of the data set. It has: cat, dog"),
        (HEADER, ("{}/cat/00.wav", "cat", "", 1), "'' is no label of the data set"),
        (("file", "suggested_label"), ("a", "b"), "no column 'path'. It has: file, suggested_label."),
        (("path", "label"), ("{}/cat/00.wav", "cat"), "no column 'suggested_label'. It has: path, label."),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(
    folder: Path, header: tuple[str, ...], row: tuple, said: str
) -> None:
    cells = [str(cell).format(folder) for cell in row]
    table = write_table(folder.parent / "doubted.csv", header, [cells])
    with pytest.raises(UserError) as refused:
        prepared(folder, relabel=str(table))
    assert said in str(refused.value)


def test_a_table_of_which_nothing_is_left_changes_nothing_and_says_so(folder: Path) -> None:
    table = str(write_table(folder.parent / "doubted.csv", HEADER, []))
    other = str(write_table(folder.parent / "other.csv", HEADER, []))
    data = prepared(folder, drop=table, relabel=other)
    assert len(data.train) == 8
    assert f"{table} holds no rows: nothing is changed by it" in data.notes


def test_a_clip_named_twice_is_counted_once_and_must_have_one_label(folder: Path) -> None:
    row = (folder / "cat" / "00.wav", "cat", "dog", 1)
    table = write_table(folder.parent / "twice.csv", HEADER, [row, row])
    data = prepared(folder, relabel=str(table))
    assert labels(data)["cat/00.wav"] == "dog"
    assert not [note for note in data.notes if "of 2 rows" in note]
    write_table(folder.parent / "twice.csv", HEADER, [row, (row[0], "cat", "cat", 1)])
    with pytest.raises(UserError, match=r"names .* twice, with the labels 'dog' and 'cat'"):
        prepared(folder, relabel=str(table))


def test_what_is_no_table_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"--drop .*notes\.txt is no table: give one of"):
        prepared(folder, drop=str(folder / "notes.txt"))
