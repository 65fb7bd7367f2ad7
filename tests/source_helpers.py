"""A data set's name -> what is read of it, for the tests of tables and folders."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from data_helpers import write_wav

from audiocls.data.clips import Source
from audiocls.data.columns import Columns
from audiocls.data.sources import load_source
from audiocls.errors import UserError


def load(name: Path | str, **columns: str) -> Source:
    return load_source(str(name), Columns(**columns), cache_dir=Path(name).parent / "cache")


def refusal(name: Path | str, **columns: str) -> str:
    """What a data set is refused with, which is a line and the exit code of wrong usage."""
    with pytest.raises(UserError) as refused:
        load(name, **columns)
    assert refused.value.exit_code == 2
    return str(refused.value)


def labels(source: Source, split: str = "train") -> list[str]:
    return [clip.label for clip in source.splits[split]]


def named(source: Source) -> dict[str, list[tuple[str, str]]]:
    """For each split the clips' file names and labels."""
    return {
        split: [(Path(clip.path).name, clip.label) for clip in clips]
        for split, clips in source.splits.items()
    }


def sizes(source: Source) -> dict[str, int]:
    return {split: len(clips) for split, clips in source.splits.items()}


def left_out(source: Source) -> dict[str, int]:
    """Why rows or files were left out, and how many."""
    return {why: len(names) for why, names in source.left_out.items()}


def said(source: Source, words: str) -> str:
    """The one note that has these words."""
    (note,) = [note for note in source.notes if words in note]
    return note


def write_clips_of(folder: Path, names: Sequence[str]) -> Path:
    for seed, name in enumerate(names):
        write_wav(folder / name, seed=seed)
    return folder
