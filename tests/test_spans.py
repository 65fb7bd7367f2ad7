"""Tables that cut clips out of longer recordings: which columns say so, and what follows for the data set."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import config_for, run_script, unbroken, write_table, write_wav
from source_helpers import load, named, refusal, said

from audiocls.data.audit import audit, prepare_for_audit
from audiocls.data.clips import Clip, FileAudio, Segment, Source
from audiocls.data.prepare import RunData, prepare_data
from audiocls.errors import InputsRefused, UserError
from audiocls.tables import FORMATS


def write_segments(folder: Path, rows: list[tuple], *columns: str, name: str = "clips.csv") -> Path:
    """A table of those columns after path and label, beside recordings of 10 s."""
    for seed, file in enumerate(dict.fromkeys(row[0] for row in rows)):
        write_wav(folder / file, 10, seed=seed)
    return write_table(folder / name, ("path", "label", *columns), rows)


def spans(source: Source, split: str = "train") -> list[tuple[str, float, float | None]]:
    """Of each clip the file's name, and its start and end; those of a whole file are 0 and None."""
    found = []
    for clip in source.splits[split]:
        if isinstance(clip.audio, Segment):
            assert isinstance(clip.audio.recording, FileAudio)
            found.append((Path(clip.audio.recording.path).name, clip.audio.start, clip.audio.end))
        else:
            assert isinstance(clip.audio, FileAudio)
            found.append((Path(clip.audio.path).name, 0.0, None))
    return found


@pytest.mark.parametrize(
    "columns",
    [
        ("start", "end"),
        ("Start_Time", "end time"),
        ("begin", "stop"),
        ("Begin Time (s)", "End Time (s)"),  # Raven's selection tables
        ("onset", "offset"),  # DCASE's: an offset is an end
        ("start_seconds", "end_seconds"),
        ("start_s", "end_s"),
        ("tmin", "tmax"),
    ],
)
def test_usual_names_of_a_start_and_an_end_are_taken_with_a_note(
    columns: tuple[str, str], tmp_path: Path
) -> None:
    source = load(write_segments(tmp_path, [("a.wav", "x", 1.5, 3.25), ("a.wav", "y", 0, 2)], *columns))
    assert spans(source) == [("a.wav", 1.5, 3.25), ("a.wav", 0.0, 2.0)]
    assert [name for name, _ in named(source)["train"]] == ["a.wav#t=1.5,3.25", "a.wav#t=0,2"]
    assert said(source, "cut clips").endswith(
        f"{columns[0]!r}, {columns[1]!r} cut clips out of recordings, in seconds (see --segments)"
    )
    assert not any("not used" in note for note in source.notes)


@pytest.mark.parametrize("columns", [("offset", "duration"), ("start", "dur"), ("onset", "duration")])
def test_a_start_and_a_duration_add_up_without_the_dust_of_floats(
    columns: tuple[str, str], tmp_path: Path
) -> None:
    source = load(write_segments(tmp_path, [("a.wav", "x", 1.1, 2.2), ("a.wav", "y", "", 1)], *columns))
    assert spans(source) == [("a.wav", 1.1, 3.3), ("a.wav", 0.0, 1.0)]
    assert named(source)["train"][0][0] == "a.wav#t=1.1,3.3"


def test_empty_cells_are_the_beginning_and_the_end_and_both_are_the_whole_file(tmp_path: Path) -> None:
    rows = [("a.wav", "x", "", "2"), ("a.wav", "y", "3", ""), ("b.wav", "x", "", ""), ("b.wav", "x", "0", "")]
    source = load(write_segments(tmp_path, rows, "start", "end"))
    assert spans(source) == [("a.wav", 0, 2), ("a.wav", 3, None), ("b.wav", 0, None), ("b.wav", 0, None)]
    assert [name for name, _ in named(source)["train"]] == ["a.wav#t=0,2", "a.wav#t=3", "b.wav", "b.wav"]
    assert "b.wav in lines 4, 5" in said(source, "the same file more than once")


