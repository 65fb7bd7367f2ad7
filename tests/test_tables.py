"""A manifest from anywhere: it stays in its folder, and what is odd about it is named."""

import json
import os
from pathlib import Path

import pytest
from data_helpers import config_for, write_table, write_wav

from audiocls.data.prepare import prepare_data
from audiocls.data.tables import clip_files, note_repeated, read_manifest
from audiocls.errors import InputOutputFailed, UserError


@pytest.mark.parametrize("name", ["../a.wav", "a/../../b.wav", "..", "./../a.wav"])
def test_a_relative_path_does_not_climb_above_the_manifest(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"row 2 names .* outside the manifest's folder.*absolute path"):
        clip_files(tmp_path / "clips.csv", [{"path": "a.wav"}, {"path": name}], "path")


def test_a_path_that_comes_back_down_and_an_absolute_one_are_taken(tmp_path: Path) -> None:
    rows = [{"path": "a/../b.wav"}, {"path": "/data/c.wav"}, {"path": "..a.wav"}]
    files = clip_files(tmp_path / "clips.csv", rows, "path")
    assert [os.path.normpath(file) for file in files] == [
        *(str(tmp_path / "b.wav"), "/data/c.wav", str(tmp_path / "..a.wav"))
    ]


def test_a_nul_a_name_that_cannot_be_and_a_deep_line_are_refused_by_row(tmp_path: Path) -> None:
    (tmp_path / "nul.csv").write_bytes(b"path,label\na.wav,yes\nb\0.wav,no\n")
    with pytest.raises(UserError, match=r"row 2 holds a NUL|not a valid csv file: .*NUL"):
        read_manifest(tmp_path / "nul.csv")
    (tmp_path / "nul.jsonl").write_text(json.dumps({"path": "a\0.wav", "label": "b"}))
    with pytest.raises(UserError, match="row 1 holds a NUL"):
        read_manifest(tmp_path / "nul.jsonl")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not a valid jsonl file"):
        read_manifest(tmp_path / "deep.jsonl")
    with pytest.raises(UserError, match="row 1 names"):
        clip_files(tmp_path / "a.jsonl", [{"path": "\ud800.wav"}], "path")


def test_a_pipe_is_no_manifest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "clips.csv")
    with pytest.raises(InputOutputFailed, match="not a regular file"):
        read_manifest(tmp_path / "clips.csv")


def test_a_file_named_twice_is_said_with_its_rows(tmp_path: Path) -> None:
    files = [Path("x/a.wav"), Path("x/b.wav"), Path("x/./c/../a.wav")]
    (note,) = note_repeated(tmp_path / "clips.csv", files)
    assert "the same file more than once: x/a.wav in rows 1, 3" in note
    assert note_repeated(tmp_path / "clips.csv", files[:2]) == []


def test_the_same_clip_in_train_and_test_is_named_also_under_another_name(tmp_path: Path) -> None:
    for number in range(4):
        write_wav(tmp_path / f"{number}.wav", seed=number)
    (tmp_path / "link.wav").symlink_to("0.wav")
    rows = [(f"{number}.wav", "ab"[number % 2], "train") for number in range(3)]
    rows += [("link.wav", "a", "test"), ("3.wav", "b", "test")]
    table = write_table(tmp_path / "clips.csv", ("path", "label", "split"), rows)
    data = prepare_data(config_for(table), 16_000, 400)
    (note,) = [note for note in data.notes if "trained on too" in note]
    assert note.startswith("1 of the evaluation clips")
    assert "link.wav" in note
