"""infer.py as a person runs it, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from architectures import fine_tuned
from data_helpers import ROOT, assert_one_line_error, run_script, write_class_folders, write_table, write_wav
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score
from test_architectures import spread_logits

from audiocls.inference.classifier import Classifier
from audiocls.model.files import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Wav2Vec2 that knows the labels a, b and c."""
    loaded = fine_tuned("wav2vec2", "abc")
    spread_logits(loaded)
    folder = tmp_path_factory.mktemp("model")
    save_model(loaded, folder)
    return folder


def test_a_list_on_standard_input_is_answered_as_it_comes(model: Path, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a b.wav", seconds=0.5)
    flags = "- --format jsonl --device cpu".split()
    command = [sys.executable, str(ROOT / "infer.py"), str(model), *flags]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        for name, key in ((path, "label"), (tmp_path / "none.wav", "error"), (path, "label")):
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())  # before the list ends
            assert answer["path"] == str(name) and key in answer
        process.stdin.close()
        assert process.wait(60) == 3


# Two windows often vote for two labels: a tie.
@pytest.mark.parametrize("options", [[], ["--aggregate", "vote", "--top-k", "1"]])
def test_a_labelled_data_set_is_scored_and_what_cannot_be_is_named(
    options: list[str], model: Path, tmp_path: Path
) -> None:
    folder = write_class_folders(tmp_path / "clips", {"a": 4, "b": 3, "c": 3, "unknown": 2}, seconds=0.3)
    (folder / "a" / "bad.wav").write_text("no sound")
    arguments = ["--dataset", str(folder), "--output", str(tmp_path / "out.jsonl"), "--format", "jsonl"]
    done = run_script("infer.py", str(model), *arguments, "--window", "0.2", *options)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    clips = [line for line in lines if "start" not in line]
    assert [Path(line["path"]).parent.name for line in clips] == [line["true_label"] for line in clips]
    scored = [line for line in clips if line["true_label"] in "abc" and "label" in line]
    true, predicted = [line["true_label"] for line in scored], [line["label"] for line in scored]
    assert len(scored) == 10
    assert {len(line["scores"]) for line in lines if "scores" in line} == {1 if "--top-k" in options else 3}
    said = done.stderr
    accuracy, balanced = accuracy_score(true, predicted), balanced_accuracy_score(true, predicted)
    f1 = f1_score(true, predicted, average="macro")
    scores = f"accuracy {accuracy:.4f}, macro F1 {f1:.4f}, balanced accuracy {balanced:.4f} on 10 clips\n"
    assert scores in said
    matrix = [line.replace(".", "0").split()[2:] for line in said.splitlines()[-4:-1]]
    assert [list(map(int, row)) for row in matrix] == confusion_matrix(true, predicted).tolist()
    assert "no such label: 2\n" in said and "unknown/00.wav" in said.replace("\\", "/")
    assert "cannot be used: 1\n" in said and "1 of 13 inputs were refused" in said


def test_equal_scores_come_in_the_order_of_the_labels_however_many_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classifier = Classifier(fine_tuned("wav2vec2", "abcdefgh"), torch.device("cpu"))
    monkeypatch.setattr(classifier, "as_scores", lambda logits: torch.full_like(logits, 1 / 8))
    for top_k in (1, 2, 8):
        (prediction,) = classifier(np.ones(16_000, np.float32), sampling_rate=16_000, top_k=top_k)
        assert [label for label, _ in prediction.scores] == list("abcdefgh")[:top_k]


def test_flags_may_stand_between_inputs_and_what_does_not_fit_is_said(model: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", [0.1] * 8_000, 16_000)
    name = str(tmp_path / "a.wav")
    done = run_script("infer.py", "--top-k", "1", str(model), name, "--format", "csv", name)
    assert done.returncode == 0, done.stderr
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == ["path", name, name]
    for arguments, words in (
        ([], "--dataset, or --export"),
        ([name, "--dataset", str(tmp_path)], "Give one of"),
        (["--export", "onnx"], "--output model.onnx"),
        ([name, "--hop", "1"], "--window"),
    ):
        assert_one_line_error(run_script("infer.py", str(model), *arguments), 2, words)


@pytest.mark.parametrize(
    "options", [[], ["--window", "0.2", "--hop", "0.1"], ["--max-seconds", "0.3"]], ids=str
)
def test_segments_of_recordings_are_scored_as_files_of_their_own_in_the_rows_order(
    options: list[str], model: Path, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    segments, files = [], []
    for name, rate in (("one.wav", 16_000), ("two.flac", 44_100)):
        write_wav(tmp_path / name, seconds=4, rate=rate)
        samples, _ = soundfile.read(tmp_path / name, dtype="float32")
        for number in range(6):
            start = round(float(generator.uniform(0, 3)), 3)
            end = round(start + float(generator.uniform(0.3, 0.9)), 3)
            own = f"{name}{number}.wav"
            part = samples[round(start * rate) : round(end * rate)]
            soundfile.write(tmp_path / own, part, rate, subtype="FLOAT")
            segments.append((name, "abc"[number % 3], start, end))
            files.append((own, "abc"[number % 3]))
    order = generator.permutation(len(files)).tolist()
    write_table(tmp_path / "segments.csv", ("path", "label", "start", "end"), [segments[n] for n in order])
    write_table(tmp_path / "files.csv", ("path", "label"), [files[n] for n in order])
    answers = []
    for table in ("segments", "files"):
        flags = ["--dataset", f"{table}.csv", "--format", "jsonl", "--device", "cpu", *options]
        done = run_script("infer.py", str(model), *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        answers.append([json.loads(line) for line in done.stdout.splitlines()])
    assert len(answers[0]) >= len(files)
    for ours, expected in zip(*answers, strict=True):
        path, own = ours.pop("path"), expected.pop("path")
        start, end = map(float, path.partition("#t=")[2].split(","))
        assert segments[files.index((Path(own).name, ours["true_label"]))][2:] == (start, end)
        assert ours == expected  # scores too: the waveforms are equal, and each is classified alone