def test_times_by_the_clock_are_seconds(tmp_path: Path) -> None:
    rows = [("a.wav", "x", "00:00:01.5", "0:03"), ("a.wav", "y", "1:02:03", "1:02:04")]
    assert spans(load(write_segments(tmp_path, rows, "start", "end"))) == [
        ("a.wav", 1.5, 3),
        ("a.wav", 3723, 3724),
    ]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_of_tables_may_have_segments(suffix: str, tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 10)
    columns = {
        "path": ["a.wav"] * 3,
        "label": ["x", "y", "x"],
        "start": [0.5, None, 2],
        "end": [1, 3.5, None],
    }
    path = tmp_path / f"clips{suffix}"
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if suffix == ".parquet":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_dict(columns).to_parquet(path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        write_table(path, tuple(columns), [["" if c is None else c for c in row.values()] for row in rows])
    assert spans(load(path)) == [("a.wav", 0.5, 1), ("a.wav", 0, 3.5), ("a.wav", 2, None)]


def test_recordings_within_a_table_may_be_cut_too(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    content = write_wav(tmp_path / "a.wav", 10).read_bytes()
    rows = {
        "audio": [{"bytes": content, "path": None}] * 2,
        "label": ["x", "y"],
        "start": [1, 2],
        "end": [2, 4],
    }
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "clips.parquet")
    data = prepare(tmp_path / "clips.parquet", split_by="nothing")
    assert data.train.decoded.seconds.tolist() == [1, 2]
    assert [Path(path).name for path in data.train.paths] == ["0#t=1,2", "1#t=2,4"]


# What is wrong with a row


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (("1", "x"), "line 3: 'end' is 'x', no time."),
        (("-1", "2"), "line 3: 'start' is '-1', which is negative."),
        (("nan", "2"), "line 3: 'start' is 'nan', no time."),
        (("1", "inf"), "line 3: 'end' is 'inf', no time."),
        (("2", "2"), "line 3: by 'end' it ends at 2 s, and it begins at 2 s."),
        (("3", "2.5"), "line 3: by 'end' it ends at 2.5 s, and it begins at 3 s."),
        (("", "0"), "line 3: by 'end' it ends at 0 s, and it begins at 0 s."),
        (("1,5", "2"), "line 3: 'start' is '1,5', no time."),
    ],
)
def test_a_row_s_mistake_is_told_by_row_and_value(cells: tuple, words: str, tmp_path: Path) -> None:
    rows = [("a.wav", "x", "0", "1"), ("a.wav", "y", *cells), ("a.wav", "y", "4", "5")]
    table = write_table(tmp_path / "clips.csv", ("path", "label", "start", "end"), rows)
    assert words in refusal(table)
    assert "12.5 or 1:02:12.5" in refusal(table)


def test_a_start_an_end_and_a_duration_must_agree(tmp_path: Path) -> None:
    columns = ("start", "end", "offset", "duration")
    source = load(write_segments(tmp_path, [("a.wav", "x", 1, 2.5, 1, 1.49)], *columns))
    assert spans(source) == [("a.wav", 1, 2.5)]
    wrong = write_segments(tmp_path, [("a.wav", "x", 1, 2.5, 1, 1.5), ("a.wav", "x", 1, 2.5, 1, 9)], *columns)
    assert "line 3: its 'end' says 2.5 s, its start and 'duration' 10 s." in refusal(wrong)
    wrong = write_segments(tmp_path, [("a.wav", "x", 1, 2.5, 1.2, 1.5)], *columns)
    assert "line 2: its 'start' says 1 s, its 'offset' 1.2 s." in refusal(wrong)
    wrong = write_segments(tmp_path, [("a.wav", "x", 1, 0)], "start", "duration")
    assert "line 2: 'duration' is 0." in refusal(wrong)


# Columns that say something else


