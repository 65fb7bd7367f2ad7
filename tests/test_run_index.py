"""index.html in a folder of runs: all of them, in whatever state, and nobody else's file is replaced."""

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from data_helpers import run_script
from report_helpers import HOSTILE, write_run_folder

from audiocls.errors import UserError
from audiocls.reporting.report import report
from audiocls.reporting.results import Sound
from audiocls.reporting.run_index import MARK, row_of, rows, update_index, write_index
from audiocls.reporting.waveforms import POINTS, drawing_of, ticks

END = {"kind": "end", "step": 30, "best_metric": "accuracy", "best_score": 0.5, "wall_seconds": 90.0}


def run(folder: Path, *records: dict, age: float = 0, **run: object) -> Path:
    """A run's folder of the least that a row needs, `age` seconds old."""
    folder.mkdir(parents=True)
    config = {"dataset": "clips.csv", "model": "tiny", "best_metric": "accuracy"}
    (folder / "run.json").write_text(json.dumps({"config": config, "ended": None} | run))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    then = time.time() - age
    os.utime(folder / "metrics.jsonl", (then, then))
    return folder


def test_each_run_is_a_row_the_newest_first(tmp_path: Path) -> None:
    best = {"kind": "eval", "step": 10, "accuracy": 0.25, "is_best": True}
    run(tmp_path / "old", best, END, age=90)
    run(tmp_path / "stopped", best, {"kind": "train", "step": 20}, age=60, ended="stopped")
    run(tmp_path / "killed", {"kind": "train", "step": 7}, age=30)
    folds = [{"scores": {"accuracy": score}, "seconds": 60.0} for score in (0.5, 1.0)]
    run(tmp_path / "folds", age=20, folds=folds)
    run(tmp_path / "folds" / "fold-1", END)
    (tmp_path / "something else").mkdir()
    assert [(row.name, row.best, row.minutes, row.ended) for row in rows(tmp_path)] == [
        ("folds", "accuracy 0.7500 over 2 folds", "2.0", "finished"),
        ("killed", "", "", "not finished, its log ends at step 7"),
        ("stopped", "accuracy 0.2500", "", "stopped, its log ends at step 20"),
        ("old", "accuracy 0.5000", "1.5", "finished"),
    ]
    assert rows(tmp_path)[0].inside == [("fold-1", "./folds/fold-1/")]


def test_a_comparison_is_a_row_that_links_its_page_and_its_runs(tmp_path: Path) -> None:
    made = tmp_path / "compare-clips"
    (run(made / "slow-0123ab" / "seed-42", END) / "report.html").touch()
    assert [(row.name, row.ended) for row in rows(tmp_path)] == [("compare-clips", "not compared yet")]
    for suffix in ("html", "json"):
        (made / f"slow-vs-fast-0123ab.{suffix}").touch()
    (row,) = rows(tmp_path)
    assert row.href == "./compare-clips/slow-vs-fast-0123ab.html"
    assert row.inside == [("slow-0123ab/seed-42", "./compare-clips/slow-0123ab/seed-42/report.html")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{}"),
        ("run.json", '{"config"'),
        ("run.json", "[" * 100_000),
        ("run.json", '{"config": {"dataset": 1, "model": 2, "best_metric": []}, "folds": 3}'),
        ("metrics.jsonl", "no json\n"),
        ("metrics.jsonl", '{"kind": "end", "best_score": "x", "best_metric": 1}\n'),
        ("metrics.jsonl", "3\n"),
    ],
)
def test_a_damaged_run_is_listed_as_such(name: str, content: str, tmp_path: Path) -> None:
    folder = run(tmp_path / "run", END)
    (folder / name).write_text(content)
    row = row_of(folder)
    assert row is not None
    assert row.ended.startswith("damaged")
    assert write_index(tmp_path)


def test_a_run_that_is_being_written_is_no_damaged_one(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", {"kind": "train", "step": 7})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    assert {row.name: row.ended for row in rows(tmp_path)} == {
        "run": "not finished, its log ends at step 7",
        "begun": "not begun, or not finished",
    }


def test_no_name_can_act_and_all_links_lead_to_their_files(tmp_path: Path) -> None:
    names = ["<img src=x onerror=alert(1)>", "a b#c?d%20", "javascript:alert(1)", "\u202ereversed", "it's"]
    for name in names:
        (
            run(tmp_path / name, END, config={"dataset": HOSTILE[0], "model": HOSTILE[1]}) / "report.html"
        ).touch()
    path = write_index(tmp_path)
    assert path is not None
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"<(img|script)|\u202e", page)
    links = re.findall(r'href="([^"]*)"', page)
    assert len(links) == len(names)
    assert all(re.fullmatch(r"\./[\w.%~-]+/report\.html", link) for link in links)


