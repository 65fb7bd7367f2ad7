"""Results as text, JSON lines or CSV."""

import base64
import contextlib
import csv
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from audiocls.config import InferConfig
from audiocls.errors import UserError, one_line
from audiocls.inference.classifier import Prediction
from audiocls.model.trust import read_json
from audiocls.storage import complete_file


def unlike_training(config: InferConfig) -> str | None:
    """A note where more is heard at once than a run's model was trained on, the beginning of clips."""
    folder = Path(os.path.expanduser(config.model)).absolute()
    run = folder.parent if folder.name == "best" else folder
    try:
        trained = read_json(run / "run.json")["config"]["max_seconds"]
    except (UserError, LookupError, TypeError):  # not a run's folder
        return None
    heard = config.window or config.max_seconds or math.inf
    if not isinstance(trained, float) or heard <= trained:
        return None
    if config.window is not None:
        hears, flag = f"windows of {heard:g} s", "--window"
    else:
        hears, flag = "whole files" if heard == math.inf else f"{heard:g} s of files", "--max-seconds"
    return f"note: trained on the first {trained:g} s of clips, hears {hears}: see {flag} {trained:g}"


def with_progress(predictions: Iterable[Prediction], total: int | None) -> Iterator[Prediction]:
    """A bar on standard error while the predictions pass."""
    from tqdm import tqdm

    with tqdm(total=total, unit="file", file=sys.stderr) as bar:
        for prediction in predictions:
            if prediction.start is None:
                bar.update()
            else:
                bar.set_postfix_str(f"at {prediction.end:.0f} s")
            yield prediction


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
    more = [("start", "end")] * windows + [("true_label",)] * true_labels
    table = Table(file, top_k, [name for names in more for name in names]) if format == "csv" else None
    for prediction in predictions:
        refused += prediction.start is None and prediction.error is not None
        if table is not None:
            table.write(prediction)
        else:
            file.write(json.dumps(as_json(prediction)) + "\n" if format == "jsonl" else as_text(prediction))
        file.flush()
    return refused


class Table:
    """Results as CSV, a row each. A cell of text that a spreadsheet would run as a formula begins with '."""

    def __init__(self, file: TextIO, top_k: int, more: list[str]) -> None:
        self.rows = csv.writer(file, lineterminator="\n")
        self.is_terminal = file.isatty()
        self.more = more
        self.num_cells = 2 * top_k
        ranks = ["", *(f"_{rank}" for rank in range(2, top_k + 1))]
        scores = [f"{name}{rank}" for rank in ranks for name in ("label", "score")]
        self.rows.writerow(["path", *more, "error", *scores])

    def write(self, prediction: Prediction) -> None:
        cells = [self.text(prediction.path)]
        for name in self.more:
            value = getattr(prediction, name)
            cells.append(f"{value:.3f}" if isinstance(value, float) else self.text(value))
        cells.append(self.text(prediction.error))
        for label, score in prediction.scores:
            cells += [self.text(label), f"{score:.6f}"]
        missing = self.num_cells - 2 * len(prediction.scores)
        self.rows.writerow(cells + [""] * missing)

    def text(self, value: str | None) -> str:
        value = (value or "").replace("\r", "\\r")  # csv.writer leaves one unquoted, which ends the row
        # https://owasp.org/www-community/attacks/CSV_Injection
        value = f"'{value}" if value.startswith(tuple("=+-@\t\n")) else value
        return one_line(value) if self.is_terminal else value


def as_json(prediction: Prediction) -> dict[str, Any]:
    """What is known, and nothing else.

    Names that are not UTF-8 have their odd bytes replaced, as strict readers refuse half a surrogate pair; a
    path's bytes are then all in "path_base64".
    """
    line: dict[str, Any] = {"path": prediction.path}
    if prediction.path is not None and (path := unicode(prediction.path)) != prediction.path:
        line = {"path": path, "path_base64": base64.b64encode(os.fsencode(prediction.path)).decode()}
    for name in ("start", "end", "true_label", "error", "num_windows"):
        if (value := getattr(prediction, name)) is not None:
            line[name] = unicode(value) if isinstance(value, str) else value
    if prediction.error is None:
        scores = [{"label": unicode(label), "score": score} for label, score in prediction.scores]
        line |= scores[0] | {"scores": scores}
    return line


def unicode(text: str) -> str:
    """`text` with what is no character replaced: Python's stand-ins for the bytes of odd names."""
    return "".join("\N{REPLACEMENT CHARACTER}" if "\ud800" <= c <= "\udfff" else c for c in text)


def as_text(prediction: Prediction) -> str:
    """A line with a recording's name and one a label; below the name of one in windows, a line a window."""
    name = one_line(prediction.path or "waveform")
    if prediction.true_label is not None:
        name += f"  (labelled {one_line(prediction.true_label)})"
    labels = [f"{score:.4f}  {one_line(label)}" for label, score in prediction.scores]
    error = f"refused: {one_line(prediction.error)}" if prediction.error is not None else ""
    if prediction.start is not None:
        head = f"{name}\n" if prediction.start == 0 else ""
        times = f"{prediction.start:8.2f} to {prediction.end:8.2f} s"
        return f"{head}{times}   {error or '   '.join(labels)}\n"
    if prediction.num_windows is not None:
        windows = f"{prediction.num_windows} windows in all"
        return f"{windows:>22}   {error or '   '.join(labels)}\n"
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
        return
    with complete_file(Path(os.path.expanduser(output))) as file:
        yield file
