"""Cross-validation: every clip scored once, by a model that never heard it, whatever happens meanwhile."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_helpers import ROOT, run_script, unbroken, write_class_folders, write_table
from report_helpers import write_run_folder

from audiocls import folds
from audiocls.errors import UserError
from audiocls.flags import parse_train
from audiocls.reporting.report import report
from audiocls.reporting.results import read_run, read_worst_errors

SHARED = ["--recipe", "scratch", "--max-steps", "3", "--device", "cpu"]


def table_of_speakers(folder: Path) -> Path:
    """Three speakers of two words, four times each; one clip is there under two names."""
    write_class_folders(folder, {"anna": 8, "ben": 8, "cleo": 8})
    paths = [f"{folder.name}/{speaker}/{n:02d}.wav" for speaker in ("anna", "ben", "cleo") for n in range(8)]
    rows = [(path, ("no", "yes")[n % 2], Path(path).parent.name) for n, path in enumerate(paths)]
    return write_table(folder.parent / "clips.csv", ("path", "label", "speaker"), rows)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where folds of speakers were made, with a final model."""
    place = tmp_path_factory.mktemp("folds")
    table_of_speakers(place / "clips")
    done = run_folds(place, "speakers", "--final", "--", *SHARED, "--group-column", "speaker")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    (place / "said.txt").write_text(done.stdout)
    return place


def run_folds(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(place / "cache")}
    command = ["-m", "audiocls.folds", *arguments, "--dataset", "clips.csv"]
    return run_script(*command, cwd=place, env=environment, timeout=240)


@pytest.mark.slow
def test_every_clip_is_scored_once_by_the_fold_that_held_its_speaker_out(place: Path) -> None:
    folder = place / "runs" / "folds-speakers-clips-tiny"
    lines = lines_of(folder / "predictions.jsonl")
    with (place / "clips.csv").open(newline="") as file:
        expected = [row["path"] for row in csv.DictReader(file)]
    assert [os.path.normpath(line["path"]) for line in lines] == expected  # in the data's order
    results = read_run(folder)
    assert sorted(fold["held_out"] for fold in results.folds) == [["anna"], ["ben"], ["cleo"]]
    for line in lines:
        fold = results.folds[line["fold"] - 1]
        assert Path(line["path"]).parent.name in fold["held_out"]
        own = lines_of(folder / f"fold-{fold['fold']}" / "predictions.jsonl")
        (there,) = [one for one in own if one["path"] == line["path"]]
        assert there["probabilities"] == line["probabilities"]
        notes = json.loads((folder / f"fold-{fold['fold']}" / "audit.json").read_text())["notes"]
        assert f"held out by speaker: {fold['held_out'][0]}" in notes


@pytest.mark.slow
def test_no_checkpoint_is_chosen_by_the_clips_it_is_judged_by(place: Path) -> None:
    for fold in (1, 2, 3):
        records = lines_of(place / "runs" / "folds-speakers-clips-tiny" / f"fold-{fold}" / "metrics.jsonl")
        assert [record["step"] for record in records if record["kind"] == "eval"] == [3]


@pytest.mark.slow
def test_all_runs_share_one_cache_of_decoded_clips(place: Path) -> None:
    assert len(list((place / "cache" / "audiocls" / "waveforms").iterdir())) == 1


@pytest.mark.slow
def test_the_report_is_of_the_pooled_clips_and_lists_folds_and_doubts(place: Path) -> None:
    folder = place / "runs" / "folds-speakers-clips-tiny"
    results = read_run(folder)
    assert results.predictions and results.predictions.split == "folds"
    page = report(folder)
    speaker = '<a href="#set--group-column">speaker</a>'
    said = f"Each of 24 clips was scored by one of 3 models, which never heard it, nor any of its {speaker}"
    assert said in page
    assert all(f"<td>{name}</td>" in page for name in ("anna", "ben", "cleo"))
    assert "Doubted labels" in page
    with (folder / "doubted.csv").open(newline="") as file:
        doubted = list(csv.DictReader(file))
    assert set(read_worst_errors(folder)) == set(range(1, min(len(doubted), 24) + 1))
    said = (place / "said.txt").read_text()
    assert f"doubted labels: {len(doubted)} of 24 clips" in said or "none, because the models guess" in said
    assert results.scores
    assert f"all clips: accuracy {results.scores.values['accuracy']:.4f}" in said