def test_only_an_index_of_ours_is_replaced(tmp_path: Path) -> None:
    one, index = run(tmp_path / "one", END), tmp_path / "index.html"
    update_index(one)
    assert not index.exists()  # of one run there is nothing to list
    two = run(tmp_path / "two", END)
    update_index(two)
    assert MARK in index.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "one", "two"]
    index.write_text("mine")
    update_index(two)
    with pytest.raises(UserError, match="rename it first"):
        write_index(tmp_path)
    assert index.read_text() == "mine"
    index.unlink()
    (two / "trial.json").write_text("{}")
    update_index(two)
    assert not index.exists()


def test_hundreds_of_runs_take_no_second(tmp_path: Path) -> None:
    long = [{"kind": "train", "step": step, "loss": 0.1} for step in range(2000)]
    for number in range(200):
        run(tmp_path / f"run-{number}", *long, END)
    start = time.monotonic()
    assert len(rows(tmp_path)) == 200
    assert time.monotonic() - start < 2  # a twentieth of a second is usual; the machine may be busy


def test_the_command_writes_a_run_s_report_or_a_folder_s_index(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_run_folder(tmp_path / "runs" / name, ["a", "b"])
    done = run_script("-m", "audiocls.reporting.report", str(tmp_path / "runs" / "one"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "runs" / "index.html").read_text(encoding="utf-8")
    assert 'href="./one/report.html"' in page and 'href="./two/"' in page
    (tmp_path / "runs" / "index.html").unlink()
    done = run_script("-m", "audiocls.reporting.report", str(tmp_path / "runs"))
    assert done.stdout.strip() == str(tmp_path / "runs" / "index.html"), done.stderr
    (tmp_path / "empty").mkdir()
    assert run_script("-m", "audiocls.reporting.report", str(tmp_path / "empty")).returncode != 0


# What the report itself links and draws


def test_every_link_of_a_report_leads_somewhere(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", ["a", "b"])
    (folder / "best").mkdir()
    page = report(folder)
    links, ids = re.findall(r'href="([^"]*)"', page), re.findall(r' id="([^"]*)"', page)
    assert {"run.json", "metrics.jsonl", "predictions.jsonl", "best/"} <= set(links)
    for link in links:
        assert link[1:] in ids if link.startswith("#") else (folder / link).exists(), link


@pytest.mark.parametrize(
    ("name", "commit", "is_linked"),
    [
        ("PolyAI/minds14", "0123456789abcdef", True),
        ("superb", "0123456789abcdef", True),
        ("PolyAI/minds14", None, False),  # a folder of that name
        ("javascript:alert(1)", "0123456789abcdef", False),
        ("../../other", "0123456789abcdef", False),
        ("PolyAI/minds14", "x/../..", False),
    ],
)
def test_what_was_on_the_hub_is_linked_there(
    name: str, commit: str | None, is_linked: bool, tmp_path: Path
) -> None:
    folder = write_run_folder(tmp_path / "run", ["a", "b"])
    run = json.loads((folder / "run.json").read_text())
    run["config"]["dataset"] = name
    run["hub_commits"] = {name: commit} if commit else {}
    (folder / "run.json").write_text(json.dumps(run))
    expected = [f"https://huggingface.co/datasets/{name}/tree/{commit}"] if is_linked else []
    assert re.findall(r'href="(http[^"]*)"', report(folder)) == expected


def test_the_axis_has_few_round_seconds() -> None:
    assert ticks(1.0) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.29) == [0, 0.05, 0.1, 0.15, 0.2, 0.25]
    assert ticks(14.9) == [0, 5, 10]
    assert all(2 <= len(ticks(seconds)) <= 7 for seconds in (0.01, 0.37, 2.3, 9.9, 22.5))


def test_a_clip_that_goes_on_is_marked() -> None:
    waveform = np.zeros(16_000, np.float32)
    whole = drawing_of(Sound(b"", waveform, 16_000, 1.0, 1.0))
    assert (whole.width, whole.used, whole.words) == (POINTS, POINTS, "1.00 s")
    cut = drawing_of(Sound(b"", waveform, 16_000, 1.0, 1.2))
    assert (cut.width, cut.used) == pytest.approx((1.2 * POINTS, POINTS))
    assert cut.words == "the first 1.00 s of 1.20 s used"
    long = drawing_of(Sound(b"", waveform, 16_000, 1.0, 600.0))
    assert (long.width, long.used) == (1.5 * POINTS, POINTS)  # else what was used would be a hair
