"""index.html in a folder of runs: a table of them, the newest first, each linked to its report.

Of a run only run.json and the end of metrics.jsonl are read, so that hundreds take no second.
"""

import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from audiocls.errors import UserError
from audiocls.reporting.pages import render
from audiocls.storage import READ_ERRORS, failing_as, open_regular, write_text

MARK = "audiocls, index of runs"  # the page's generator: only what bears it is replaced
# Of the end of metrics.jsonl, in bytes: enough for the last records of a finished run, and for the last few
# hundred of another one.
TAIL, LONG_TAIL = 4096, 65_536
# compare.py names a setting's folder so, and what compares them A-vs-B-0123ab.html.
OF_COMPARISON = re.compile(r".*-[0-9a-f]{6}")
Link = tuple[str, str]  # text, address


@dataclass
class Row:
    """A run, or a folder of runs that compare.py or folds.py made; what is not known of it is empty."""

    name: str
    href: str
    changed: float  # seconds since 1970
    data: str = ""
    model: str = ""
    best: str = ""
    minutes: str = ""
    ended: str = ""
    inside: list[Link] = field(default_factory=list)

    @property
    def date(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.changed))


def update_index(run_folder: Path) -> None:
    """Write index.html beside a run's folder, where there are several runs or it is there already.

    None is written for the runs that compare.py and folds.py make, and where an index.html of somebody else's
    is. Raises InputOutputFailed.
    """
    folder = Path(os.path.normpath(run_folder.absolute())).parent
    is_there = is_ours(folder / "index.html")
    if (run_folder / "trial.json").exists() or (os.path.lexists(folder / "index.html") and not is_there):
        return
    with failing_as(folder / "index.html"):
        found = rows(folder)
    if is_there or len(found) > 1:
        write_text(folder / "index.html", index_page(folder, found))


def write_index(folder: Path) -> Path | None:
    """Write index.html in a folder and return its path; None where the folder holds no runs.

    Raises UserError where there is an index.html of somebody else's, InputOutputFailed.
    """
    path = folder / "index.html"
    found = rows(folder) if folder.is_dir() else []
    if not found:
        return None
    if os.path.lexists(path) and not is_ours(path):
        raise UserError(f"{path} is there and not one that audiocls made: rename it first.")
    write_text(path, index_page(folder, found))
    return path


def index_page(folder: Path, found: list[Row]) -> str:
    pages = sorted(path.name for path in folder.glob("audit-*.html"))
    return render(
        "index.html",
        title=Path(os.path.normpath(folder.absolute())).name,
        mark=MARK,
        rows=found,
        audits=[(name, address(name)) for name in pages],
    )


def is_ours(page: Path) -> bool:
    """Whether a page is there that we wrote."""
    try:
        with open_regular(page) as file:
            return f'<meta name="generator" content="{MARK}">'.encode() in file.read(2000)
    except OSError:
        return False


