"""The columns of a table that cut clips out of longer recordings: where each begins and ends, in seconds."""

import itertools
import math
import re
from collections.abc import Collection, Sequence
from typing import Any

from audiocls.data.clips import Audio, Span
from audiocls.data.columns import plain
from audiocls.data.decoders import open_audio
from audiocls.data.limits import BadAudio
from audiocls.errors import UserError, named, number_of, shown
from audiocls.tables import Table

# The usual names of columns, as `plain` writes them: "Begin Time (s)" is begintimes.
SECONDS = ("", "s", "sec", "secs", "seconds", "inseconds")


def spelled(*names: str) -> set[str]:
    return {name + unit for name in names for unit in SECONDS}


STARTS = spelled("start", "starttime", "begin", "begintime", "onset", "onsettime", "segmentstart", "tmin")
ENDS = spelled("end", "endtime", "stop", "stoptime", "segmentend", "tmax")
DURATIONS = spelled("duration", "dur", "segmentduration")
OFFSETS = spelled("offset", "offsettime")  # ends beside an onset (DCASE), starts beside a duration (NeMo)

# Columns that look like these, also in other units.
ALIKE = re.compile(
    r"(segment)?(start|begin|onset|offset|end|stop|tmin|tmax)(time)?"
    r"(in)?(s|secs?|seconds|ms|msecs?|milliseconds?|samples?|frames?)?"
)
MOST_SECONDS = 1e9  # thirty years
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.I)
CLOCK = re.compile(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d(?:\.\d*)?)")  # H:MM:SS or MM:SS
DECIMALS = 9  # of seconds: far finer than a frame, and coarse enough that a start and a duration add up
SLACK_SECONDS = 0.02  # within which an end agrees with a start and a duration, or with the file's own end
CUT_SLACK_SECONDS = 0.1  # what an encoder adds to a clip's ends
MOST_LOOKED_AT = 20  # recordings whose lengths are looked up


class NoTime(ValueError):
    """A cell says no time."""


def find_spans(
    table: Table, taken: Collection[str | None], notes: list[str]
) -> tuple[list[Span | None], list[str]] | None:
    """Which part of its recording each row is (None: the whole), and the columns that say so; or None.

    They are a start, and an end or a duration, by their usual names; `taken` columns are something else. A
    column of which half the cells or more are no times is not used, and noted. Raises UserError that names
    the row, where a cell is no time, or cells contradict each other.
    """
    columns = [column for column in table.columns if column not in taken]
    starts, ends, durations, offsets = (
        [column for column in columns if plain(column) in usual]
        for usual in (STARTS, ENDS, DURATIONS, OFFSETS)
    )
    if any(plain(column).startswith("onset") for column in starts):
        ends += offsets
    elif durations:
        starts += offsets
    if not starts or not (ends or durations):
        return None
    times = {column: times_in(table, column, notes) for column in [*starts, *ends, *durations]}
    starts, ends, durations = (
        [c for c in some if times[c] is not None] for some in (starts, ends, durations)
    )
    if not starts or not (ends or durations):
        return None
    used = [*starts, *ends, *durations]
    spans = [span_of(table, row, times, starts, ends, durations) for row in range(len(table))]
    if not any(spans):
        return None
    return spans, used


def check_spans_are_used(table: Table, taken: Collection[str | None], files: Sequence[str | None]) -> None:
    """Raises UserError where columns may say parts of recordings, none is used, and files repeat."""
    unused = [column for column in table.columns if column not in taken and ALIKE.fullmatch(plain(column))]
    named_files = [file for file in files if file is not None]
    if unused and len(set(named_files)) < len(named_files):
        raise UserError(
            f"{table.file}: {named([repr(column) for column in unused])} may say which part of its recording "
            f"a row is, and {number_of(len(set(named_files)), 'file')} stand in {len(named_files)} rows: "
            "give start and end (or duration), in seconds, or --segments no."
        )


def times_in(table: Table, column: str, notes: list[str]) -> list[float | None] | None:
    """A column's cells in seconds, None for an empty one; None if half of those that are not are no times.

    Raises UserError for the first cell that is none among others that are.
    """
    times: list[float | None] = []
    wrong: list[int] = []  # rows
    cells = table.cells(column)
    for row, cell in enumerate(cells):
        try:
            times.append(seconds_in(cell))
        except NoTime:
            times.append(None)
            wrong.append(row)
    num_times = len(times) - times.count(None)
    if wrong and len(wrong) >= num_times:
        notes.append(f"{table.name}: {column!r} holds no times in seconds, such as {shown(cells[wrong[0]])}")
        return None
    if wrong:
        raise mistake(table, wrong[0], f"{column!r} is {shown(cells[wrong[0]])}, no time")
    for row, time in enumerate(times):
        if time is not None and not 0 <= time < MOST_SECONDS:  # nan is neither
            what = "which is negative" if time < 0 else "no time"
            raise mistake(table, row, f"{column!r} is {shown(cells[row])}, {what}")
    return times