def test_columns_of_other_things_cut_nothing(tmp_path: Path) -> None:
    for columns, cells in {
        ("duration",): (10,),
        ("start",): (1,),
        ("offset",): (1,),
        ("start", "end"): ("Monday", "Friday"),
        ("start_ms", "end_ms"): (1000, 2000),
    }.items():
        source = load(write_segments(tmp_path, [("a.wav", "x", *cells)], *columns))
        assert spans(source) == [("a.wav", 0, None)]
        assert ", ".join(columns) in said(source, "columns not used")
    assert "'start' holds no times in seconds, such as 'Monday'" in said(
        load(write_segments(tmp_path, [("a.wav", "x", "Monday", "Friday")], "start", "end")), "'start'"
    )


def test_recordings_that_are_as_long_as_their_spans_are_cut_already(tmp_path: Path) -> None:
    rows = [(f"{n}.wav", "xy"[n % 2], 30 + n, 40 + n) for n in range(8)]  # of 10 s, as AudioSet's
    source = load(write_segments(tmp_path, rows, "start_seconds", "end_seconds"))
    assert all(start == 0 and end is None for _, start, end in spans(source))
    assert "are not used: they say where clips were in other recordings" in said(source, "'start_seconds'")
    # Segments over the end of a recording are a mistake in some rows, and no cut recordings.
    rows = [("a.wav", "x", n, n + 1) for n in range(1, 9)] + [("a.wav", "y", 20, 30)]
    assert spans(load(write_segments(tmp_path, rows, "start", "end")))[-1] == ("a.wav", 20, 30)


# Two segments of one file are two clips


def prepare(table: Path, **settings: Any) -> RunData:
    return prepare_data(config_for(table, **settings), 16_000, 400)


def meetings(folder: Path, num_recordings: int = 6, num_segments: int = 10) -> Path:
    """Recordings of 10 s with a segment a second, of two classes, in an order that mixes the recordings."""
    rows = [
        (f"{n}.wav", ("yes", "no")[(n + second) % 2], second, second + 0.5)
        for second in range(num_segments)
        for n in range(num_recordings)
    ]
    return write_segments(folder, rows, "start", "end")


def test_segments_of_a_file_are_no_copies_and_equal_rows_are_one_clip(tmp_path: Path) -> None:
    rows = [("a.wav", "x", n, n + 1) for n in range(4)] + [("a.wav", "y", 4, 5), ("a.wav", "x", 4, 5)]
    rows += [("b.wav", "y", n, n + 1) for n in range(4)]
    path = write_segments(tmp_path, rows, "start", "end")
    data = prepare(path, split_by="nothing")
    (copies,) = [note for note in data.notes if "the same file more than once" in note]
    assert copies.endswith("a.wav#t=4,5 in lines 6, 7")
    (labels,) = [note for note in data.notes if "under two labels" in note]
    name = f"{tmp_path}/a.wav#t=4,5"
    assert labels == f"one file under two labels: {name} (y) is {name} (x)"
    found = audit("clips", data)
    assert (found["copies"]["count"], found["copies"]["contradicting"]) == (1, 1)


@pytest.mark.parametrize("split_by", ["random", "stratified", "1/3", "2/3", "3/3"])
def test_every_way_of_dividing_keeps_the_segments_of_a_recording_on_one_side(
    split_by: str, tmp_path: Path
) -> None:
    data = prepare(meetings(tmp_path), split_by=split_by)
    sides = [{path.partition("#")[0] for path in part.paths} for part in (data.train, data.evaluation)]
    assert sides[0].isdisjoint(sides[1])
    assert len(sides[0] | sides[1]) == 6
    assert len(sides[1]) == (2 if "/" in split_by else 1)
    assert any("segments of one recording stay together" in note for note in data.notes)
    assert not any("trained on too" in note for note in data.notes)