def rows(folder: Path) -> list[Row]:
    """The runs in a folder, and the folders of several runs, the newest first."""
    with os.scandir(folder) as entries:
        children = [Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    found = [row for child in children if (row := row_of(child))]
    return sorted(found, key=lambda row: (-row.changed, row.name))


def row_of(folder: Path) -> Row | None:
    """What is shown of a folder; None where it holds no runs. What is damaged in it is said in the row."""
    try:
        if any((folder / name).exists() for name in ("run.json", "trial.json", "checkpoints")):
            return run_row(folder)
        return comparison_row(folder)
    except OSError:  # not ours to read, or gone by now
        return None


def run_row(folder: Path) -> Row:
    changed = max(map(changed_at, [folder / "metrics.jsonl", folder / "predictions.jsonl"]))
    row = Row(folder.name, report_address(folder), changed or changed_at(folder / "run.json"))
    row.changed = row.changed or changed_at(folder)
    try:
        with open_regular(folder / "run.json") as file:
            run = json.load(file)
        records = last_records(folder / "metrics.jsonl", TAIL)
        if not any(one["kind"] == "end" for one in records):
            records = last_records(folder / "metrics.jsonl", LONG_TAIL)
        config, folds = run["config"], run.get("folds", [])
        row.data, row.model = str(config["dataset"]), str(config["model"])
        end = next((one for one in records if one["kind"] == "end"), None)
        row.best = best_text(config.get("best_metric", "accuracy"), records, folds)
        if seconds := sum(float(fold["seconds"]) for fold in folds) if folds else end and end["wall_seconds"]:
            row.minutes = f"{float(seconds) / 60:.1f}"
        row.ended = ended_text(run, records, is_over=bool(end or folds))
    except FileNotFoundError:
        row.ended = "not begun, or not finished"
    except READ_ERRORS:
        row.ended = "damaged: cannot be read"
    names = sorted(folder.glob("fold-*"), key=lambda path: (len(path.name), path.name))
    row.inside = [(path.name, report_address(path, folder.parent)) for path in [*names, folder / "final"]]
    row.inside = [link for link in row.inside if (folder / link[0] / "run.json").exists()]
    return row


def comparison_row(folder: Path) -> Row | None:
    """A folder in which compare.py puts its pages, and the runs it makes for them."""
    pages = [path for path in folder.glob("*-vs-*.html") if path.with_suffix(".json").exists()]
    with os.scandir(folder) as entries:
        settings = sorted(Path(one) for one in entries if OF_COMPARISON.fullmatch(one.name) and one.is_dir())
    runs = [path.parent for setting in settings for path in sorted(setting.glob("seed-*/run.json"))]
    if not pages and not runs:
        return None
    pages.sort(key=changed_at, reverse=True)
    first = run_row(runs[0]) if runs else Row("", "", 0.0)
    return Row(
        folder.name,
        address(folder.name, pages[0].name) if pages else address(folder.name, ""),
        changed_at(pages[0]) if pages else max(changed_at(run / "run.json") for run in runs),
        first.data,
        first.model,
        ended="compared" if pages else "not compared yet",
        inside=[(page.stem, address(folder.name, page.name)) for page in pages[1:]]
        + [(str(run.relative_to(folder)), report_address(run, folder.parent)) for run in runs],
    )


def best_text(metric: str, records: list[dict[str, Any]], folds: list[dict[str, Any]]) -> str:
    """`macro_f1 0.9733`, the score by which the best model was chosen, and its score on a test set.

    Of folds it is the mean over them.
    """
    if folds:
        metric = metric if metric in folds[0]["scores"] else "accuracy"
        return f"{metric} {np.mean([fold['scores'][metric] for fold in folds]):.4f} over {len(folds)} folds"
    best, test = "", ""
    for record in reversed(records):
        if record["kind"] == "end" and record["best_score"] is not None:
            best = f"{record['best_metric']} {record['best_score']:.4f}"
        elif record["kind"] == "eval" and record.get("is_best"):
            best = f"{metric} {record[metric]:.4f}"
        elif record["kind"] == "test":
            test = f", test {record[metric]:.4f}"
    return best + test


def ended_text(run: dict[str, Any], records: list[dict[str, Any]], *, is_over: bool) -> str:
    if is_over:
        return "finished"
    how = "stopped" if run.get("ended") == "stopped" else "not finished"
    step = next((one["step"] for one in records if "step" in one), None)
    return how if step is None else f"{how}, its log ends at step {step}"


def last_records(metrics: Path, num_bytes: int) -> list[dict[str, Any]]:
    """The records in the last bytes of metrics.jsonl, the newest first; no line that is being written."""
    try:
        file = open_regular(metrics)
    except FileNotFoundError:
        return []
    with file:
        start = max(0, file.seek(0, os.SEEK_END) - num_bytes)
        file.seek(start)
        lines = file.read(num_bytes).split(b"\n")[:-1]
    return [json.loads(line) for line in lines[1 if start else 0 :]][::-1]


def report_address(run: Path, seen_from: Path | None = None) -> str:
    """The address of a run's report, or of its folder where it has none yet."""
    parts = run.relative_to(seen_from or run.parent).parts
    return address(*parts, "report.html" if (run / "report.html").exists() else "")


def address(*parts: str) -> str:
    """A relative address, whatever characters and bytes the names hold."""
    return "./" + "/".join(quote(os.fsencode(part)) for part in parts)


def changed_at(path: Path) -> float:
    """When a file was written, in seconds since 1970; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