@pytest.mark.slow
def test_the_final_model_is_trained_on_all_and_its_card_quotes_the_folds(place: Path) -> None:
    final = place / "runs" / "folds-speakers-clips-tiny" / "final"
    assert json.loads((final / "run.json").read_text())["clips"]["train"] == 24
    card = (final / "best" / "README.md").read_text()
    pooled = read_run(final.parent).scores
    assert pooled
    assert "this model is trained on all 24 clips" in card
    assert "3 others" in card
    assert f"accuracy {pooled.values['accuracy']:.4f}" in card
    said = [
        run_script("infer.py", str(folder), str(place / "clips" / "anna" / "00.wav"), cwd=place).stdout
        for folder in (final, final.parent)
    ]
    assert said[0] == said[1]
    assert "yes" in said[0]


@pytest.mark.slow
def test_what_is_there_is_not_made_again_and_other_settings_are_refused(place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.glob("runs/*/*/trial.json")}
    doubted = place / "runs" / "folds-speakers-clips-tiny" / "doubted.csv"
    doubted.write_text("path,label\n")  # somebody has gone through it
    again = run_folds(place, "speakers", "--", *SHARED, "--group-column", "speaker")
    assert again.returncode == 0, again.stderr
    assert "3 of 3 runs are there already" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert doubted.read_text() == "path,label\n"
    assert not (doubted.parent / "final" / "doubted.csv").exists()
    shutil.rmtree(doubted.parent / "fold-1" / "best")  # to save space
    other = run_folds(place, "speakers", "--", *SHARED, "--group-column", "speaker", "--seed", "1")
    assert other.returncode == 2
    assert "fold-1 holds a run of other settings (--seed: 42 -> 1)" in other.stderr