def test_a_stratified_division_of_recordings_holds_out_the_part_asked_for_of_each_class(
    tmp_path: Path,
) -> None:
    generator = np.random.default_rng(0)
    rows = [
        (
            f"{n}.wav",
            str(generator.choice(["a", "b", "c"], p=[0.6, 0.3, 0.1])),
            second / 10,
            second / 10 + 0.1,
        )
        for n in range(40)
        for second in range(int(generator.integers(3, 20)))
    ]
    data = prepare(write_segments(tmp_path, rows, "start", "end"), split_by="stratified", eval_fraction=0.25)
    assert len(data.evaluation) == pytest.approx(0.25 * len(rows), abs=0.02 * len(rows))
    for number in range(3):
        held_out, trained = (np.sum(part.labels == number) for part in (data.evaluation, data.train))
        assert held_out / (held_out + trained) == pytest.approx(0.25, abs=0.05)


def test_a_group_column_divides_recordings_if_it_is_asked_to_and_that_is_a_note(tmp_path: Path) -> None:
    rows = [("a.wav", "xy"[n % 2], n, n + 1, "anna" if n < 5 else "ben") for n in range(10)]
    path = write_segments(tmp_path, rows, "start", "end", "speaker")
    data = prepare(path, split_by="group", group_column="speaker", eval_fraction=0.5)
    assert any("5 of the evaluation clips are of recordings trained on too" in note for note in data.notes)
    data = prepare(path, split_by="group", group_column="start", eval_fraction=0.2)
    assert len(data.evaluation) == 2


def test_a_given_split_that_divides_a_recording_is_a_note(tmp_path: Path) -> None:
    rows = [
        (f"{n}.wav", "xy"[s % 2], s, s + 1, "test" if s > 7 else "train") for n in (0, 1) for s in range(10)
    ]
    data = prepare(write_segments(tmp_path, rows, "start", "end", "split"))
    assert any("4 of the evaluation clips are of recordings trained on too" in note for note in data.notes)


def test_segments_of_one_recording_alone_cannot_be_divided_but_audited(tmp_path: Path) -> None:
    path = meetings(tmp_path, num_recordings=1)
    with pytest.raises(UserError, match="All 10 clips are segments of one recording") as refused:
        prepare(path)
    assert "--split-by nothing" in str(refused.value)
    with pytest.raises(UserError, match="name another column to divide them by with --group-column"):
        prepare(path, split_by="1/2")
    assert len(prepare(path, split_by="nothing").train) == 10
    found = audit("clips", prepare_for_audit(config_for(path), 16_000, 400, None))
    assert found["seconds"]["total"] == pytest.approx(5)
    assert any("segments of one recording" in note for note in found["notes"])


def test_one_segment_a_file_is_divided_as_files_are(tmp_path: Path) -> None:
    rows = [(f"{n}.wav", "xy"[n % 2], 1, 2) for n in range(10)]
    cut = prepare(write_segments(tmp_path, rows, "start", "end"))
    whole = prepare(write_table(tmp_path / "whole.csv", ("path", "label"), [row[:2] for row in rows]))
    assert [path.partition("#")[0] for path in cut.train.paths] == whole.train.paths
    assert not any("stay together" in note for note in cut.notes)


def test_segments_beyond_the_end_are_left_out_and_those_over_it_are_counted(tmp_path: Path) -> None:
    rows = [("a.wav", "x", 0, 1), ("b.wav", "y", 9, 12), ("a.wav", "x", 12, 13), ("b.wav", "y", 9, 10.01)]
    path = write_segments(tmp_path, rows, "start", "end")
    data = prepare(path, max_bad_clips=0.5, split_by="nothing")
    assert f"left out: {tmp_path}/a.wav#t=12,13 begins at 12 s, after its end at 10 s" in data.notes
    (short,) = [note for note in data.notes if "20 ms after the recording's end" in note]
    assert short.startswith("1 segment ends") and short.endswith("b.wav#t=9,12")
    with pytest.raises(InputsRefused, match="after its end at 10 s"):
        prepare(path, split_by="nothing")


