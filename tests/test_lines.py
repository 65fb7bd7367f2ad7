"""What is printed fits where it is printed, and has colours only where they are wanted."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from data_helpers import ROOT, unbroken

from audiocls.lines import duration, fitted
from audiocls.streams import progress

LONG = "note: give --batch-size 8 or look at /a/folder/with-hyphens/of/some/length " + "word " * 30 + "end"


class Terminal(io.StringIO):
    """Of a width that it does not tell."""

    def isatty(self) -> bool:
        return True


def open_terminal(columns: int) -> tuple[int, int]:
    """Descriptors of a pseudo-terminal: of who looks at it, and of the program in it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    return ours, theirs


@pytest.mark.parametrize(("columns", "fits"), [(80, 80), (100, 100), (200, 100), (10, 40), (0, 100)])
def test_a_message_is_broken_to_the_terminals_width_and_can_be_put_together(columns: int, fits: int) -> None:
    ours, theirs = open_terminal(columns)
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "w") as terminal:
        printed = re.sub("\033.*?m", "", fitted(LONG, terminal))
    lines = printed.split("\n")
    assert max(map(len, lines)) <= max(fits, len("  /a/folder/with-hyphens/of/some/length"))
    assert any("--batch-size 8" in line for line in lines)
    assert any("/a/folder/with-hyphens/of/some/length" in line for line in lines)
    assert unbroken(printed) == LONG


def test_piped_messages_fit_and_piped_errors_stay_on_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(map(len, fitted(LONG, io.StringIO()).split("\n"))) <= 100
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert fitted(LONG, sys.stderr) == LONG
    assert fitted(LONG, Terminal(), is_command=True).endswith(LONG.removeprefix("note:"))


@pytest.mark.parametrize(
    ("environment", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_are_for_terminals_that_want_them(
    environment: dict[str, str], is_coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ({"NO_COLOR": "", "TERM": "xterm"} | environment).items():
        monkeypatch.setenv(name, value)
    expected = "\033[33mnote:\033[0m a" if is_coloured else "note: a"
    assert fitted("note: a", Terminal()) == expected
    assert fitted("data: a", Terminal()) == "data: a"
    assert fitted("note: a", io.StringIO()) == "note: a"


def test_durations_are_told_in_one_unit() -> None:
    told = [duration(seconds) for seconds in (0.04, 0.96, 40, 720, 12_600)]
    assert told == ["0.0 s", "1 s", "40 s", "12 min", "3.5 h"]


def test_where_there_is_no_bar_a_line_a_minute_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 10_000, 25))  # seconds
    monkeypatch.setattr("audiocls.streams.time.monotonic", lambda: next(clock))
    assert list(progress(range(2_000, 2_006), "encoding", 6, io.StringIO())) == list(range(2_000, 2_006))
    lines = ["encoding: 2 of 6 clips, about 2 min to go", "encoding: 5 of 6 clips, about 30 s to go"]
    assert capsys.readouterr().out.splitlines() == lines


def test_a_run_in_a_terminal_of_80_columns_fills_no_line_beyond(tmp_path: Path) -> None:
    command: list[Any] = [sys.executable, ROOT / "train.py", "--demo", "--max-steps", "8", "--log-every", "2"]
    ours, theirs = open_terminal(80)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "TERM": "xterm", "NO_COLOR": ""}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65_536):
            said += piece
    except OSError:  # the program has ended
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0, said
    shown = re.sub("\033.*?m", "", said.decode())
    *drawn, command_line = [text for text in re.split(r"[\r\n]+", shown) if text.strip()]
    assert "infer.py" in command_line
    paths = [text for text in drawn if str(tmp_path) in text]
    assert max(len(text) for text in drawn if text not in paths) <= 80
    assert {text.split()[0] for text in drawn} >= {
        "decoding:",
        "training",
        "train",
        "eval",
        "best:",
        "report:",
    }
    assert "\033[1mbest: accuracy" in said.decode()