LONGER = ["--recipe", "scratch", "--max-steps", "60", "--batch-size", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two folds were made in one go."""
    place = tmp_path_factory.mktemp("whole")
    table_of_speakers(place / "clips")
    assert run_folds(place, "2", "--output-dir", "whole", "--", *LONGER).returncode == 0
    return place


@pytest.mark.slow
@pytest.mark.parametrize("is_ctrl_c", [False, True])
def test_stopped_in_the_middle_the_same_command_goes_on_to_the_same_scores(
    is_ctrl_c: bool, uninterrupted: Path
) -> None:
    place, name = uninterrupted, f"cut-{is_ctrl_c}"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "audiocls.folds",
            "2",
            "--output-dir",
            name,
            "--",
            *LONGER,
            "--dataset",
            "clips.csv",
        ],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(place / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = place / name / "fold-1" / "metrics.jsonl"
    for _ in range(600):  # until its first fold takes steps
        if metrics.exists():
            break
        time.sleep(0.1)
    if is_ctrl_c:  # the terminal sends it to all of its processes
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "stopped: the same command goes on from there" in said
    assert run_folds(place, "2", "--output-dir", name, "--", *LONGER).returncode == 0
    whole, cut = (lines_of(place / one / "predictions.jsonl") for one in ("whole", name))
    assert whole == cut


@pytest.mark.slow
def test_changed_data_is_noticed_before_anything_is_run(uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    run_json = tmp_path / "whole" / "fold-2" / "run.json"
    run_json.unlink()  # as if it were still to be made
    command = ("2", "--output-dir", "whole", "--", *LONGER)
    table = tmp_path / "clips.csv"
    before = table.read_bytes()
    table.write_bytes(before[::-1].replace(b"yes"[::-1], b"no"[::-1], 1)[::-1])  # the last clip's label
    done = run_folds(tmp_path, *command)
    assert done.returncode == 2
    assert "fold-1 holds a run of other settings (clips.csv has changed)" in done.stderr
    table.write_bytes(before)
    (tmp_path / "clips" / "anna" / "00.wav").unlink()  # the table is the same, one of its clips is gone
    done = run_folds(tmp_path, *command)
    assert done.returncode == 2
    assert "is of other clips than there are now: the data has changed" in done.stderr
    assert not run_json.exists()


def test_what_folds_usually_set_gives_way_to_flags_and_to_files(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("eval_every = 7\n")
    shared = ["--dataset", "demo", "--recipe", "scratch"]
    assert parse_train(shared, folds.USUAL).eval_every == "end"
    assert parse_train([*shared, "--eval-every", "9"], folds.USUAL).eval_every == 9
    config = parse_train([*shared, "--config", str(tmp_path / "settings.toml")], folds.USUAL)
    assert (config.eval_every, config.checkpoint_every) == (7, "10m")


@pytest.mark.slow
def test_a_final_model_of_other_clips_is_not_taken_for_one_of_these(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "runs" / "folds-speakers-clips-tiny"
    for fold in folder.glob("fold-*"):
        shutil.rmtree(fold)
    (tmp_path / "clips" / "anna" / "00.wav").unlink()
    done = run_folds(tmp_path, "speakers", "--final", "--", *SHARED, "--group-column", "speaker")
    assert done.returncode == 2
    assert "final is of other clips than there are now" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["1"], "'1' is no number of folds"),
        (["five"], "'five' is no number of folds"),
        (["speakers"], "add --group-column NAME"),
        (["2", "--", "--split-by", "group", "--group-column", "speaker"], "leave out --split-by group"),
        (["2", "--", "--eval-fraction", "0.5"], "leave out --eval-fraction 0.5"),
        (["2", "--", "--resume", "--output-dir", "x"], "leave out --output-dir, --resume"),
        (["2", "--", "--push-to-hub", "me/x"], "leave out --push-to-hub"),
        (["25"], "25 folds of 24 different clips: give 24 at most"),
        (
            ["4", "--", "--group-column", "speaker"],
            "4 folds of 3 groups in the column speaker: give 3",
        ),
        (["2", "--", "--final"], "--final is a flag of python -m audiocls.folds: it stands before --"),
        (["2", "--dataset", "x"], "--dataset x. Flags of train.py stand after --"),
        (["2", "--output-dir", "clips/anna"], "clips/anna holds a run of train.py"),
        (["speakers", "--", "--group-column", "one"], "--group-column one holds one group"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signal_handlers: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    table = table_of_speakers(tmp_path / "clips")
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{header},one", *(f"{row},1" for row in rows)]))
    dataset = str(table)
    write_run_folder(tmp_path / "clips" / "anna", ["no", "yes"])
    where = [] if "--" in arguments else ["--"]
    monkeypatch.setattr("sys.argv", ["audiocls.folds", *arguments, *where, *SHARED, "--dataset", dataset])
    with pytest.raises(UserError, match=said):
        folds.main()
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_test_set_is_no_part_of_the_folds_and_is_scored_by_each_model(tmp_path: Path) -> None:
    """With it, a class that one fold has alone, and a sound that two speakers have."""
    table = table_of_speakers(tmp_path / "clips")
    header, *rows = table.read_text().splitlines()
    write_class_folders(tmp_path / "clips", {"test": 4})
    (tmp_path / "clips" / "ben" / "01.wav").write_bytes((tmp_path / "clips" / "anna" / "01.wav").read_bytes())
    rows = [f"{row.replace('no,cleo', 'hm,cleo')},train" for row in rows]
    rows += [f"clips/test/{n:02d}.wav,{('no', 'yes')[n % 2]},dan,test" for n in range(4)]
    table.write_text("\n".join([f"{header},split", *rows]) + "\n")
    done = run_folds(tmp_path, "speakers", "--final", "--", *SHARED, "--group-column", "speaker")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "data: clips.csv: 28 rows: train 24 clips, test 4 clips" in unbroken(done.stdout)
    assert "2 clips sound like clips of other groups" in unbroken(done.stdout)
    assert "one fold has all clips of hm" in unbroken(done.stdout)
    assert "left out" not in done.stdout
    assert "the test set, mean over the folds' models: accuracy " in unbroken(done.stdout)
    folder = tmp_path / "runs" / "folds-speakers-clips-tiny"
    assert len(lines_of(folder / "predictions.jsonl")) == 24
    with (folder / "doubted.csv").open(newline="") as file:
        assert not [row for row in csv.DictReader(file) if row["label"] == "hm"]
    assert "which never heard it (but for 2 that sound like" in report(folder)
    card = (folder / "final" / "best" / "README.md").read_text()
    assert "By cross-validation, accuracy " in card
    assert "On the test set, 4 clips" in card
    final = json.loads((folder / "final" / "audit.json").read_text())
    assert final["parts"].keys() == {"train", "test"}
