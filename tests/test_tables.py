"""Tables as people's programs write them: each row is read with its own cells, or refused by its line."""

import json
import os
from pathlib import Path

import pytest
from data_helpers import write_table
from source_helpers import labels, left_out, load, named, refusal, said

from audiocls.errors import InputOutputFailed
from audiocls.tables import FORMATS, read_table

SENTENCES = ['"Yes, she said.', "Plain.", 'and left."', "Nothing."]  # as Common Voice has them


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def rows_of(path: Path) -> list[tuple]:
    table = read_table(path)
    return list(zip(*(table.cells(column) for column in table.columns), strict=True))


# Quotes


def test_a_tsv_quotes_nothing(tmp_path: Path) -> None:
    lines = [f"{i}.wav\t{SENTENCES[i % 4]}\t{'fm'[i % 2]}" for i in range(32)]
    source = load(
        write(tmp_path / "clips.tsv", "\n".join(["path\tsentence\tgender", *lines])), label="gender"
    )
    assert named(source) == {"train": [(f"{i}.wav", "fm"[i % 2]) for i in range(32)]}


def test_a_tsv_whose_header_is_in_quotes_quotes_its_cells(tmp_path: Path) -> None:
    path = write(tmp_path / "r.tsv", '"path"\t"label"\n"a.wav"\t"the ""b"""\n"b.wav"\t"yes"\n')
    assert named(load(path)) == {"train": [("a.wav", 'the "b"'), ("b.wav", "yes")]}


def test_a_tsv_with_too_few_tabs_is_refused_by_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "clips.tsv", 'path\tsaid\tlabel\na.wav\tx\ty\n\nb.wav\t"one\nline"\ty\n')
    assert "line 4 has 2 cells, its header 3 (a .tsv quotes nothing)" in refusal(path)


@pytest.mark.parametrize(
    "body",
    [
        'a.wav,"Yes, x\nb.wav,and left.",y\nc.wav,z,x\n',  # one row taken in
        'a.wav,"Yes,x\nb.wav,Plain,y\nc.wav,Plain,z\nd.wav,left.",z\n',  # and several
        '"a.wav,Yes,x\nb.wav,Plain",left,y\n',
        'a.wav,x,"y\nb.wav,x,y"\n',
    ],
)
def test_a_quote_mark_that_takes_in_rows_of_a_csv_is_named(tmp_path: Path, body: str) -> None:
    message = refusal(write(tmp_path / "clips.csv", "path,sentence,label\n" + body), label="label")
    assert "line 2: a quote mark opens a cell that takes in" in message
    assert "use a .tsv" in message


def test_a_cell_of_several_lines_is_a_cell(tmp_path: Path) -> None:
    text = 'path,sentence,label\r\na.wav,"Hello, there\r\nhow are you",x\r\nb.wav,"one\ntwo\nthree",y\r\n'
    path = write(tmp_path / "clips.csv", text + 'c.wav,ok,"z ""q"", r"\r\n')
    assert named(load(path)) == {"train": [("a.wav", "x"), ("b.wav", "y"), ("c.wav", 'z "q", r')]}
    assert list(read_table(path).places) == [2, 4, 7]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('a.wav,x\n"b.wav,y\n', "line 3 is not valid csv"),  # never closed
        ('a.wav,x\nb.wav,"y"z\n', "line 3 is not valid csv"),
        ("a.wav,x\nb.wav,y,z\n", "line 3 has 3 cells, its header 2"),
        ("a.wav,x\n\nb.wav\n", "line 4 has 1 cell, its header 2"),
    ],
)
def test_what_does_not_fit_is_named_by_the_files_own_line(tmp_path: Path, body: str, says: str) -> None:
    assert says in refusal(write(tmp_path / "clips.csv", "path,label\n" + body))


# Separators, headers, blank rows


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_separator_is_recognised_and_an_unusual_one_said(
    tmp_path: Path, suffix: str, separator: str
) -> None:
    lines = [("path", "label", "said"), ("a.wav", "yes", "1"), ("b.wav", "no", "x")]
    path = write(tmp_path / f"clips.{suffix}", "\r\n".join(separator.join(line) for line in lines))
    source = load(path)
    assert named(source) == {"train": [("a.wav", "yes"), ("b.wav", "no")]}
    is_own = separator == {"csv": ",", "tsv": "\t"}[suffix]
    assert is_own or repr(separator) in said(source, "separated by")


