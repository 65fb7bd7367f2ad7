"""train.py and infer.py as a person runs them: a whole run, its folder, its refusals, its stops."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import without_times
from data_helpers import ROOT, assert_one_line_error, run_script, unbroken, write_class_folders, write_table

from audiocls.data.demo import LABELS

QUICK = ["--demo", "--epochs", "2", "--eval-every", "15", "--log-every", "5"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workplace")


def environment(cwd: Path) -> dict[str, str]:
    return os.environ | {"XDG_CACHE_HOME": str(cwd / "cache")}


def script(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_script(name, *map(str, arguments), cwd=cwd, env=environment(cwd), timeout=120)


@pytest.fixture(scope="module")
def run(workplace: Path) -> Path:
    """The folder of a short demo run."""
    done = script("train.py", *QUICK, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *lines, command = done.stdout.splitlines()
    assert "infer.py runs/demo-tiny" in command
    assert max(map(len, lines)) <= 100
    assert len(set(lines)) == len(lines)
    assert "\033" not in done.stdout
    return workplace / "runs" / "demo-tiny"


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_the_folder_that_is_promised(run: Path) -> None:
    about = json.loads((run / "run.json").read_text())
    assert about["label2id"] == {label: id for id, label in enumerate(sorted(LABELS))}
    assert about["config"]["learning_rate"] == 2e-3
    assert {"versions", "device", "split_fingerprint"} <= set(about)
    assert about["forward_pass"] == "audiocls"
    kinds = [record["kind"] for record in lines_of(run / "metrics.jsonl")]
    assert kinds[-2:] == ["test", "end"]
    assert kinds.count("eval") == 3  # at steps 15, 30 and the end, 40
    saved = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert "step-00000040" in saved
    assert {path.name for path in (run / "best").iterdir()} == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "checksums.json", "README.md"),
    }
    assert {"audit.json", "errors", "report.html"} <= {path.name for path in run.iterdir()}
    predictions = lines_of(run / "predictions.jsonl")
    assert [line["split"] for line in predictions] == ["evaluation"] * 80 + ["test"] * 80
    assert all(sum(line["probabilities"]) == pytest.approx(1, abs=1e-4) for line in predictions)


@pytest.mark.slow
def test_transformers_own_model_trains_and_classifies_on_request(workplace: Path) -> None:
    quick = ["--demo", "--epochs", "1", "--output-dir", "stock", "--backbone", "transformers"]
    done = script("train.py", *quick, cwd=workplace)
    assert done.returncode == 0, done.stderr
    # tiny has no norm over time.
    said = "forward pass: transformers' own wav2vec2, in which padding changes no result"
    assert said in done.stdout.splitlines()
    assert json.loads((workplace / "stock" / "run.json").read_text())["forward_pass"] == "transformers"
    file = next(workplace.rglob("test/*/*.wav"))
    scores = []
    for backbone in ("audiocls", "transformers"):
        arguments = ["stock", file, "--format", "jsonl", "--top-k", 10, "--backbone", backbone]
        done = script("infer.py", *arguments, cwd=workplace)
        scores.append({one["label"]: one["score"] for one in json.loads(done.stdout)["scores"]})
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_predictions_are_those_of_the_best_step_and_of_infer(run: Path, workplace: Path) -> None:
    """`--max-seconds` of infer.py repeats the evaluation."""
    predictions = lines_of(run / "predictions.jsonl")
    hits = [
        max(range(len(LABELS)), key=line["probabilities"].__getitem__) == sorted(LABELS).index(line["label"])
        for line in predictions
        if line["split"] == "test"
    ]
    test = next(record for record in lines_of(run / "metrics.jsonl") if record["kind"] == "test")
    assert test["accuracy"] == pytest.approx(sum(hits) / len(hits))
    some = predictions[::16]
    arguments = ["--max-seconds", 1, "--format", "jsonl", "--top-k", 10]
    done = script("infer.py", run, *(line["path"] for line in some), *arguments, cwd=workplace)
    assert done.returncode == 0, done.stderr
    for line, printed in zip(some, map(json.loads, done.stdout.splitlines()), strict=True):
        scores = {one["label"]: one["score"] for one in printed["scores"]}
        # 1e-4: the evaluation padded its batches, under an attention mask; infer.py pads nothing.
        assert [scores[label] for label in sorted(LABELS)] == pytest.approx(line["probabilities"], abs=1e-4)


def test_infer_goes_on_after_a_refused_file_and_ends_with_3(run: Path, workplace: Path) -> None:
    (workplace / "broken.wav").write_text("no sound")
    clip = lines_of(run / "predictions.jsonl")[0]["path"]
    done = script("infer.py", run, "broken.wav", clip, cwd=workplace)
    assert done.returncode == 3
    assert done.stdout.splitlines()[0].startswith("broken.wav: refused")
    assert len(done.stdout.splitlines()) == 7  # that, the file, five labels
    note, refused = done.stderr.splitlines()
    assert note.startswith("note: ") and "--max-seconds 1" in note
    assert refused == "1 of 2 inputs were refused"


def test_a_named_folder_that_holds_a_run_is_refused_unless_resumed_or_overwritten(
    run: Path, workplace: Path
) -> None:
    before = (run / "metrics.jsonl").read_text()
    again = script("train.py", *QUICK, "--output-dir", run, cwd=workplace)
    assert_one_line_error(again, 2, "--resume")
    another = script("train.py", *QUICK, "--resume", "--output-dir", run, "--batch-size", 16, cwd=workplace)
    assert_one_line_error(another, 2, "--batch-size: 8 -> 16")
    assert (run / "metrics.jsonl").read_text() == before


def test_sigterm_stops_with_143_and_resume_ends_as_if_nothing_had_happened(
    run: Path, workplace: Path
) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *QUICK, "--output-dir", "stopped"]
    streams: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=workplace, env=environment(workplace), **streams)
    log = workplace / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 143, errors
    assert "--resume" in errors

    resumed = script("train.py", *QUICK, "--output-dir", "stopped", "--resume", cwd=workplace)
    assert resumed.returncode == 0, resumed.stderr
    assert without_times(lines_of(workplace / "stopped" / "metrics.jsonl")) == without_times(
        lines_of(run / "metrics.jsonl")
    )
    for name in ("best", "checkpoints/step-00000040"):
        name = f"{name}/model.safetensors"
        assert (workplace / "stopped" / name).read_bytes() == (run / name).read_bytes()
    assert lines_of(workplace / "stopped" / "predictions.jsonl") == lines_of(run / "predictions.jsonl")


def test_a_run_trains_on_from_another_by_the_names_of_its_labels(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "one", {"down": 5, "left": 5, "up": 5})
    renamed = {"down": "a cow", "left": "left", "up": "bird"}  # "left" comes last now
    rows = [(file, renamed[file.parent.name]) for file in (tmp_path / "one").glob("*/*.wav")]
    write_table(tmp_path / "two.csv", ("audio", "label"), rows)
    few = ["--max-steps", 3, "--batch-size", 4, "--gradient-accumulation-steps", 1, "--device", "cpu"]
    first = script("train.py", "--dataset", "one", "--model", "tiny", *few, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    on = script("train.py", "--dataset", "two.csv", "--model", "runs/one-tiny/", *few, cwd=tmp_path)
    assert on.returncode == 0, on.stderr
    note = (
        "note: runs/one-tiny/best: labels whose row of its head is kept: 1; new: 2 (a cow, bird); "
        "of its own not trained: 2 (down, up)"
    )
    assert note in unbroken(on.stdout).splitlines()
    assert (tmp_path / "runs" / "two-one-tiny" / "best" / "config.json").exists()

    best = (tmp_path / "runs" / "one-tiny" / "best" / "model.safetensors").read_bytes()
    for how, says in (
        ("--overwrite", "lies in runs/one-tiny"),
        ("--resume", "--model: tiny -> runs/one-tiny"),
    ):
        over = ["--dataset", "one", "--model", "runs/one-tiny", "--output-dir", "runs/one-tiny", how, *few]
        assert_one_line_error(script("train.py", *over, cwd=tmp_path), 2, says)
    assert (tmp_path / "runs" / "one-tiny" / "best" / "model.safetensors").read_bytes() == best


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        ("--dataset ./nowhere --model a/b/c", 2, "folder ./nowhere. There is no file or folder a/b/c"),
        ("--demo --device cuda:99", 2, "--device cuda:99"),
        ("--dataset PolyAI/minds14 --model tiny", 4, "--demo"),
    ],
)
def test_mistakes_end_in_one_line_and_a_code(flags: str, code: int, says: str, tmp_path: Path) -> None:
    assert_one_line_error(script("train.py", *flags.split(), cwd=tmp_path), code, says)
