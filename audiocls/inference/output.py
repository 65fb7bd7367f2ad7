"""Inputs from the command line, and results as text, JSON lines or CSV."""

import contextlib
import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from audiocls.data.sources import audio_files
from audiocls.errors import UserError, one_line
from audiocls.inference.classifier import Prediction
from audiocls.storage import complete_file


def expand(inputs: Iterable[str]) -> list[str]:
    """Files as typed, and for each folder the audio in it, joined with the folder as typed."""
    paths: list[str] = []
    for name in inputs:
        if not Path(name).is_dir():
            paths.append(name)
            continue
        found, _ = audio_files(Path(name))
        if not found:
            raise UserError(f"The folder {name} holds no audio files.")
        paths += map(str, found)
    return paths


def write_predictions(predictions: Iterable[Prediction], format: str, top_k: int, file: TextIO) -> int:
    """Write each result as it comes; returns how many inputs were refused."""
    refused = 0
    table = csv.writer(file, lineterminator="\n")
    if format == "csv":
        more = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "score")]
        table.writerow(["path", "error", "label", "score", *more])
    for prediction in predictions:
        refused += prediction.error is not None
        match format:
            case "jsonl":
                file.write(json.dumps(as_json(prediction)) + "\n")
            case "csv":
                cells = [cell for label, score in prediction.scores for cell in (label, f"{score:.6f}")]
                cells += [""] * (2 * top_k - len(cells))
                table.writerow([prediction.path, prediction.error or "", *cells])
            case _:
                file.write(as_text(prediction))
        file.flush()
    return refused


def as_json(prediction: Prediction) -> dict:
    if prediction.error is not None:
        return {"path": prediction.path, "error": prediction.error}
    return {
        "path": prediction.path,
        "label": prediction.label,
        "score": prediction.score,
        "scores": [{"label": label, "score": score} for label, score in prediction.scores],
    }


def as_text(prediction: Prediction) -> str:
    lines = [one_line(prediction.path or "")]
    if prediction.error is not None:
        lines[0] += f": refused: {one_line(prediction.error)}"
    lines += [f"  {score:.4f}  {one_line(label)}" for label, score in prediction.scores]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def results_file(output: str | None) -> Iterator[TextIO]:
    """Standard output, for the results alone, or a file that is complete or absent.

    What anything else prints meanwhile, a C library for one, goes to stderr.
    """
    if output is None:
        sys.stdout.flush()
        # A file's name need not be UTF-8.
        with os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogateescape") as stdout:
            os.dup2(2, 1)
            yield stdout
        return
    with complete_file(Path(output).expanduser()) as file:
        yield file
