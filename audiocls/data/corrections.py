"""What a person found wrong about labels: clips to leave out, and clips to be of another class."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from audiocls.config import TrainConfig
from audiocls.data.clips import Clip, Segment, Source
from audiocls.data.columns import clean, column_called
from audiocls.errors import MOST_EXAMPLES, UserError, named, number_of
from audiocls.tables import FORMATS, read_table


def correct(config: TrainConfig, sources: Iterable[Source]) -> None:
    """Leave out the clips that --drop names, and give those that --relabel names their other label.

    A row names the clips of its path; where it has a label, too, those that bear it. Raises UserError where a
    table names none of the clips, or a label that none of them has.
    """
    sources = list(sources)
    if config.drop:
        rows = Rows("--drop", config.drop)
        for source in sources:
            dropped: list[str] = []
            for split, clips in source.splits.items():
                found = [rows.find(clip) for clip in clips]
                dropped += [clip.path for clip, row in zip(clips, found, strict=True) if row is not None]
                source.splits[split] = [clip for clip, row in zip(clips, found, strict=True) if row is None]
            source.leave_out(f"dropped by {config.drop}", dropped)
        sources[0].note(rows.notes())
    if config.relabel:
        rows = Rows("--relabel", config.relabel, "suggested_label")
        labels = {clip.label for source in sources for clips in source.splits.values() for clip in clips}
        for source in sources:
            changed: list[str] = []
            for clips in source.splits.values():
                for index, clip in enumerate(clips):
                    if (row := rows.find(clip)) is not None:
                        label = rows.label(row, labels)
                        changed.append(f"{clip.path} ({clip.label} -> {label})")
                        clips[index] = replace(clip, label=label)
            if changed:
                which = named(changed, MOST_EXAMPLES)
                source.note([f"{number_of(len(changed), 'label')} changed by {config.relabel}: {which}"])
        sources[0].note(rows.notes())


class Rows:
    """The rows of a table that names clips by path, and which of them have named one."""

    def __init__(self, flag: str, file: str, label_column: str | None = None) -> None:
        path = Path(os.path.expanduser(file))
        if path.suffix.lower() not in FORMATS:
            raise UserError(f"{flag} {file} is no table: give one of {', '.join(FORMATS)}.")
        self.flag, self.file = flag, file
        table = read_table(path)

        def cells(column: str | None) -> list[str]:
            """The column's cells as labels are compared; empty ones where there is no such column."""
            if column is None:
                return [""] * len(table)
            return ["" if cell is None else clean(str(cell)) for cell in table.cells(column)]

        def column(name: str) -> str:
            if found := column_called(name, table):
                return found
            raise UserError(f"{flag} {file} has no column {name!r}. It has: {named(table.columns)}.")

        # A ' may stand before what a spreadsheet would take for a formula.
        paths = [str(cell) for cell in table.cells(column("path"))]
        self.labels = cells(column_called("label", table))
        self.new_labels = cells(column(label_column) if label_column else None)
        self.where = [table.where(row) for row in range(len(table))]
        self.rows_of: dict[str, list[int]] = {}
        for row, name in enumerate(paths):
            for meant in {name, name.removeprefix("'")}:
                self.rows_of.setdefault(os.path.abspath(meant), []).append(row)
        self.matched: set[int] = set()  # rows that have named a clip
        self.found: set[int] = set()  # rows whose path is a clip's, which may bear another label
        self.saw_segments = False  # whether any clip is a part of a recording

    def find(self, clip: Clip) -> int | None:
        """The row that names a clip; of several the first."""
        self.saw_segments |= isinstance(clip.audio, Segment)
        rows = self.rows_of.get(os.path.abspath(clip.path), [])
        said = [(row, self.labels[row]) for row in rows]
        label = clean(clip.label)
        found = [row for row, one in said if not one or label in (one, one.removeprefix("'"))]
        self.found.update(rows)
        self.matched.update(found)
        if len({self.new_labels[row] for row in found}) > 1:
            new = " and ".join(repr(self.new_labels[row]) for row in found)
            raise UserError(f"{self.flag} {self.file} names {clip.path} twice, with the labels {new}.")
        return found[0] if found else None

    def label(self, row: int, labels: set[str]) -> str:
        """The row's new label, one of `labels`. Raises UserError."""
        said = self.new_labels[row]
        for label in (said, said.removeprefix("'")):
            if label in labels:
                return label
        raise UserError(
            f"{self.where[row]}: {said!r} is no label of the data set. It has: {named(sorted(labels))}."
        )

    def notes(self) -> list[str]:
        """What did not fit. Raises UserError where nothing did."""
        if not self.where:
            return [f"{self.file} holds no rows: nothing is changed by it"]
        if not self.matched:
            why = "its clips bear other labels" if self.found else "are its paths as --dataset gives them?"
            if self.saw_segments and not self.found:
                why += " A segment's is as calls/a.wav#t=1.5,3.2."
            raise UserError(f"{self.flag} {self.file} names no clip of the data set: {why}")
        count = len(self.where)
        others = {
            "name no clip": count - len(self.found),
            "name clips that bear another label": len(self.found) - len(self.matched),
        }
        return [f"{self.file}: of {count} rows {number} {what}" for what, number in others.items() if number]
