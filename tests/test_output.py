"""infer.py's inputs, and its results as text, JSON lines and CSV, safe for whoever reads them next."""

import base64
import csv
import io
import json
import os
from pathlib import Path

import pytest

from audiocls.config import InferConfig
from audiocls.errors import UserError
from audiocls.inference.classifier import Prediction
from audiocls.inference.inputs import expand, paths_from
from audiocls.inference.output import results_file, unlike_training, write_predictions

PREDICTIONS = [
    Prediction("a b.wav", [("up", 0.75), ("down", 0.25)]),
    Prediction("bad\n.wav", [], "does not decode: flac decoder lost sync"),
]


def test_jsonl_has_the_contract_s_fields() -> None:
    file = io.StringIO()
    assert write_predictions(PREDICTIONS, "jsonl", 2, file) == 1
    good, bad = map(json.loads, file.getvalue().splitlines())
    scores = [{"label": "up", "score": 0.75}, {"label": "down", "score": 0.25}]
    assert good == {"path": "a b.wav", "label": "up", "score": 0.75, "scores": scores}
    assert bad == {"path": "bad\n.wav", "error": "does not decode: flac decoder lost sync"}


def test_csv_reads_back() -> None:
    file = io.StringIO()
    write_predictions(PREDICTIONS, "csv", 2, file)
    good, bad = csv.DictReader(io.StringIO(file.getvalue()))
    assert (good["path"], good["label"], good["label_2"]) == ("a b.wav", "up", "down")
    assert float(good["score"]) == 0.75
    assert bad["path"] == "bad\n.wav"
    assert bad["error"].startswith("does not decode")


def test_text_keeps_one_line_a_name() -> None:
    file = io.StringIO()
    write_predictions(PREDICTIONS, "text", 2, file)
    assert file.getvalue().splitlines()[:3] == ["a b.wav", "  0.7500  up", "  0.2500  down"]
    assert "refused" in file.getvalue().splitlines()[3]


