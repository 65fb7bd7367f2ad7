"""Comparing settings: what is found between runs whose predictions are known, and the command itself."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import assert_one_line_error, run_script, write_class_folders, write_table
from report_helpers import HOSTILE, write_run_folder
from sklearn.metrics import accuracy_score, f1_score, log_loss

from audiocls.code_hash import code_hash
from audiocls.compare import config_of, main, trial_of
from audiocls.config import TrainConfig
from audiocls.errors import UserError
from audiocls.flags import parse_compare
from audiocls.reporting.comparison import compare
from audiocls.reporting.comparison_page import in_lines, page
from audiocls.reporting.results import begun_with
from audiocls.reporting.runs import Run, Setting
from audiocls.signals import StopSignal
from audiocls.trials import Failed, Trial, run_trials

LABELS = ["cat", "dog", "owl"]


def setting(folder: Path, name: str, seeds: tuple[int, ...] = (1, 2, 3), **about: Any) -> Setting:
    """Runs of one setting; the clips' true labels are drawn with `same`, so that all runs judge the same."""
    runs = []
    for seed in seeds:
        path = write_run_folder(folder / f"{name}-{seed}", LABELS, seed=seed, **about)
        set_true_labels(path)
        edit_run(path, seed=seed)
        runs.append(Run(path))
    return Setting(name, f"--setting {name}", runs)


def set_true_labels(folder: Path) -> None:
    lines = read(folder)
    for number, line in enumerate(lines):
        line["label"] = LABELS[number % 3]
    write(folder, lines)