def test_a_separator_within_cells_or_one_name_of_the_header_separates_nothing(tmp_path: Path) -> None:
    text = 'path;label;said, or sung\na.wav;yes;"well, yes; no"\nb.wav;no;1,5\n'
    assert labels(load(write(tmp_path / "a.csv", text))) == ["yes", "no"]
    text = "path\tlabel\tsaid, or, sung\na.wav\tyes\tx\n"
    assert labels(load(write(tmp_path / "b.tsv", text))) == ["yes"]


def test_excels_word_for_the_separator_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "clips.csv", "sep=;\r\npath;label\r\na,b.wav;yes\r\nc.wav\r\n")
    assert "line 4 has 1 cell" in refusal(path)
    path = write(tmp_path / "clips.csv", "sep=;\r\npath;label\r\na,b.wav;yes\r\n")
    assert named(load(path)) == {"train": [("a,b.wav", "yes")]}


def test_spaces_and_case_of_header_and_cells_do_not_matter(tmp_path: Path) -> None:
    text = 'File Name , LABEL,speaker\n a.wav, yes ,"x, y"\nb.wav,yes\u00a0, "z, z"\n'
    source = load(write(tmp_path / "clips.csv", text), group="Speaker")
    assert named(source) == {"train": [("a.wav", "yes"), ("b.wav", "yes")]}
    assert [clip.group for clip in source.splits["train"]] == ["x, y", "z, z"]
    assert "in 2 rows" in said(source, "white space or accents of the label")


def test_blank_rows_are_counted_and_blank_lines_are_none(tmp_path: Path) -> None:
    text = "path,label\na.wav,yes\n,\n\nb.wav,no\n  , \n,,,\n\n"
    source = load(write(tmp_path / "clips.csv", text))
    assert named(source) == {"train": [("a.wav", "yes"), ("b.wav", "no")]}
    assert source.account({"train": 2}).endswith("5 rows: train 2 clips; left out: 3 blank, such as line 3")


def test_cells_beyond_the_header_may_be_empty(tmp_path: Path) -> None:
    assert labels(load(write(tmp_path / "clips.csv", "path,label\na.wav,yes,,\nb.wav,no\n"))) == ["yes", "no"]
    # pandas' index has no name.
    assert labels(load(write(tmp_path / "i.csv", ",path,label\n0,a.wav,yes\n1,b.wav,no\n"))) == ["yes", "no"]


def test_two_columns_of_one_name_and_a_file_without_a_header_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "clips.csv", "path,label,label\na.wav,yes,no\n")
    assert "two columns named 'label'" in refusal(path)
    message = refusal(write(tmp_path / "clips.csv", "a.wav,yes\nb.wav,no\n"))
    assert "Its first line must be the names of the columns" in message


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_unicode_of_every_kind_is_read_as_it_is(tmp_path: Path, suffix: str, encoding: str) -> None:
    rows = [("ä.wav", "Ärger"), ("b.wav", "日本"), ("c.wav", "no")]
    path = tmp_path / f"clips.{suffix}"
    if suffix == "jsonl":
        lines = [json.dumps({"path": a, "label": b}, ensure_ascii=False) for a, b in rows]
    else:
        lines = ["\t,"[suffix == "csv"].join(row) for row in (("path", "label"), *rows)]
    source = load(write(path, "\r\n".join(lines) + "\r\n", encoding))
    assert named(source) == {"train": rows}
    assert not [note for note in source.notes if "UTF-8" in note]


def test_cp1252_is_read_and_said_with_a_line_that_shows_it(tmp_path: Path) -> None:
    path = write(tmp_path / "clips.csv", "path,label\r\na.wav,no\r\nb.wav,Ärger – “x”\r\n", "cp1252")
    source = load(path)
    assert labels(source) == ["no", "Ärger – “x”"]
    assert "line 3 is 'b.wav,Ärger – “x”'" in said(source, "not UTF-8: read as cp1252")


def test_a_file_that_is_unicode_in_a_part_is_refused(tmp_path: Path) -> None:
    lines = ["path,label\na.wav,é\n".encode(), "b.wav,é\n".encode("cp1252")]
    (tmp_path / "clips.csv").write_bytes(b"".join(lines))
    assert "is UTF-8 in some lines, as line 2, not in all" in refusal(tmp_path / "clips.csv")


