"""Results as text, JSON lines or CSV."""

import base64
import contextlib
import csv
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from audiocls.config import InferConfig
from audiocls.errors import UserError, one_line
from audiocls.findings import MOST_NAMED
from audiocls.inference.classifier import Prediction
from audiocls.model.files import read_json
from audiocls.storage import complete_file
from audiocls.streams import say
from audiocls.tables import no_formula


def unlike_training(config: InferConfig, model_seconds: float = math.inf) -> Iterator[str]:
    """Notes where a run's model is now given something else of recordings than it was trained on.

    `model_seconds` is what the model takes of a recording at most.
    """
    folder = Path(os.path.expanduser(config.model)).absolute()
    run = folder.parent if folder.name == "best" else folder
    try:
        trained = read_json(run / "run.json")["config"]
        names = ("max_seconds", "channel", "trim_silence")
        max_seconds, channel, trim_silence = (trained.get(name) for name in names)
    except (UserError, LookupError, TypeError, AttributeError):  # not a run's folder
        return
    used = config.window or min(config.max_seconds or math.inf, model_seconds)
    if isinstance(max_seconds, float) and used > max_seconds:
        if config.window is not None:
            given, flag = f"windows of {used:g} s", "--window"
        else:
            given = "whole files" if config.max_seconds is None else f"{used:g} s of files"
            flag = "--max-seconds"
        first = f"{max_seconds:g}"
        yield f"note: trained on the first {first} s of clips, given {given}: see {flag} {first}"
    if isinstance(channel, str) and channel != config.channel:
        yield f"note: trained on --channel {channel}, given --channel {config.channel}"
    if trim_silence is True and not config.trim_silence:
        yield "note: trained on clips without silence at their ends: see --trim-silence"


def with_progress(predictions: Iterable[Prediction], total: int | None) -> Iterator[Prediction]:
    """A bar on standard error while the predictions pass."""
    from tqdm import tqdm

    with tqdm(total=total, unit="file", dynamic_ncols=True, file=sys.stderr) as bar:
        for prediction in predictions:
            if prediction.start is None:
                bar.update()
            else:
                bar.set_postfix_str(f"at {prediction.end:.0f} s")
            yield prediction


def with_notes(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """Notes on standard error while the predictions pass: MOST_NAMED of each kind, then how many more."""
    counts: Counter[str] = Counter()
    for prediction in predictions:
        for note in prediction.notes:
            kind = note.partition(":")[0]
            counts[kind] += 1
            if counts[kind] <= MOST_NAMED:
                say(f"note: {prediction.path}: {note}", sys.stderr)
        yield prediction
    for kind, count in counts.items():
        if count > MOST_NAMED:
            say(f"note: {count - MOST_NAMED} more {kind}", sys.stderr)


def write_predictions(
    predictions: Iterable[Prediction],
    format: str,
    top_k: int,
    file: TextIO,
    *,
    windows: bool = False,
    true_labels: bool = False,
) -> int:
    """Write each result as it comes; returns how many recordings were refused.

    In csv there are columns for `windows` and `true_labels` where they say so.
    """
    refused = 0
    columns = ["path", *["start", "end"] * windows, *["true_label"] * true_labels, "error"]
    table = csv.writer(file, lineterminator="\n")
    if format == "csv":
        ranks = ["", *(f"_{rank}" for rank in range(2, top_k + 1))]
        table.writerow([*columns, *(f"{name}{rank}" for rank in ranks for name in ("label", "score"))])
    for prediction in predictions:
        refused += prediction.start is None and prediction.error is not None
        if format == "csv":
            cells = as_cells(prediction, columns, top_k)
            table.writerow(map(one_line, cells) if file.isatty() else cells)
        else:
            file.write(as_json(prediction) if format == "jsonl" else as_text(prediction))
        file.flush()
    return refused


def as_cells(prediction: Prediction, columns: list[str], top_k: int) -> list[str]:
    """A row of CSV: what `columns` name, then `top_k` times a label and its score, or empty cells."""
    values = [getattr(prediction, name) for name in columns]
    cells = [f"{value:.3f}" if isinstance(value, float) else no_formula(value or "") for value in values]
    for label, score in prediction.scores:
        cells += [no_formula(label), f"{score:.6f}"]
    return cells + [""] * (2 * (top_k - len(prediction.scores)))


def as_json(prediction: Prediction) -> str:
    """A line with what is known, and nothing else.

    Names that are not UTF-8 have their odd bytes replaced, as strict readers refuse half a surrogate pair; a
    path's bytes are then all in "path_base64".
    """
    line: dict[str, Any] = {"path": prediction.path}
    if prediction.path is not None and (path := unicode(prediction.path)) != prediction.path:
        line = {"path": path, "path_base64": base64.b64encode(os.fsencode(prediction.path)).decode()}
    for name in ("start", "end", "true_label", "error", "num_windows"):
        if (value := getattr(prediction, name)) is not None:
            line[name] = unicode(value) if isinstance(value, str) else value
    if prediction.notes:
        line["notes"] = prediction.notes
    if prediction.error is None:
        scores = [{"label": unicode(label), "score": score} for label, score in prediction.scores]
        line |= scores[0] | {"scores": scores}
    return json.dumps(line) + "\n"


def unicode(text: str) -> str:
    """`text` with what is no character replaced: Python's stand-ins for the bytes of odd names."""
    return "".join("\N{REPLACEMENT CHARACTER}" if "\ud800" <= c <= "\udfff" else c for c in text)


def as_text(prediction: Prediction) -> str:
    """A line with a recording's name and one a label; below the name of one in windows, a line a window."""
    name = one_line(prediction.path or "waveform")
    if prediction.true_label is not None:
        name += f"  (labelled {one_line(prediction.true_label)})"
    labels = [f"{score:.4f}  {one_line(label)}" for label, score in prediction.scores]
    error = "" if prediction.error is None else f"refused: {one_line(prediction.error)}"
    in_one_line = error or "   ".join(labels)
    if prediction.start is not None:
        head = f"{name}\n" if prediction.start == 0 else ""
        return f"{head}{prediction.start:8.2f} to {prediction.end:8.2f} s   {in_one_line}\n"
    if prediction.num_windows is not None:
        return f"{f'{prediction.num_windows} windows in all':>22}   {in_one_line}\n"
    return "\n".join([f"{name}: {error}" if error else name, *(f"  {label}" for label in labels)]) + "\n"


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
    else:
        with complete_file(Path(os.path.expanduser(output))) as file:
            yield file