def test_folders_are_walked_in_order_without_hidden_and_other_files(tmp_path: Path) -> None:
    for name in ("b/2.wav", "b/1.flac", "a.mp3", ".hidden.wav", ".git/3.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    expected = [str(tmp_path / name) for name in ("a.mp3", "b/1.flac", "b/2.wav")]
    assert expand([str(tmp_path), "other.txt"]) == [*expected, "other.txt"]
    with pytest.raises(UserError, match="no audio"):
        expand([str(tmp_path / "empty")])


def test_an_output_file_is_complete_or_absent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), results_file(str(tmp_path / "out.csv")) as file:
        file.write("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with results_file(str(tmp_path / "out.csv")) as file:
        file.write("whole")
    assert (tmp_path / "out.csv").read_text() == "whole"


WINDOWS = [
    Prediction("long.wav", [("up", 0.75), ("down", 0.25)], start=0.0, end=5.0),
    Prediction("long.wav", [("down", 0.5), ("up", 0.5)], start=4.0, end=9.0),
    Prediction("long.wav", [("up", 0.625), ("down", 0.375)], num_windows=2),
]


def written(predictions: list[Prediction], format: str, **options: bool) -> str:
    file = io.StringIO()
    write_predictions(predictions, format, 2, file, **options)
    return file.getvalue()


def test_windows_have_times_in_every_format_and_the_recording_has_none() -> None:
    lines = [json.loads(line) for line in written(WINDOWS, "jsonl").splitlines()]
    assert [(line.get("start"), line.get("end")) for line in lines] == [(0, 5), (4, 9), (None, None)]
    assert lines[2]["num_windows"] == 2 and "num_windows" not in lines[0]
    rows = list(csv.DictReader(io.StringIO(written(WINDOWS, "csv", windows=True))))
    assert [(row["start"], row["end"]) for row in rows] == [("0.000", "5.000"), ("4.000", "9.000"), ("", "")]
    assert [row["label_2"] for row in rows] == ["down", "up", "down"]
    assert [line.split() for line in written(WINDOWS, "text").splitlines()] == [
        ["long.wav"],
        ["0.00", "to", "5.00", "s", "0.7500", "up", "0.2500", "down"],
        ["4.00", "to", "9.00", "s", "0.5000", "down", "0.5000", "up"],
        ["2", "windows", "in", "all", "0.6250", "up", "0.3750", "down"],
    ]


def test_labelled_clips_have_their_true_label_in_every_format() -> None:
    clips = [Prediction("a.wav", [("up", 1.0)], true_label="down")]
    assert json.loads(written(clips, "jsonl"))["true_label"] == "down"
    (row,) = csv.DictReader(io.StringIO(written(clips, "csv", true_labels=True)))
    assert (row["true_label"], row["label"]) == ("down", "up")
    assert "labelled down" in written(clips, "text")


@pytest.mark.parametrize("begin", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\n=1"])
def test_no_cell_of_a_csv_is_a_formula(begin: str) -> None:
    bad = Prediction(begin, [], error=begin, true_label=begin)
    good = Prediction("a.wav", [(begin, 0.5), ("up", -0.25)])
    text = written([bad, good], "csv", true_labels=True)
    first, second = list(csv.reader(io.StringIO(text, newline="")))[1:]
    assert first[:3] == [f"'{begin}"] * 3
    assert second[3:] == [f"'{begin}", "0.500000", "up", "-0.250000"]  # numbers are ours


def test_a_carriage_return_does_not_end_a_row_of_a_csv() -> None:
    (row,) = csv.DictReader(io.StringIO(written([Prediction("\r=1.wav", [("up", 0.5)])], "csv"), newline=""))
    assert (row["path"], row["label"]) == ("\\r=1.wav", "up")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("format", ["text", "jsonl", "csv"])
def test_a_terminal_gets_no_control_characters(format: str) -> None:
    evil = "\x1b]0;owned\x07\r\x9b2J\x7f"
    predictions = [
        Prediction(evil, [(evil, 1.0)], true_label=evil),
        Prediction(evil, [], error=evil),
        Prediction(evil, [(evil, 1.0)], start=0.0, end=1.0),
        Prediction(evil, [(evil, 1.0)], num_windows=1),
    ]
    terminal = Terminal()
    write_predictions(predictions, format, 1, terminal, windows=True, true_labels=True)
    assert all(char.isprintable() or char == "\n" for char in terminal.getvalue())


NOT_UNICODE = os.fsdecode(b"caf\xe9.wav")


def test_json_holds_a_name_that_is_not_unicode_exactly_and_is_valid() -> None:
    text = written([Prediction(NOT_UNICODE, [(NOT_UNICODE, 1.0)], true_label=NOT_UNICODE)], "jsonl")
    line = json.loads(text)
    assert line["path"] == "caf\N{REPLACEMENT CHARACTER}.wav"
    assert base64.b64decode(line["path_base64"]) == b"caf\xe9.wav"
    assert "\\udc" not in text  # half a surrogate pair, which strict readers refuse


def test_text_and_csv_take_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    for format in ("text", "csv"):
        with results_file(str(tmp_path / format)) as file:
            assert write_predictions([Prediction(NOT_UNICODE, [("up", 1.0)])], format, 1, file) == 0
    assert b"caf\xe9.wav" in (tmp_path / "csv").read_bytes()
    assert "caf\\udce9.wav" in (tmp_path / "text").read_text()


@pytest.mark.parametrize("piece", [1, 3, 1000])
@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (b"a.wav\nb c.wav\n", ["a.wav", "b c.wav"]),
        (b"a.wav\r\n\r\n\nb.wav", ["a.wav", "b.wav"]),
        (b"a.wav\0b\nc.wav\0\0d\r\0", ["a.wav", "b\nc.wav", "d\r"]),
        (b"caf\xe9.wav\n", [NOT_UNICODE]),
        (b"", []),
    ],
)
def test_a_list_of_paths_is_split_at_newlines_or_nuls(listed: bytes, expected: list, piece: int) -> None:
    class Pipe(io.BytesIO):
        def read1(self, size: int = -1) -> bytes:
            return super().read1(piece)

    assert list(paths_from(Pipe(listed))) == expected


def test_more_than_was_trained_on_is_noted(tmp_path: Path) -> None:
    def note(run: object, **options: float) -> str | None:
        (tmp_path / "run.json").write_text(json.dumps(run))
        return next(unlike_training(InferConfig(model=str(tmp_path), **options)), None)

    run = {"config": {"max_seconds": 1.0}}
    assert "whole files: see --max-seconds 1" in (note(run) or "")
    assert note(run, max_seconds=1.0) is note(run, window=1.0) is note(run, window=0.5) is None
    assert "windows of 5 s" in (note(run, window=5.0) or "")
    assert "5 s of files" in (note(run, max_seconds=5.0) or "")
    assert "--max-seconds 1" in next(unlike_training(InferConfig(model=str(tmp_path / "best"))))
    (tmp_path / "run.json").write_text(json.dumps({"config": {"max_seconds": 15.0}}))
    assert (
        list(unlike_training(InferConfig(model=str(tmp_path)), 4.0)) == []
    )  # a window that was as short before
    for other in ({"config": {"max_seconds": None}}, {"config": {"max_seconds": "1"}}, {}, []):
        assert note(other) is None
    assert list(unlike_training(InferConfig(model=str(tmp_path / "nothing")))) == []