def read(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def write(folder: Path, lines: list[dict]) -> None:
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit_run(folder: Path, **config: Any) -> None:
    run = json.loads((folder / "run.json").read_text())
    run["config"] |= config
    (folder / "run.json").write_text(json.dumps(run))


def make_better(run: Run, wrong: int = 0) -> None:
    """All clips right but the first few."""
    lines = read(run.folder)
    for number, line in enumerate(lines):
        right = LABELS.index(line["label"])
        line["probabilities"] = [0.1] * 3
        line["probabilities"][(right + (number < wrong)) % 3] = 0.8
    write(run.folder, lines)


def test_a_setting_does_not_differ_from_itself(tmp_path: Path) -> None:
    one = setting(tmp_path, "A")
    found = compare([one, Setting("B", one.title, one.runs)])["differences"][0]
    assert all((d["mean"], d["low"], d["high"]) == (0, 0, 0) for d in found["scores"].values())
    assert all(test["p"] == 1 for test in found["mcnemar"])
    assert found["verdict"].startswith("no clear difference in accuracy between B and A: +0.0 points")
    assert found["num_unlike"] == 0


def test_one_setting_alone_tells_how_far_its_seeds_vary(tmp_path: Path) -> None:
    one = compare([setting(tmp_path, "A")])
    lines = in_lines(one)
    assert lines[0] == "A: --setting A (3 runs)" and lines[2].startswith("A  ") and " ±" in lines[2]
    assert not any("McNemar" in line or " - " in line for line in lines)
    assert 'id="scores"' in page(one, tmp_path) and 'id="tests"' not in page(one, tmp_path)


def test_scores_are_scikit_learns_and_means_are_over_runs(tmp_path: Path) -> None:
    one = setting(tmp_path, "A", (1, 2))
    found = compare([one, setting(tmp_path, "B", (4, 5))])["settings"][0]
    for run, scored in zip(one.runs, found["runs"], strict=True):
        lines = read(run.folder)
        true = [LABELS.index(line["label"]) for line in lines]
        probabilities = np.array([line["probabilities"] for line in lines])
        predicted = probabilities.argmax(axis=1)
        assert scored["scores"]["accuracy"] == pytest.approx(accuracy_score(true, predicted))
        assert scored["scores"]["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))
        rows = probabilities / probabilities.sum(axis=1, keepdims=True)  # they are rounded to six digits
        assert scored["scores"]["loss"] == pytest.approx(log_loss(true, rows), abs=1e-5)
    accuracies = [run["scores"]["accuracy"] for run in found["runs"]]
    assert found["mean"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert found["deviation"]["accuracy"] == pytest.approx(np.std(accuracies, ddof=1))


def test_a_better_setting_is_called_better_and_a_worse_one_worse(tmp_path: Path) -> None:
    poor, good = setting(tmp_path, "A"), setting(tmp_path, "B", (7, 8, 9))
    for run in good.runs:
        make_better(run, wrong=2)
    assert "B is better than A in accuracy: +" in compare([poor, good])["differences"][0]["verdict"]
    assert "A is worse than B in accuracy: -" in compare([good, poor])["differences"][0]["verdict"]
    for run in (*poor.runs, *good.runs):
        edit_run(run.folder, best_metric="loss")
    fresh = [Setting(one.name, one.title, [Run(run.folder) for run in one.runs]) for one in (poor, good)]
    assert "B is better than A in loss: -" in compare(fresh)["differences"][0]["verdict"]


def test_clips_are_matched_by_name_and_what_cannot_be_is_said(tmp_path: Path) -> None:
    first, second = setting(tmp_path, "A", (1,)), setting(tmp_path, "B", (1,))
    lines = read(second.runs[0].folder)
    lines[0]["path"] = "another.wav"
    lines[1]["label"] = "owl" if lines[1]["label"] != "owl" else "cat"
    write(second.runs[0].folder, lines[::-1])  # in another order
    comparison = compare([first, second])
    found = comparison["differences"][0]
    assert found["clips"] == 58
    assert found["scores"]["accuracy"]["mean"] == 0
    rows = "(the scores of A and B count them)"
    assert f"B - A leaves out clips that only one of a pair judged: 2 {rows}" in comparison["notes"]
    assert f"B - A leaves out clips that bear another label in B: 1 {rows}" in comparison["notes"]


def test_of_one_pair_of_runs_it_says_that_more_seeds_would_tell(tmp_path: Path) -> None:
    found = compare([setting(tmp_path, "A", (1,)), setting(tmp_path, "B", (2,))])["differences"][0]
    assert "other seeds would tell" in found["verdict"]


def test_clips_of_one_path_are_matched_by_their_labels(tmp_path: Path) -> None:
    first, second = (setting(tmp_path, name, (1,), paths=["one.wav"] * 60) for name in "AB")
    lines = read(second.runs[0].folder)
    write(second.runs[0].folder, lines[1:][::-1])
    comparison = compare([first, second])
    assert comparison["differences"][0]["clips"] == 59
    assert any("that only one of a pair judged: 1 " in note for note in comparison["notes"])
    assert not any("another label" in note for note in comparison["notes"])


@pytest.mark.parametrize(("num_better", "verdict"), [(4, "no clear difference"), (7, "B is better than A")])
def test_a_few_clips_alone_make_no_difference_clear(tmp_path: Path, num_better: int, verdict: str) -> None:
    """McNemar's p of 4 clips to none is 0.125, of 7 to none 0.016; the bootstrap alone calls both better."""
    for seeds in ((1,), (1, 2, 3)):
        settings = [setting(tmp_path / str(len(seeds)), name, seeds) for name in "AB"]
        for one, wrong in zip(settings, (num_better, 0), strict=True):
            for run in one.runs:
                make_better(run, wrong)
        assert compare(settings)["differences"][0]["verdict"].startswith(verdict)


def test_of_a_handful_of_clips_nothing_is_said_to_be_clear(tmp_path: Path) -> None:
    settings = [setting(tmp_path, name, num_clips=10) for name in "AB"]
    for one, wrong in zip(settings, (10, 0), strict=True):
        for run in one.runs:
            make_better(run, wrong)
    verdict = compare(settings)["differences"][0]["verdict"]
    assert verdict.startswith("no clear difference")
    assert verdict.endswith("over 10 clips and 3 pairs of runs: too few to tell")


def test_a_run_is_not_judged_by_what_it_was_trained_on(tmp_path: Path) -> None:
    settings = [setting(tmp_path, name, split="evaluation") for name in "AB"]
    edit_run(settings[1].runs[2].folder, split_by="nothing")
    with pytest.raises(UserError, match="B-3 was evaluated on what it was trained on: give all a test set"):
        compare(settings)
    tested = [setting(tmp_path / "tested", name) for name in "AB"]
    edit_run(tested[1].runs[2].folder, split_by="nothing")
    assert compare(tested)["split"] == "test"


def test_what_makes_runs_hard_to_compare_is_noted(tmp_path: Path) -> None:
    first, second = setting(tmp_path, "A"), setting(tmp_path, "B", (7, 8, 9))
    path = second.runs[1].folder / "run.json"
    run = json.loads(path.read_text())
    run["clips"]["train"] -= 5
    run["device"] = "a GPU"
    path.write_text(json.dumps(run))
    notes = compare([first, second])["notes"]
    assert "the runs of B had 305 and 310 clips: the data has changed between them" in notes
    assert "the runs are not all of one device" in notes
    assert "B is set as A is" in notes
    for one in second.runs:
        run = json.loads((one.folder / "run.json").read_text())
        run["clips"]["train"] = 100
        (one.folder / "run.json").write_text(json.dumps(run))
    fresh = [Setting(one.name, one.title, [Run(run.folder) for run in one.runs]) for one in (first, second)]
    assert "trained on 200 clips (A), 100 clips (B)" in compare(fresh)["notes"]


def test_runs_without_clips_in_common_cannot_be_compared(tmp_path: Path) -> None:
    first = setting(tmp_path, "A", (1,))
    others = setting(tmp_path, "B", (1,), paths=[f"other/{n}.wav" for n in range(60)])
    with pytest.raises(UserError, match="no clips in common"):
        compare([first, others])
    with pytest.raises(UserError, match="no predictions of a split in common"):
        compare([first, setting(tmp_path, "C", (1,), split="evaluation")])


def test_by_evaluation_clips_it_says_that_they_flatter(tmp_path: Path) -> None:
    comparison = compare([setting(tmp_path, name, split="evaluation") for name in "AB"])
    assert comparison["split"] == "evaluation"
    assert any("all scores flatter" in note for note in comparison["notes"])


def test_text_and_page_show_every_setting_and_no_name_acts(tmp_path: Path) -> None:
    settings = [setting(tmp_path, name, paths=[*HOSTILE, *(f"{n}.wav" for n in range(54))]) for name in "ABC"]
    settings[1].title = "<script>alert(1)</script>"
    comparison = json.loads(json.dumps(compare(settings)))  # what the JSON holds is all that is needed
    html, text = page(comparison, tmp_path), "\n".join(in_lines(comparison))
    assert "<script" not in html
    assert "{{" not in re.sub(r"\{\{ 7 \* 7 \}\}", "", html)
    for shown in (html, text):
        assert shown.count("B - A") >= 1
        assert "McNemar" in shown
    assert html.count("<svg") == 2
    tables = [line for line in text.splitlines() if re.match(r"[A-Z]( - A)?  ", line)]
    assert len(tables) == 5 and all(len(line) <= 100 for line in tables)


# The command


def test_settings_and_shared_flags_are_told_apart() -> None:
    config, shared = parse_compare(
        ["--recipe frozen", "--cut-window", "runs/x", "", "--seeds", "2", "--", "--dataset", "d", "--compile"]
    )
    assert [one.strip() for one in config.settings] == ["--recipe frozen", "--cut-window", "runs/x", ""]
    assert config.seeds == 2
    assert shared == ["--dataset", "d", "--compile"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Give the settings to compare"),
        (["--seeds", "0", "--lr 1", "--lr 2"], "--seeds is 0: 1 is the least"),
        (["--epochz 3", ""], "did you mean --epochs"),
        (["nowhere.toml", ""], "nowhere.toml is not there, and no flag of train.py."),
        (["frozen", ""], 'Is "--recipe frozen" meant?'),
        ([".", ""], ". is no run's folder, and no flag of train.py."),
        (["--output-dir x", ""], "compare makes several runs of train.py: leave out --output-dir"),
        (["--push-to-hub me/x", ""], "leave out --push-to-hub"),
        (["--dataset 'x", ""], "No closing quotation"),
        (["x" * 5_000, ""], "is not there"),
        (
            ["--recipe", "frozen", ""],
            'stands in quotes, as "--recipe VALUE"; what all have in common stands after',
        ),
        (["", "--lr 1", "--dataset", "x"], 'as "--dataset VALUE"'),
        (
            ["", "", "--", "--seeds", "2"],
            "--seeds is a flag of python -m audiocls.compare: it stands before --",
        ),
        (["--config a.toml", "", "--", "--config", "b.toml"], "--config stands after --, too"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signal_handlers: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["audiocls.compare", *arguments])
    with pytest.raises(UserError, match=re.escape(said)):
        main()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_missing_runs_are_made_and_those_that_are_there_are_not(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "clips", {"a": 8, "b": 8})
    shared = "--dataset clips --recipe scratch --max-steps 2 --device cpu".split()
    (tmp_path / "slow.toml").write_text("learning_rate = 1e-5\n")

    def compared(*settings: str, seeds: int = 1) -> str:
        command = ("-m", "audiocls.compare", *settings, "--seeds", str(seeds), "--", *shared)
        done = run_script(*command, cwd=tmp_path, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = compared("slow.toml", "--learning-rate 1e-2")
    assert "run 2 of 2: --learning-rate 1e-2, seed 42" in first
    assert "A: slow.toml (1 run)" in first
    folder = tmp_path / "runs" / "compare-clips"
    fast, slow = sorted(folder.glob("*/seed-*"))
    assert not list(folder.glob("*/*/checkpoints"))
    (page_data,) = folder.glob("slow-vs-learning-rate-1e-2-*.json")
    comparison = json.loads(page_data.read_text())
    assert comparison["flags"] == {"--learning-rate": ["1e-05", "0.01"]}
    assert comparison["settings"][0]["minutes"] == begun_with(slow)["seconds"] / 60
    again = compared("slow.toml", "--learning-rate 1e-2").splitlines()
    assert again == ["2 of 2 runs are there already", *first.splitlines()[-len(again) + 1 :]]
    # However the same settings are said, and with more seeds, what is there counts; so does a run's folder.
    more = compared(str(slow), "--learning-rate 0.01", seeds=2)
    assert "2 of 2 runs are there already" in more
    assert "run 2 of 2: --learning-rate 0.01, seed 43" in more
    assert [path.parent for path in sorted(folder.glob("*/seed-43"))] == [fast.parent, slow.parent]


def parsed(setting: str, *shared: str) -> TrainConfig:
    return config_of(setting, ["--dataset", "clips", "--device", "cpu", *shared])


def test_a_setting_wins_over_what_all_share_and_a_file_may_lie_below_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.toml").write_text('recipe = "scratch"\nmax_steps = 3\n')
    Path("a.toml").write_text("max_steps = 2\nbucket = false\nmax_seconds = 0.08\n")
    for shared in (["--config", "base.toml"], ["--recipe", "scratch", "--max-steps", "3"]):
        config = parsed("a.toml", *shared)
        assert (config.recipe, config.max_steps, config.bucket) == ("scratch", 2, False)
        assert parsed("--max-steps 1", *shared).max_steps == 1
        assert parsed("", *shared).max_steps == 3


def test_runs_are_the_same_by_what_comes_out_not_by_how_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(Path("doubted.csv"), ("path",), [["clips/a/00.wav"]])

    def folder(setting: str, seed: int = 0) -> Path:
        return trial_of(setting, parsed(setting), seed, tmp_path, {}).folder

    one = folder("--learning-rate 1e-2")
    assert one.name == "seed-42"
    for same in ("--learning-rate 0.01 --num-workers 1", "--recipe standard --learning-rate 0.01"):
        assert Trial("", one, parsed(same)).digest in one.parent.name
    made: dict[str, Path] = {}  # of two settings of one command, that are the same, there is one folder
    same = [trial_of(said, parsed(said), 0, tmp_path, made) for said in ("--lr-scheduler linear", "")]
    assert same[0].folder == same[1].folder
    one.mkdir(parents=True)
    assert folder("--learning-rate 0.010") == one
    Path("clips").mkdir()
    assert Trial("", one, parsed("")).digest == Trial("", one, parsed("--dataset ./clips/")).digest
    assert folder("--learning-rate 0.010", 1) == one.with_name("seed-43")
    assert folder("--learning-rate 0.02").parent != one.parent
    # An edited list of doubts makes other runs.
    before = folder("--drop doubted.csv")
    write_table(Path("doubted.csv"), ("path",), [["clips/a/00.wav"], ["clips/b/00.wav"]])
    assert folder("--drop doubted.csv").parent != before.parent


def test_runs_of_changed_code_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run_folder(tmp_path / "own", list("ab"), versions={"code": code_hash()})

    def trial(setting: str, seed: int = 0) -> Trial:
        return trial_of(setting, parsed("") if setting == "" else config_of(setting, []), seed, tmp_path, {})

    before = trial("")
    before.folder.mkdir(parents=True)
    (before.folder / "best").mkdir()
    begun = {"config": dataclasses.asdict(before.config), "versions": {"code": code_hash()}}
    (before.folder / "run.json").write_text(json.dumps(begun))
    before.check()
    assert trial("").folder == before.folder and trial("own", 1).folder.parent.parent == tmp_path

    monkeypatch.setattr("audiocls.trials.code_hash", lambda: "changed")
    monkeypatch.setattr("audiocls.compare.code_hash", lambda: "changed")
    assert trial("").folder.parent != before.folder.parent
    with pytest.raises(UserError, match="the code has changed"):
        before.check()
    trial("own").check()  # somebody's own run may be of any code, but its seeds cannot be made
    with pytest.raises(UserError, match="own was made by other code"):
        trial("own", 1)
    for seed in (42, 43):  # a comparison made both before
        write_run_folder(tmp_path / "earlier" / f"seed-{seed}", list("ab"), versions={"code": "before"})
    assert trial("earlier/seed-42", 1).folder == Path("earlier/seed-43")
    with pytest.raises(UserError, match="its seed 44"):
        trial("earlier/seed-42", 2)


def test_a_run_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_handlers: None
) -> None:
    run = setting(tmp_path, "A", (1,)).runs[0].folder
    monkeypatch.setattr("sys.argv", ["compare", str(run), str(run), "--output-dir", str(run)])
    with pytest.raises(UserError, match="A-1 holds a run: name another --output-dir"):
        main()


@pytest.mark.slow
def test_a_failed_run_ends_the_comparison_with_its_reason_and_exit_code(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "clips", {"a": 3, "b": 3})
    (tmp_path / "clips" / "b" / "02.wav").write_bytes(b"no sound")
    done = run_script(
        *("-m", "audiocls.compare", "", "--seed 7", "--seeds", "1", "--", "--dataset", "clips"),
        *("--model", "tiny", "--recipe", "scratch", "--max-steps", "1"),
        cwd=tmp_path,
    )
    assert_one_line_error(done, 3, "no flags, seed 42 failed: 1 of 6 clips cannot be used")


def test_runs_are_compared_whose_data_and_model_are_gone(tmp_path: Path) -> None:
    runs = [setting(tmp_path, name, (1,)).runs[0].folder for name in "AB"]
    done = run_script("-m", "audiocls.compare", *map(str, runs), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "runs" / "compare-clips").glob("A-1-vs-B-1-*.html")
    html = path.read_text()
    assert '<a href="./../../A-1/report.html">' in html


@pytest.mark.slow
def test_a_run_that_is_killed_says_so_and_a_failed_one_may_be_set_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_handlers: None
) -> None:
    stop, folder = StopSignal(), tmp_path / "run"
    program = tmp_path / "train.py"
    program.write_text("import os, sys; print('300 steps'); sys.stdout.flush(); os.kill(os.getpid(), 9)")
    monkeypatch.setattr("audiocls.trials.TRAIN", program)
    with pytest.raises(Failed, match="it was killed by signal 9, as where memory runs out") as failed:
        run_trials([Trial("one", folder, TrainConfig(batch_size=8))], stop)
    assert failed.value.exit_code == 5
    program.write_text("import sys; sys.exit('error: too large.')")
    with pytest.raises(Failed, match="one failed: too large"):  # not refused: nothing was computed yet
        run_trials([Trial("one", folder, TrainConfig(batch_size=4))], stop)
    assert json.loads((folder / "trial.json").read_text())["config"]["batch_size"] == 4