def test_corrections_find_segments_by_the_names_that_they_are_given(tmp_path: Path) -> None:
    path = meetings(tmp_path)
    row = next(line for line in prepare(path).train.paths)
    drop = write_table(tmp_path / "drop.csv", ("path",), [(row,)])
    data = prepare(path, drop=str(drop))
    assert len(data.train) + len(data.evaluation) == 59
    assert row not in data.train.paths + data.evaluation.paths
    drop = write_table(tmp_path / "drop.csv", ("path",), [(tmp_path / "0.wav",)])
    with pytest.raises(UserError, match=r"A segment's is as calls/a\.wav#t=1\.5,3\.2"):
        prepare(path, drop=str(drop))


def test_a_folder_s_table_cuts_recordings_that_lie_in_folders_of_other_names(tmp_path: Path) -> None:
    rows = [(f"{day}/a.wav", "xy"[n % 2], n, n + 1) for day in ("monday", "tuesday") for n in range(4)]
    write_segments(tmp_path, rows, "start", "end", name="metadata.csv")
    assert len(load(tmp_path).splits["train"]) == 8
    (tmp_path / "metadata.csv").rename(tmp_path / "clips.csv")
    assert "which cuts clips out of recordings. Give --dataset" in refusal(tmp_path)


def test_a_million_segments_share_their_recordings(tmp_path: Path) -> None:
    source = load(meetings(tmp_path))
    clips: list[Clip] = source.splits["train"]
    assert len({id(clip.audio.recording) for clip in clips if isinstance(clip.audio, Segment)}) == 6
    assert not any(hasattr(clip.audio, "__dict__") for clip in clips)


@pytest.mark.slow
def test_folds_of_segments_are_folds_of_recordings(tmp_path: Path) -> None:
    meetings(tmp_path)
    shared = ["--recipe", "scratch", "--max-steps", "2", "--device", "cpu", "--dataset", "clips.csv"]
    done = run_script("-m", "audiocls.folds", "3", "--", *shared, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "segments of one recording stay together" in unbroken(done.stdout)
    done = run_script("-m", "audiocls.folds", "7", "--", *shared, cwd=tmp_path, timeout=240)
    assert "7 folds of 6 different recordings: give 6 at most" in done.stderr


def test_columns_of_other_units_or_alone_are_refused_where_files_repeat(tmp_path: Path) -> None:
    for columns in (("start_ms", "end_ms"), ("start", "remark"), ("onset_sample", "offset_sample")):
        table = write_segments(tmp_path, [("a.wav", "x", 0, 1), ("a.wav", "y", 1, 2)], *columns)
        with pytest.raises(UserError, match=r"may say which part.*1 file stand in 2 rows.*--segments no"):
            load(table)
        once = write_segments(tmp_path, [("a.wav", "x", 0, 1), ("b.wav", "y", 1, 2)], *columns)
        assert spans(load(once)) == [("a.wav", 0, None), ("b.wav", 0, None)]


def test_columns_of_another_meaning_are_left_alone_when_asked_to(tmp_path: Path) -> None:
    table = write_segments(tmp_path, [("a.wav", "x", 1990, 1995), ("a.wav", "y", 1, 2)], "start", "end")
    source = load(table, may_cut=False)
    assert spans(source) == [("a.wav", 0, None)] * 2
    assert "start, end" in said(source, "columns not used")


def test_a_table_whose_segments_are_mostly_not_there_is_refused(tmp_path: Path) -> None:
    """A start that happens to lie within the recording, and a duration in milliseconds."""
    rows = [("a.wav", "x", 1, 900), ("a.wav", "y", 2, 700), ("b.wav", "x", 1, 800), ("b.wav", "y", 2, 800)]
    table = write_segments(tmp_path, rows, "start", "duration")
    with pytest.raises(UserError, match="are start, end and duration in seconds"):
        prepare_data(config_for(table), 16_000, 400)
