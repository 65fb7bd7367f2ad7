"""Which file a table means: as it is named, or as people's disks and other systems spell it."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from data_helpers import config_for, write_table
from source_helpers import load, refusal, said, write_clips_of

from audiocls.data.limits import BadAudio
from audiocls.data.locations import Locations
from audiocls.data.prepare import prepare_data
from audiocls.data.trees import walk
from audiocls.errors import InputsRefused


def files(source_folder: Path, *names: str, **columns: str) -> list[str]:
    """What a table in the folder that names these files is read as, relative to the folder."""
    path = write_table(source_folder / "clips.csv", ("path", "label"), [(name, "x") for name in names])
    return [os.path.relpath(clip.path, source_folder) for clip in load(path, **columns).splits["train"]]


@pytest.mark.parametrize("name", ["../a.wav", "a/../../b.wav", "..", "./../a.wav", "..\\a.wav"])
def test_a_relative_path_does_not_climb_above_the_table(tmp_path: Path, name: str) -> None:
    path = write_table(tmp_path / "clips.csv", ("path", "label"), [("a.wav", "x"), (name, "x")])
    message = refusal(path)
    assert "line 3 names" in message
    assert "outside the folder" in message


def test_a_path_that_comes_back_down_and_an_absolute_one_are_taken(tmp_path: Path) -> None:
    assert files(tmp_path, "a/../b.wav", str(tmp_path / "c.wav"), "..a.wav") == ["b.wav", "c.wav", "..a.wav"]


def test_the_other_systems_slashes_lead_to_the_file_that_is_there(tmp_path: Path) -> None:
    write_clips_of(tmp_path, ["clips/a.wav", "clips/b\\c.wav"])
    assert files(tmp_path, "clips\\a.wav", "clips/b\\c.wav") == ["clips/a.wav", "clips/b\\c.wav"]
    source = load(tmp_path / "clips.csv")
    assert "1 file found spelled otherwise, such as clips\\a.wav is " in said(source, "otherwise")


def test_spaces_case_and_the_form_of_accents_lead_to_the_one_file_that_is_there(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Café/é.wav") for form in ("NFC", "NFD"))
    write_clips_of(tmp_path, [composed, "B.WAV", " c.wav"])
    assert files(tmp_path, decomposed, "b.wav ", " c.wav") == [composed, "B.WAV", " c.wav"]
    assert "3 files found spelled otherwise" in said(load(tmp_path / "clips.csv"), "otherwise")
    write_clips_of(tmp_path, ["x/d.wav", "x/D.wav"])
    assert "which may be" in refusal(
        write_table(tmp_path / "clips.csv", ("path", "label"), [("x/d.WAV", "x")])
    )


def test_a_name_without_its_suffix_is_found_if_it_is_one_file(tmp_path: Path) -> None:
    write_clips_of(tmp_path, ["17.wav", "v1.2.flac", "c.wav", "c.flac"])
    (tmp_path / "b.txt").write_text("x")
    assert files(tmp_path, "17", "v1.2") == ["17.wav", "v1.2.flac"]
    path = tmp_path / "clips.jsonl"
    path.write_text(json.dumps({"path": 17, "label": "x"}))
    assert load(path).splits["train"][0].path == str(tmp_path / "17.wav")
    assert files(tmp_path, "b") == ["b"]  # there is no audio of that name: named when it is decoded
    message = refusal(write_table(tmp_path / "clips.csv", ("path", "label"), [("c", "x")]))
    assert "line 2 names c, which may be" in message


def test_audio_elsewhere_is_found_by_its_place_or_the_last_part_of_its_name(tmp_path: Path) -> None:
    audio = write_clips_of(tmp_path / "audio", ["fold1/a.wav", "fold2/b.wav", "c.wav", "unused.wav"])
    (tmp_path / "meta").mkdir()
    names = ["a.wav", "/home/ann/fold2/b.wav", "C:\\clips\\c.wav", "fold1/a.wav", "b"]
    found = files(tmp_path / "meta", *names, audio_folder=str(audio))
    assert [Path(name).name for name in found] == ["a.wav", "b.wav", "c.wav", "a.wav", "b.wav"]
    source = load(tmp_path / "meta" / "clips.csv", audio_folder=str(audio))
    assert "4 files found by the end of the name" in said(source, "by the end")
    assert said(source, "no row names").endswith("files that no row names: 1 audio, such as unused.wav")
    write_clips_of(audio, ["fold2/a.wav"])
    message = refusal(tmp_path / "meta" / "clips.csv", audio_folder=str(audio))
    assert "line 2 names a.wav, which may be" in message
    assert "is no folder" in refusal(tmp_path / "meta" / "clips.csv", audio_folder=str(tmp_path / "none"))


def test_files_that_are_nowhere_are_named_also_where_none_is_there(tmp_path: Path) -> None:
    rows = [(f"C:\\clips\\{i}.wav", "ab"[i % 2]) for i in range(8)]
    path = write_table(tmp_path / "clips.csv", ("path", "label"), rows)
    for allowed in (0.05, 1.0):  # the latter as --audit has it
        with pytest.raises(InputsRefused) as refused:
            prepare_data(config_for(path, max_bad_clips=allowed), 16_000, 400)
        assert "First: C:\\clips\\0.wav is not there" in str(refused.value)
        assert "--audio-folder" in str(refused.value)


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (["a.wav"], "names no file: ['a.wav']"),
        ({"bytes": None}, "has no path"),
        ("a\0.wav", "holds a NUL"),
        ("\ud800.wav", "no file's name"),
    ],
)
def test_a_cell_that_names_no_file_is_refused_by_its_line(tmp_path: Path, cell: object, says: str) -> None:
    rows = [{"path": "a.wav", "label": "x"}, {"path": cell, "label": "x"}]
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    message = refusal(tmp_path / "clips.jsonl")
    assert "line 2 " in message
    assert says in message


def test_a_file_named_twice_is_said_with_its_lines(tmp_path: Path) -> None:
    files(tmp_path, "x/a.wav", "x/b.wav", "x/./c/../a.wav")
    note = said(load(tmp_path / "clips.csv"), "more than once")
    assert note.endswith(f"the same file more than once: {tmp_path / 'x' / 'a.wav'} in lines 2, 4")
    files(tmp_path, "x/a.wav", "x/b.wav")
    assert not [note for note in load(tmp_path / "clips.csv").notes if "more than once" in note]


def test_the_same_clip_in_train_and_test_is_named_also_under_another_name(tmp_path: Path) -> None:
    write_clips_of(tmp_path, [f"{number}.wav" for number in range(4)])
    (tmp_path / "link.wav").symlink_to("0.wav")
    rows = [(f"{number}.wav", "ab"[number % 2], "train") for number in range(3)]
    rows += [("link.wav", "a", "test"), ("3.wav", "b", "test")]
    table = write_table(tmp_path / "clips.csv", ("path", "label", "split"), rows)
    data = prepare_data(config_for(table), 16_000, 400)
    (note,) = [note for note in data.notes if "trained on too" in note]
    assert note.startswith("1 of the evaluation clips")
    assert "link.wav" in note


def test_a_name_as_it_stands_goes_before_all_others(tmp_path: Path) -> None:
    write_clips_of(tmp_path, ["a.wav", "A.wav", "sub/a.wav"])
    (tmp_path / "a").write_text("x")
    locations = Locations(tmp_path, walk(tmp_path))
    for name in ("a.wav", "A.wav", "sub/a.wav", "a"):
        assert locations.find(name) == str(tmp_path / name)
    assert not locations.found


def test_a_file_of_another_folder_is_not_taken_for_one_that_is_missing(tmp_path: Path) -> None:
    audio = write_clips_of(tmp_path / "audio", ["id1/00007.wav", "fold1/0.wav", "fold2/0.wav"])
    names = ["id1/00007.wav", "id2/00007.wav", "/home/ann/set/fold1/0.wav"]
    (tmp_path / "meta").mkdir()
    found = files(tmp_path / "meta", *names, audio_folder=str(audio))
    assert [(tmp_path / "meta" / name).resolve().relative_to(audio) for name in found] == [
        *map(Path, ("id1/00007.wav", "id2/00007.wav", "fold1/0.wav"))
    ]
    assert not (audio / "id2").exists()  # so that it is named when it is decoded


def test_a_folder_is_not_the_file_that_lacks_a_suffix(tmp_path: Path) -> None:
    write_clips_of(tmp_path, ["w0/x.wav", "w0.wav"])
    assert files(tmp_path, "w0") == ["w0.wav"]


def test_paths_that_parquet_rows_hold_are_found_as_a_tables_are(tmp_path: Path) -> None:
    import datasets

    def parquet(*names: str | None, content: bytes | None = None) -> Path:
        cells = [{"bytes": content, "path": name} for name in names] + [{"bytes": None, "path": "b.wav"}]
        rows = datasets.Dataset.from_dict({"audio": cells, "label": ["x"] * len(cells)})
        rows.to_parquet(tmp_path / "clips.parquet")
        return tmp_path / "clips.parquet"

    audio = str(write_clips_of(tmp_path / "audio", ["sub/a.wav"]))
    source = load(parquet("sub\\a.wav", None), audio_folder=audio)
    assert [clip.path for clip in source.splits["train"]] == [f"{audio}/sub/a.wav", f"{audio}/b.wav"]
    assert source.left_out == {"without a file's name": ["row 2"]}
    assert "1 file found spelled otherwise" in said(source, "otherwise")
    assert "row 1 names ../x.wav, outside the folder" in refusal(parquet("../x.wav"))
    _, last = load(parquet("a.wav", content=b"A"), audio_folder=audio).splits["train"]  # bytes beside paths
    with pytest.raises(BadAudio, match=r"names .*b\.wav, which is not there"):
        last.audio.read()


def test_rows_that_name_no_file_are_left_out_and_counted(tmp_path: Path) -> None:
    cells = ["a.wav", None, "  ", float("nan"), {"path": None}, 2.0]
    rows = [{"path": cell, "label": "x" if index % 2 else None} for index, cell in enumerate(cells, start=1)]
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = load(tmp_path / "clips.jsonl")
    assert [clip.path for clip in source.splits["train"]] == [str(tmp_path / "a.wav")]
    assert {why: len(rows) for why, rows in source.left_out.items()} == {
        "without a file's name": 3,
        "without a label": 1,
        "blank": 1,
    }
    (tmp_path / "clips.jsonl").write_text('{"path": 2.0, "label": "x"}')
    assert load(tmp_path / "clips.jsonl").splits["train"][0].path == str(tmp_path / "2")