def seconds_in(cell: Any) -> float | None:
    """A cell in seconds: a number, or a text of one or of H:MM:SS; None where it is empty. Raises NoTime."""
    if cell is None:
        return None
    if isinstance(cell, str):
        text = cell.strip()
        if text == "":
            return None
        if NUMBER.fullmatch(text):
            return round(float(text), DECIMALS)
        if clock := CLOCK.fullmatch(text):
            hours, minutes, seconds = clock.groups()
            return round(3600 * int(hours or 0) + 60 * int(minutes) + float(seconds), DECIMALS)
    elif isinstance(cell, int | float) and not isinstance(cell, bool):
        return round(float(cell), DECIMALS)
    raise NoTime


def span_of(
    table: Table,
    row: int,
    times: dict[str, Any],
    starts: Sequence[str],
    ends: Sequence[str],
    durations: Sequence[str],
) -> Span | None:
    """A row's part of its recording. Raises UserError where it is empty, or said in two ways that differ."""

    def agreed(claims: list[tuple[str, float]]) -> tuple[str, float | None]:
        """What is said first, and where; all must say the same."""
        for (what, seconds), (other, other_seconds) in itertools.pairwise(claims):
            if abs(seconds - other_seconds) > SLACK_SECONDS:
                raise mistake(
                    table, row, f"its {what} says {seconds:.9g} s, its {other} {other_seconds:.9g} s"
                )
        return claims[0] if claims else ("", None)

    _, start = agreed([(repr(c), times[c][row]) for c in starts if times[c][row] is not None])
    begins = start or 0.0
    end_claims = [(repr(c), times[c][row]) for c in ends if times[c][row] is not None]
    for column in durations:
        if (duration := times[column][row]) is not None:
            if duration == 0:
                raise mistake(table, row, f"{column!r} is 0")
            end_claims.append((f"start and {column!r}", round(begins + duration, DECIMALS)))
    what, end = agreed(end_claims)
    if end is not None and end <= begins:
        raise mistake(table, row, f"by {what} it ends at {end:.9g} s, and it begins at {begins:.9g} s")
    return Span(begins, end) if begins or end is not None else None


def mistake(table: Table, row: int, what: str) -> UserError:
    return UserError(
        f"{table.where(row)}: {what}. Give the seconds at which its clip begins and ends in the recording, "
        "as 12.5 or 1:02:12.5, or rename columns that say something else."
    )


def are_cut_already(spans: Sequence[Span | None], audios: Sequence[Audio | None]) -> bool:
    """Whether the rows' recordings are the clips themselves, which somebody has cut out of others.

    As UrbanSound8K's are, whose table says where in the whole recordings they were. Up to MOST_LOOKED_AT
    recordings, spread over the rows, are asked for their length, by their headers: so it is where most of
    them end before their span does, and are as long as it is.
    """
    # From the file's beginning a span of the file's length is the whole file, cut already or not.
    rows = [row for row, span in enumerate(spans) if span and span.end is not None and span.start > 0]
    rows = rows[:: math.ceil(len(rows) / MOST_LOOKED_AT) or 1]
    num_alike = num_seen = 0
    for row in rows:
        span, audio = spans[row], audios[row]
        if audio is None or span is None or span.end is None:
            continue
        try:
            with open_audio(audio.read(), 16_000) as file:  # any rate will do
                seconds = file.claimed / file.rate
        except BadAudio:
            continue
        num_seen += 1
        is_within = seconds >= span.end - SLACK_SECONDS
        num_alike += not is_within and abs(seconds - (span.end - span.start)) <= CUT_SLACK_SECONDS
    return num_alike > num_seen / 2


def note_on_spans(table: Table, used: Sequence[str], spans: Sequence[Span | None], *, are_cut: bool) -> str:
    """What is said of the columns `used`: that they cut clips out, or that others have done so."""
    columns = named([repr(column) for column in used])
    if not are_cut:
        whole = number_of(spans.count(None), "row") if None in spans else ""
        rest = f"; {whole} with neither are whole recordings" if whole else ""
        return f"{table.name}: {columns} cut clips out of recordings, in seconds (see --segments){rest}"
    return (
        f"{table.name}: {columns} are not used: they say where clips were in other recordings, as the files "
        "are as long as these clips"
    )


def short_note(names: Sequence[str]) -> str:
    """What is said of segments that end after their recording does."""
    ends = "segment ends" if len(names) == 1 else "segments end"
    return (
        f"{len(names)} {ends} more than {1000 * SLACK_SECONDS:.0f} ms after the recording's end, "
        f"shorter for it: {named(names, 3)}"
    )
