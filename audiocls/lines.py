"""How a message looks in print: broken to fit, with little colour, where a terminal shows it."""

import os
import re
import sys
import textwrap
from typing import TextIO

WIDEST, NARROWEST = 100, 40  # columns
BOLD, RED, YELLOW = "1", "31", "33"
COLOURS = {r"error:": RED, r"note:": YELLOW, r"best: \S+ \S+": BOLD}  # of what begins a message


def fitted(text: str, file: TextIO, *, is_command: bool = False) -> str:
    """`text`, a message on one line, as it is to be printed on `file`.

    A message is broken at spaces, to the terminal's width or WIDEST, with two spaces before each further
    line; never in a path, a flag and its value, or a whole command, so that they can be copied. On standard
    error that is no terminal it stays on one line, for programs that look for errors. Colours are for
    terminals alone, and not where NO_COLOR (https://no-color.org) or TERM=dumb says so.
    """
    is_terminal = file.isatty()
    if not is_command and (is_terminal or file is not sys.stderr):
        glued = re.sub(r"(--[\w-]+) (?=\w)", "\\1\0", text)
        lines = textwrap.wrap(
            glued,
            width_of(file) if is_terminal else WIDEST,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        text = "\n".join(lines).replace("\0", " ")
    if is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        for begin, colour in COLOURS.items():
            text = re.sub(f"^{begin}", f"\033[{colour}m\\g<0>\033[0m", text)
    return text


def width_of(terminal: TextIO) -> int:
    """The columns to fill, at least NARROWEST and at most WIDEST: also where the terminal does not say."""
    try:
        columns = os.get_terminal_size(terminal.fileno()).columns
    except OSError:
        columns = 0
    return min(max(columns or WIDEST, NARROWEST), WIDEST)


def duration(seconds: float) -> str:
    """`0.4 s`, `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 0.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
