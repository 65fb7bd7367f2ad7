"""Which recipe runs, what it sets, and how "auto" is settled."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Lab, write_clips
from data_helpers import run_script, unbroken

from audiocls.config import GUIDE_DATASET, TrainConfig
from audiocls.data.prepare import RunData
from audiocls.errors import UserError
from audiocls.flags import parse_train
from audiocls.log.estimate import TimeEstimate, duration
from audiocls.log.phases import StepFacts
from audiocls.log.summary import say_start
from audiocls.model.loading import open_backbone
from audiocls.recipes import RECIPES
from audiocls.training.rules import RULES, settle

# Which one runs


def test_the_names_of_the_flag_are_those_of_the_recipes() -> None:
    assert TrainConfig.__dataclass_fields__["recipe"].metadata["choices"] == tuple(RECIPES)


@pytest.mark.parametrize("flags", [[], ["--dataset", GUIDE_DATASET], ["--lr-scheduler", "linear"]])
def test_the_guides_data_set_has_the_guides_settings(flags: list[str]) -> None:
    assert parse_train(flags) == TrainConfig()
    assert parse_train(flags).recipe == "guide"


def test_any_other_data_set_has_those_of_standard(tmp_path: Path) -> None:
    config = parse_train(["--dataset", "clips"])
    assert config == TrainConfig(dataset="clips", recipe="standard", **RECIPES["standard"].values)
    (tmp_path / "a.toml").write_text('dataset = "clips"\nbatch_size = 5\n')
    from_file = parse_train(["--config", str(tmp_path / "a.toml")])
    assert from_file == dataclasses.replace(config, batch_size=5)
    assert parse_train(["--dataset", "clips", "--recipe", "guide"]) == TrainConfig(dataset="clips")
    assert parse_train(["--dataset", GUIDE_DATASET, "--recipe", "standard"]).recipe == "standard"


def test_the_guides_recipe_is_the_defaults() -> None:
    for name, setting in RECIPES["guide"].settings.items():
        assert setting.value == getattr(TrainConfig(), name)


def test_recipe_alone_lists_all_of_them_with_every_setting_and_where_it_comes_from() -> None:
    done = run_script("train.py", "--recipe")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for name, recipe in RECIPES.items():
        assert any(line.startswith(f"{name}: ") for line in lines)
        for setting, (_, why) in recipe.settings.items():
            assert why, f"{name}: {setting}"
            flag = setting.replace("_", "-")
            assert any(f"--{flag}" in line or f"--no-{flag}" in line for line in lines)
    assert max(map(len, lines)) <= 120


# What "auto" becomes


def settled(num_clips: int, run_data: Callable[..., RunData], **settings: Any) -> TrainConfig:
    data = run_data(8)
    train = dataclasses.replace(data.train, rows=np.zeros(num_clips, int), labels=np.zeros(num_clips, int))
    model = settings.pop("model", "pretrained")
    config = TrainConfig(**RECIPES["standard"].values | settings)
    backbone = dataclasses.replace(open_backbone("tiny"), name=model)
    return settle(config, dataclasses.replace(data, train=train), backbone)


@pytest.mark.parametrize(
    ("num_clips", "settings", "expected"),
    [  # clips, what was typed, (passes, steps between evaluations)
        (450, {}, (18, 52)),  # 57 steps a pass: 1,026 of them
        (48, {}, (167, 51)),  # at least 1,000 steps
        (4, {"batch_size": 4}, (1_000, 50)),
        (2_700, {}, (5, 85)),  # five passes
        (10_000, {}, (4, 250)),  # at most 6,000 steps
        (100_000, {}, (1, 625)),  # but one pass
        (1_000, {"epochs": 3}, (3, 19)),
        (2_700, {"model": "tiny", "batch_size": 32}, (20, 85)),  # random weights: 20 passes
        (450, {"max_steps": 100}, (18, 5)),
        (450, {"max_steps": 3}, (18, 1)),
        (450, {"freeze": "encoder"}, (18, 206)),
        (450, {"eval_every": "epoch"}, (18, "epoch")),
        (450, {"batch_size": 16, "gradient_accumulation_steps": 2}, (67, 51)),
    ],
)
def test_passes_and_evaluations_follow_from_the_clips(
    num_clips: int,
    settings: dict[str, Any],
    expected: tuple,
    run_data: Callable[..., RunData],
) -> None:
    config = settled(num_clips, run_data, **settings)
    assert (config.epochs, config.eval_every) == expected
    assert not [name for name in RULES if getattr(config, name) == "auto"]


@pytest.mark.parametrize(
    ("name", "hidden_size", "expected"), [("tiny", 128, 3e-3), ("base", 768, 1e-4), ("large", 1_024, 3e-5)]
)
def test_the_learning_rate_follows_from_the_model(
    name: str, hidden_size: int, expected: float, run_data: Callable[..., RunData]
) -> None:
    tiny = open_backbone("tiny")
    resized = dataclasses.replace(tiny.config, hidden_size=hidden_size)
    backbone = dataclasses.replace(tiny, name=name, config=resized)
    config = TrainConfig(learning_rate="auto")
    assert RULES["learning_rate"](config, run_data(8), backbone) == expected


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        ("tiny", {}, {"freeze": "nothing", "learning_rate": 3e-3}),
        ("pretrained", {}, {"freeze": "feature-encoder", "learning_rate": 1e-4}),
        ("pretrained", {"freeze": "encoder"}, {"freeze": "encoder", "learning_rate": 1e-2}),
        (
            "pretrained",
            {"freeze": "nothing", "learning_rate": 5e-5},
            {"freeze": "nothing", "learning_rate": 5e-5},
        ),
    ],
)
def test_what_is_frozen_follows_from_the_model(
    model: str, settings: dict, expected: dict, run_data: Callable[..., RunData]
) -> None:
    backbone = dataclasses.replace(open_backbone("tiny"), name=model)
    config = settle(TrainConfig(**RECIPES["standard"].values | settings), run_data(8), backbone)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(("sizes", "expected"), [((50, 5), "yes"), ((49, 5), "no"), ((7, 7), "no")])
def test_classes_of_very_different_sizes_are_drawn_alike(
    sizes: tuple[int, int], expected: str, run_data: Callable[..., RunData]
) -> None:
    data = run_data(8)
    train = dataclasses.replace(data.train, labels=np.repeat([0, 2], sizes))
    config = TrainConfig(balance_classes="auto")
    assert (
        RULES["balance_classes"](config, dataclasses.replace(data, train=train), open_backbone("tiny"))
        == expected
    )


def test_nothing_is_augmented_where_a_frozen_part_sees_each_clip_once() -> None:
    for flags in (["--freeze", "encoder"], ["--freeze-feature-encoder", "--cache-features"]):
        assert parse_train(["--dataset", "clips", *flags]).augment is None
    with pytest.raises(UserError, match="--augment none"):
        parse_train(["--dataset", "clips", "--freeze", "encoder", "--augment", "speed"])


def test_a_batch_size_that_is_found_by_trying_leaves_the_steps_as_they_are() -> None:
    assert parse_train(["--dataset", "clips", "--batch-size", "auto"]).clips_per_step == 8
    assert parse_train(["--batch-size", "auto"]).clips_per_step == 128
    typed = parse_train(["--dataset", "clips", "--batch-size", "auto", "--global-batch-size", "64"])
    assert typed.clips_per_step == 64


def test_a_runs_own_settings_leave_no_room_for_another_recipe(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    config = parse_train(["--dataset", "clips"])
    file.write_text(json.dumps({"config": dataclasses.asdict(config)}))
    assert parse_train(["--config", str(file)]) == config
    with pytest.raises(
        UserError, match=r"all settings of a run of --recipe standard: leave out --recipe frozen"
    ):
        parse_train(["--config", str(file), "--recipe", "frozen"])


# What is said


@pytest.mark.slow
def test_ones_own_clips_are_trained_on_by_standard_and_the_lines_say_so(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", [1_600] * 30)
    few = ("--model", "tiny", "--max-steps", "4", "--device", "cpu")
    done = run_script("train.py", "--dataset", "clips", *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "recipe standard sets --max-seconds 15.0 " in unbroken(done.stdout)
    assert "4 steps: 1.333 passes of 24 clips, 8 at a time" in unbroken(done.stdout)
    run = json.loads((tmp_path / "runs/clips-tiny/run.json").read_text())
    assert (run["config"]["recipe"], run["config"]["learning_rate"]) == ("standard", 3e-3)
    on = run_script("train.py", "--dataset", "clips", *few[:2], "--max-steps", "6", "--resume", cwd=tmp_path)
    assert on.returncode == 0, on.stderr
    other = ("--dataset", "clips", *few, "--recipe", "guide", "--output-dir", "runs/clips-tiny", "--resume")
    refused = run_script("train.py", *other, cwd=tmp_path)
    assert refused.returncode == 2
    assert "it began with --recipe standard" in refused.stderr


def test_that_the_guides_settings_end_at_chance_is_said_of_its_own_data_alone(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    data, loaded = lab.data(8), lab.build()
    for config, is_said in (
        (TrainConfig(), True),
        (TrainConfig(epochs=40), False),
        (TrainConfig(dataset="clips"), False),
    ):
        say_start(config, data, loaded, torch.device("cpu"), lab.folder)
        assert ("end at chance" in capsys.readouterr().out) is is_said


@pytest.mark.slow
def test_with_everything_on_a_resumed_run_is_bit_identical_whatever_the_workers(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", [1_600] * 24 + [2_400] * 20)
    flags = (
        *("--dataset", "clips", "--recipe", "scratch", "--balance-classes", "yes", "--output-dir", "run"),
        *("--max-steps", "6", "--checkpoint-every", "3", "--eval-every", "6", "--device", "cpu"),
    )
    done = run_script("train.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last = tmp_path / "run/checkpoints/step-00000006"
    weights = (last / "model.safetensors").read_bytes()
    shutil.rmtree(last)
    on = run_script("train.py", *flags, "--resume", "--num-workers", "2", cwd=tmp_path)
    assert on.returncode == 0, on.stderr
    assert "going on after step 3" in unbroken(on.stdout)
    assert (last / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_frozen_trains_a_head_from_features_and_what_it_saves_classifies(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", [1_600] * 60)
    few = ("--dataset", "clips", "--model", "tiny", "--device", "cpu", "--output-dir", "run")
    done = run_script("train.py", *few, "--recipe", "frozen", "--max-steps", "30", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--freeze encoder" in unbroken(done.stdout)
    clip = next((tmp_path / "clips").rglob("*.wav"))
    answer = run_script("infer.py", "run", str(clip), "--device", "cpu", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr


def facts(num_clips: int, seconds: float) -> StepFacts:
    return StepFacts(1.0, num_clips, 1.0, 0.0, {"forward": seconds})


def test_the_estimate_counts_steps_and_evaluations_after_the_first_slow_steps() -> None:
    estimate = TimeEstimate(eval_clips=240, steps_between_evaluations=10, on_cpu=True)
    lines = [estimate(facts(8, 9.0), 1_000 - step) for step in (1, 2)]  # slow, not counted
    lines += [estimate(facts(8, 0.2), 1_000 - step) for step in range(3, 12)]
    said = [line for line in lines if line]
    # 993 steps of 0.2 s; an evaluation is 240 clips of a third of 0.025 s each, every 10 steps: 0.2 s a step
    assert said == ["about 7 min to go: 993 steps of 0.2 s, 100 evaluations"]


def test_an_hour_on_a_cpu_names_what_is_quicker() -> None:
    for on_cpu in (True, False):
        estimate = TimeEstimate(0, 10, on_cpu)
        (line,) = [line for step in range(8) if (line := estimate(facts(8, 4.0), 1_000 - step))]
        assert line.startswith("about 66 min to go: 994 steps of 4 s, 100 evaluations")
        assert ("--recipe frozen" in line) is on_cpu


def test_a_run_of_a_few_steps_needs_no_estimate() -> None:
    estimate = TimeEstimate(100, 1, True)
    assert not [line for step in range(10) if (line := estimate(facts(8, 1.0), 10 - step))]


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (89, "89 s"), (90, "2 min"), (3_600, "60 min"), (12_600, "3.5 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