@pytest.mark.parametrize(
    "content", [b"path,label\na,\x81\n", b"PK\3\4\0\0\xe9", b"\xff\xfea", b"RIFF\xff\0\1"]
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clips.csv").write_bytes(content)
    assert "is no text: save it as UTF-8" in refusal(tmp_path / "clips.csv")


# JSON lines


def test_json_lines_may_lack_cells_and_repeat_none(tmp_path: Path) -> None:
    lines = ['{"label": "yes", "path": "a.wav"}', "", '{" path ": "b.wav", "new": 1}', "{}"]
    source = load(write(tmp_path / "clips.jsonl", "\n".join(lines)))
    assert named(source) == {"train": [("a.wav", "yes")]}
    assert left_out(source) == {"without a label": 1, "blank": 1}
    path = write(tmp_path / "clips.jsonl", '\n{"path": "a.wav", "label": "x", "label": "y"}\n')
    assert "line 2 is not valid JSON: it has 'label' twice" in refusal(path)


def test_a_recording_may_be_an_object_with_a_path(tmp_path: Path) -> None:
    for column in ("audio", "take"):  # whatever the column's name
        rows = [{column: {"path": f"{i}.wav", "bytes": None}, "label": "ab"[i]} for i in range(2)]
        path = write(tmp_path / "clips.jsonl", "\n".join(map(json.dumps, rows)))
        assert named(load(path)) == {"train": [("0.wav", "a"), ("1.wav", "b")]}
    # As pandas writes them into a csv.
    path = write_table(tmp_path / "clips.csv", ("audio", "label"), [({"bytes": None, "path": "a.wav"}, "x")])
    assert named(load(path)) == {"train": [("a.wav", "x")]}
    path = write(tmp_path / "clips.jsonl", '{"audio": {"array": [0]}, "label": "a"}\n')
    assert "line 1 names no file: {'array': [0]} has no path" in refusal(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_a_pipe_and_a_broken_file_are_no_table(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x81\x01\0 is not one")
    assert name in refusal(tmp_path / name)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputOutputFailed, match="not a regular file"):
        read_table(tmp_path / name)


# Parquet


@pytest.mark.parametrize("as_audio", [True, False])
def test_a_parquet_file_may_hold_the_recordings(tmp_path: Path, as_audio: bool) -> None:
    import datasets

    cells = [{"bytes": bytes([65 + i]), "path": f"{i}.wav"} for i in range(3)]
    table = datasets.Dataset.from_dict({"sound": cells, "label": [1, 0, -1]})
    table = table.cast_column("label", datasets.ClassLabel(names=["zoo", "null"]))
    if as_audio:
        table = table.cast_column("sound", datasets.Audio(decode=False))
    table.to_parquet(tmp_path / "clips.parquet")
    source = load(tmp_path / "clips.parquet")
    assert source.label_names == ["zoo", "null"]
    assert labels(source) == ["null", "zoo"]
    assert [clip.audio.read() for clip in source.splits["train"]] == [b"A", b"B"]
    assert left_out(source) == {"without a label": 1}
    assert source.left_out["without a label"][0] == "row 3"


def test_a_parquet_file_may_name_the_recordings(tmp_path: Path) -> None:
    import pandas

    rows = {
        "path": ["a.wav", "b.wav", "c.wav"],
        "label": [1.0, float("nan"), 2.0],
        "set": ["train", "Dev", None],
    }
    pandas.DataFrame(rows).to_parquet(tmp_path / "clips.parquet")
    source = load(tmp_path / "clips.parquet")
    assert named(source) == {"train": [("a.wav", "1"), ("c.wav", "2")], "Dev": []}
    lists = {"path": ["a.wav", "b.wav"], "label": [["x", "y"], ["x"]]}
    pandas.DataFrame(lists).to_parquet(tmp_path / "lists.parquet")
    assert "row 1: its label in 'label' is a list, ['x', 'y']" in refusal(tmp_path / "lists.parquet")


def test_a_changed_parquet_file_is_another(tmp_path: Path) -> None:
    import datasets

    identities = []
    for sound in (b"A", b"B"):
        table = datasets.Dataset.from_dict({"audio": [{"bytes": sound, "path": "a.wav"}], "label": ["x"]})
        table.to_parquet(tmp_path / "clips.parquet")
        (clip,) = load(tmp_path / "clips.parquet").splits["train"]
        identities.append(clip.audio.identity())
        assert clip.audio.read() == sound
    assert identities[0] != identities[1]


def test_every_format_gives_the_same_clips(tmp_path: Path) -> None:
    import pandas

    rows = [("a.wav", "yes"), ("b.wav", "no")]
    table = pandas.DataFrame(rows, columns=["path", "label"])
    write_table(tmp_path / "x.csv", ("path", "label"), rows)
    write_table(tmp_path / "x.tsv", ("path", "label"), rows)
    table.to_json(tmp_path / "x.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "x.parquet")
    for suffix in FORMATS:
        assert named(load(tmp_path / f"x{suffix}")) == {"train": rows}
        assert rows_of(tmp_path / f"x{suffix}") == rows


# Columns whose type says what they hold


def save_rows(path: Path, columns: dict, **types: object) -> Path:
    import datasets

    rows = datasets.Dataset.from_dict(columns)
    for column, feature in types.items():
        rows = rows.cast_column(column, feature)
    rows.to_parquet(path)
    return path


def test_a_column_called_label_goes_before_classes_of_other_names(tmp_path: Path) -> None:
    import datasets

    columns = {
        "path": ["a.wav", "b.wav", "c.wav"],
        "label": ["x", "y", "y"],
        "gender": [0, 0, 1],
        "split": [0, 0, 1],
    }
    path = save_rows(
        tmp_path / "clips.parquet",
        columns,
        gender=datasets.ClassLabel(names=["m", "f"]),
        split=datasets.ClassLabel(names=["train", "test"]),
    )
    assert named(load(path)) == {"train": [("a.wav", "x"), ("b.wav", "y")], "test": [("c.wav", "y")]}
    columns = {"path": ["a.wav", "b.wav"], "gender": [0, 1], "split": [0, 0]}
    path = save_rows(
        tmp_path / "clips.parquet",
        columns,
        gender=datasets.ClassLabel(names=["m", "f"]),
        split=datasets.ClassLabel(names=["train", "test"]),
    )
    assert named(load(path)) == {"train": [("a.wav", "m"), ("b.wav", "f")]}


def test_another_object_or_bytes_beside_a_path_are_refused_or_left_alone(tmp_path: Path) -> None:
    row = {"file": "w.wav", "label": "yes", "enrolment": {"path": "e.wav"}}
    path = write(tmp_path / "clips.jsonl", json.dumps(row))
    assert "several columns that may be the audio: 'file', 'enrolment'" in refusal(path)
    assert named(load(path, audio="file")) == {"train": [("w.wav", "yes")]}
    path = save_rows(tmp_path / "b.parquet", {"path": ["a.wav"], "label": ["x"], "thumbnail": [b"PNG"]})
    assert "'path', 'thumbnail'" in refusal(path)
    import pyarrow
    import pyarrow.parquet

    hashes = pyarrow.array([b"0123456789abcdef"], pyarrow.binary(16))
    table = pyarrow.table({"path": ["a.wav"], "label": ["x"], "md5": hashes})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    assert named(load(tmp_path / "c.parquet")) == {"train": [("a.wav", "x")]}


def test_what_is_declared_as_audio_goes_before_a_path_beside_it(tmp_path: Path) -> None:
    import datasets

    cells = [{"bytes": b"A", "path": "a.wav"}]
    path = save_rows(
        tmp_path / "clips.parquet",
        {"file": ["x.wav"], "speech": cells, "label": ["x"]},
        speech=datasets.Audio(decode=True),
    )
    assert [clip.audio.read() for clip in load(path).splits["train"]] == [b"A"]


def test_class_names_that_differ_between_splits_or_in_form_alone(tmp_path: Path) -> None:
    import datasets

    for split, names in (("train", ["a", "b", "c"]), ("test", ["b", "a"])):
        columns = {"path": [f"{name}.wav" for name in names], "label": list(range(len(names)))}
        (tmp_path / "set").mkdir(exist_ok=True)
        save_rows(tmp_path / "set" / f"{split}.parquet", columns, label=datasets.ClassLabel(names=names))
    source = load(tmp_path / "set")
    assert source.label_names == []
    assert labels(source) == ["a", "b", "c"]
    both = datasets.ClassLabel(names=["Caf\u00e9", "Cafe\u0301", "tea"])
    columns = {"path": ["a.wav", "b.wav", "c.wav"], "label": [0, 1, 2]}
    source = load(save_rows(tmp_path / "twins.parquet", columns, label=both))
    assert source.label_names == ["Caf\u00e9", "tea"]
    assert labels(source) == ["Caf\u00e9", "Caf\u00e9", "tea"]
    assert "are one class" in said(source, "in form alone")


# As spreadsheets and other programs write them


@pytest.mark.parametrize(
    "text",
    [
        "path;label\na.wav;yes;\nb.wav;no;\n",  # a separator more
        "path;label\n\na.wav;yes\nb.wav;no\n",  # a blank line below the header
        "path;label\r\r\na.wav;yes\r\r\nb.wav;no\r\r\n",
        'path;label;said\na.wav;yes;"two\nlines, or, three"\nb.wav;no;x\n',
        "path\tlabel\n\na.wav\tyes\nb.wav\tno\n",
        "sep=\t\npath\tlabel\na.wav\tyes\nb.wav\tno\n",
        '"sep=;"\npath;label\na.wav;yes\nb.wav;no\n',
        "path|label\na.wav|yes\nb.wav|no\n",
        'path,label,"said; or; sung"\na.wav,yes,"x; y; z"\nb.wav,no,"x; y; z"\n',
    ],
)
def test_the_separator_is_seen_through_what_programs_add(tmp_path: Path, text: str) -> None:
    source = load(write(tmp_path / "clips.csv", text))
    assert [(file, label) for file, label in named(source)["train"]] == [("a.wav", "yes"), ("b.wav", "no")]


def test_a_header_within_a_file_is_refused_as_are_names_that_differ_by_spaces(tmp_path: Path) -> None:
    path = write(tmp_path / "clips.csv", "path,label\na.wav,x\npath,label\nb.wav,y\n")
    assert "line 3 is the header again" in refusal(path)
    path = write(tmp_path / "clips.jsonl", '{"path": "a.wav", "label": "yes", " label": "no"}')
    assert "line 1 has a name twice" in refusal(path)


def test_long_cells_are_read_and_an_endless_one_is_refused_by_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "clips.csv", f"path,said,label\na.wav,{'word ' * 100_000},x\n")
    assert named(load(path)) == {"train": [("a.wav", "x")]}
    path = write(tmp_path / "clips.csv", f"path,said,label\na.wav,{'w' * (2**24 + 1)},x\n")
    assert "is not valid csv: field larger than field limit" in refusal(path)


def test_cells_that_a_program_quoted_in_a_tsv_are_said(tmp_path: Path) -> None:
    (tmp_path / "a b.wav").write_bytes(b"x")
    path = write(tmp_path / "clips.tsv", 'path\tlabel\n"a b.wav"\t"the ""big"" dog"\nc.wav\tcat\n')
    source = load(path)
    assert labels(source) == ['"the ""big"" dog"', "cat"]
    assert "in quote marks in 1 row" in said(source, "quote marks")
    assert source.splits["train"][0].path == str(tmp_path / "a b.wav")


def test_blank_lines_may_stand_above_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "clips.csv", "\n,\n\npath,label\na.wav,x\nb.wav\n")
    assert "line 6 has 1 cell, its header 2" in refusal(path)


def test_an_error_in_json_names_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "clips.jsonl", '{"path": "a", "label": "x"}\n{"path": "b" "label"}\n')
    assert refusal(path).endswith("line 2 is not valid JSON: Expecting ',' delimiter, character 14.")


def test_a_transcript_of_several_lines_with_commas_is_a_cell(tmp_path: Path) -> None:
    text = 'path,label,said\na.wav,x,"hello, you\nworld, and, more"\nb.wav,y,"one\ntwo, three, four"\n'
    assert labels(load(write(tmp_path / "clips.csv", text))) == ["x", "y"]


def test_of_columns_that_are_not_used_only_text_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    from audiocls import tables

    columns = {"path": ["a.wav"], "label": ["x"], "phase": ["train"], "embedding": [[0.5] * 4], "age": [3]}
    path = save_rows(tmp_path / "clips.parquet", columns)
    read: list[str] = []
    made = tables.table_of

    def watched(name: str, rows: datasets.Dataset) -> tables.Table:
        table = made(name, rows)
        cells = table.cells
        table.cells = lambda column: (read.append(column), cells(column))[1]
        return table

    monkeypatch.setattr(tables, "table_of", watched)
    assert "phase may say" in said(load(path), "may say")
    assert set(read) == {"path", "label", "phase"}
