"""Flags, recipes and config files: what wins, what is refused, and that --help costs nothing."""

import dataclasses
import json
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from data_helpers import ROOT, assert_one_line_error, run_script

from audiocls.config import TrainConfig, seconds_of
from audiocls.errors import InputOutputFailed, UserError
from audiocls.flags import parse_infer, parse_train
from audiocls.recipes import RECIPES

HEAVY = {"torch", "transformers", "datasets", "torchaudio", "soundfile", "tqdm", "huggingface_hub"}

# The guide: https://huggingface.co/docs/transformers/tasks/audio_classification
GUIDE: dict[str, Any] = {
    "dataset": "PolyAI/minds14",
    "train_split": "train",
    "eval_fraction": 0.2,
    "split_by": "random",
    "max_seconds": 1.0,
    "model": "facebook/wav2vec2-base",
    "freeze": "nothing",
    "learning_rate": 3e-5,
    "batch_size": 32,
    "gradient_accumulation_steps": 4,
    "epochs": 10,
    "warmup_ratio": 0.1,
    "lr_scheduler": "linear",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "label_smoothing": 0.0,
    "log_every": 10,
    "eval_every": "epoch",
    "best_metric": "accuracy",
    "device": "auto",
    "precision": "auto",
    "seed": 42,
} | dict.fromkeys(("audio_column", "label_column", "eval_batch_size", "max_steps"))

# Each flag of the contract, and a value that is not the default.
TRAIN_FLAGS = """
--dataset demo --dataset-config de-DE --dataset-revision v2 --train-split training --eval-split dev
--eval-dataset other --eval-fraction 0.5 --test-split held-out --test-dataset third --split-by stratified
--audio-column file --label-column lang_id --max-seconds none --model tiny --model-revision v2
--learning-rate 1e-4 --batch-size 8 --eval-batch-size 16 --gradient-accumulation-steps 1 --epochs 3
--max-steps 7 --warmup-ratio 0 --lr-scheduler cosine --weight-decay 0.01 --max-grad-norm 0
--label-smoothing 0.1 --log-every 1 --eval-every 50 --checkpoint-every 10m --best-metric macro_f1
--save-total-limit 3 --device cuda:1 --precision bf16 --num-workers 2 --seed 7 --output-dir run
"""
INFER_FLAGS = """
--top-k 1 --batch-size 4 --max-seconds 2.5 --device cpu --precision auto --format csv --output scores.csv
"""


def pairs(flags: str) -> list[list[str]]:
    """Each flag with its value as typed."""
    return [list(pair) for pair in zip(flags.split()[::2], flags.split()[1::2], strict=True)]


def meant(typed: str) -> Any:
    try:
        return json.loads(typed)
    except ValueError:
        return None if typed == "none" else typed


def field_of(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def refusal(*flags: str) -> str:
    with pytest.raises(UserError) as refused:
        parse_train(list(flags))
    assert refused.value.exit_code == 2
    return str(refused.value)


# What the flags are


def test_without_flags_everything_is_as_the_guide_has_it() -> None:
    parsed = parse_train([])
    config = dataclasses.asdict(parsed) | {"batch_size": parsed.micro_batch_size}
    assert {name: config[name] for name in GUIDE} == GUIDE


@pytest.mark.parametrize(("flag", "typed"), pairs(TRAIN_FLAGS))
def test_every_flag_of_train_sets_its_field_and_no_other(flag: str, typed: str) -> None:
    field, value = field_of(flag), meant(typed)
    assert getattr(TrainConfig(), field) != value
    config = parse_train([flag, typed, "--recipe", "guide"])
    assert config == dataclasses.replace(TrainConfig(), **{field: value})
    assert isinstance(getattr(config, field), str) == isinstance(value, str)


def test_groups_divide_by_their_column() -> None:
    config = parse_train(["--split-by", "group", "--group-column", "speaker"])
    assert (config.split_by, config.group_column) == ("group", "speaker")


@pytest.mark.parametrize(("flag", "typed"), pairs(INFER_FLAGS))
def test_every_flag_of_infer_sets_its_field(flag: str, typed: str) -> None:
    config, field = parse_infer(["model", "a.wav", "folder", flag, typed]), field_of(flag)
    assert (config.model, config.inputs) == ("model", ("a.wav", "folder"))
    assert getattr(config, field) == meant(typed) != getattr(parse_infer(["model", "a.wav"]), field)


@pytest.mark.parametrize("flag", ["--profile", "--overwrite", "--resume"])
def test_switches_are_off_until_given_and_can_be_taken_back(flag: str) -> None:
    assert getattr(parse_train([]), field_of(flag)) is False
    assert getattr(parse_train([flag]), field_of(flag)) is True
    assert getattr(parse_train([flag, flag.replace("--", "--no-")]), field_of(flag)) is False


def test_demo_is_short_for_its_recipe() -> None:
    demo = TrainConfig(recipe="demo", **RECIPES["demo"].values)
    assert parse_train(["--demo"]) == parse_train(["--recipe", "demo"]) == demo
    assert (parse_train(["--demo"]).dataset, parse_train(["--demo"]).model) == ("demo", "tiny")
    assert "--recipe guide" in refusal("--demo", "--recipe", "guide")


# Which layer wins


def write_config(path: Path, settings: dict[str, Any]) -> str:
    if path.suffix == ".toml":
        path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    else:
        path.write_text(json.dumps(settings))
    return str(path)


@pytest.mark.parametrize("name", ["settings.toml", "settings.json"])
def test_a_flag_beats_the_file_beats_the_recipe_beats_the_default(tmp_path: Path, name: str) -> None:
    file = write_config(tmp_path / name, {"batch_size": 5, "epochs": 6})
    config = parse_train(["--config", file, "--demo", "--epochs", "7"])
    assert config.epochs == 7  # flag
    assert config.batch_size == 5  # file
    assert config.gradient_accumulation_steps == RECIPES["demo"].values["gradient_accumulation_steps"]
    assert config.weight_decay == TrainConfig().weight_decay


def test_a_flag_that_repeats_the_default_still_beats_the_file(tmp_path: Path) -> None:
    file = write_config(tmp_path / "settings.toml", {"epochs": 6, "profile": True})
    config = parse_train(["--config", file, "--epochs", "10", "--no-profile"])
    assert (config.epochs, config.profile) == (10, False)


def test_a_file_may_name_its_recipe_and_spell_settings_as_flags(tmp_path: Path) -> None:
    file = write_config(tmp_path / "settings.toml", {"recipe": "demo", "batch-size": 5})
    assert parse_train(["--config", file]) == dataclasses.replace(parse_train(["--demo"]), batch_size=5)
    assert parse_train(["--config", file, "--recipe", "guide"]) == TrainConfig(batch_size=5)


def test_a_run_json_repeats_its_run_but_not_where_it_was_written(tmp_path: Path) -> None:
    ran = TrainConfig(epochs=3, max_seconds=None, output_dir="there", overwrite=True, eval_every=5)
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"config": dataclasses.asdict(ran), "versions": {"torch": "2"}}))
    assert parse_train(["--config", str(path)]) == TrainConfig(epochs=3, max_seconds=None, eval_every=5)
    assert parse_train(["--config", str(path), "--output-dir", "x"]).output_dir == "x"


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"epochs": 6}', encoding="utf-8-sig")
    assert parse_train(["--config", str(tmp_path / "settings.json")]).epochs == 6


# What is refused


# What is typed, after what is said of it.
BAD_VALUES = {
    "1 is the least": [
        *("--batch-size 0", "--epochs -1", "--max-steps 0", "--eval-every 0", "--checkpoint-every 0"),
    ],
    "0 is the least": ["--num-workers -1", "--seed -1"],
    "is the most": [f"--seed {2**64}"],
    "2 is the least": ["--save-total-limit 1"],
    "1 is the most": ["--warmup-ratio 2"],
    "86400 is the most": ["--max-seconds=1e305"],
    "0.9 is the most": ["--eval-fraction 0.95"],
    "above 0": ["--learning-rate 0", "--max-seconds -1", "--eval-fraction 0"],
    "finite": ["--learning-rate nan", "--learning-rate=-inf", "--max-seconds=1e999", "--weight-decay inf"],
    "'auto'": ["--batch-size many"],
    "a whole number": [
        "--eval-batch-size many",
        "--eval-batch-size ''",
        "--epochs 1.5",
        "--batch-size many",
        "--eval-every often",
    ],
    "number of steps": ["--checkpoint-every often"],
    "'epoch'": ["--eval-every often"],
    "10m": ["--checkpoint-every often", "--checkpoint-every 0m"],
    "linear, cosine, constant": ["--lr-scheduler step"],
    "accuracy, macro_f1, balanced_accuracy, loss": ["--best-metric f1"],
    "auto, fp32, tf32, bf16, fp16": ["--precision fp8"],
    "random, stratified, group": ["--split-by speaker"],
    "auto, cpu, cuda, cuda:N or mps": ["--device gpu", "--device cuda:"],
    "guide": ["--recipe best"],
    "demo": ["--recipe best"],
    "--group-column": ["--split-by group"],
    "--split-by stratified": ["--eval-split dev --split-by stratified"],
    "--help": [
        "--learning-rate",
        "--lern-rate 1",
        "--epoch 5",
        "''",
    ],  # no abbreviations: a new flag would change them
}


@pytest.mark.parametrize(
    ("says", "typed"), [(says, typed) for says, lines in BAD_VALUES.items() for typed in lines]
)
def test_a_bad_value_is_named_with_what_is_allowed(says: str, typed: str) -> None:
    flags = shlex.split(typed)
    message = refusal(*flags)
    for words in (says, *(flag.partition("=")[0] for flag in flags if flag.startswith("--"))):
        assert words in message
    if says != "--help":
        assert flags[-1].partition("=")[2] or flags[-1] in message
    assert "\n" not in message


def test_all_problems_are_told_in_one_message() -> None:
    message = refusal(
        *("--learning-rate", "nan", "--batch-size", "0", "--epochs", "1.5", "--lr-scheduler", "step")
    )
    for flag in ("--learning-rate", "--batch-size", "--epochs", "--lr-scheduler"):
        assert flag in message


def test_what_does_not_fit_together_is_told_beside_the_bad_values() -> None:
    message = refusal(*("--batch-size", "0", "--device", "gpu", "--resume", "--overwrite"))
    for flag in ("--batch-size", "--device", "--resume", "--overwrite"):
        assert flag in message


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.toml", "learning_rate = nan", ("--learning-rate", "finite")),
        ("a.json", '{"learning_rate": NaN}', ("--learning-rate", "finite")),
        ("a.json", '{"learning_rate": Infinity}', ("--learning-rate", "finite")),
        ("a.toml", "epochs = true", ("--epochs", "a whole number")),
        ("a.toml", "epochs = 2.0", ("--epochs", "a whole number")),
        ("a.json", '{"resume": 1}', ("--resume", "true or false")),
        ("a.json", '{"dataset": ["a", "b"]}', ("--dataset", "a name")),
        ("a.json", '{"epochs": null}', ("--epochs", "a whole number")),
        ("a.toml", "lerning_rate = 1.0\nepoch = 3", ("'lerning_rate'", "'epoch'")),
        ("a.toml", 'recipe = "best"', ("'best'", "guide", "demo")),
        ("a.toml", "epochs = ", ("a.toml", "toml")),
        ("a.json", "{", ("a.json", "json")),
        ("a.json", "[1]", ("a.json", "names and values")),
        ("a.json", '{"epochs": 0, "batch_size": 0}', ("--epochs", "--batch-size")),
    ],
)
def test_a_config_file_is_checked_as_flags_are(
    tmp_path: Path, name: str, text: str, says: tuple[str, ...]
) -> None:
    (tmp_path / name).write_text(text)
    message = refusal("--config", str(tmp_path / name))
    for words in says:
        assert words in message


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xff"])
def test_a_config_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputOutputFailed, match=r"--config .*settings\.toml cannot be read"):
        parse_train(["--config", str(path)])


# What a process does before anything heavy is imported


@pytest.mark.parametrize("script", ["train.py", "infer.py"])
def test_help_answers_within_a_second_and_imports_nothing_heavy(script: str) -> None:
    seconds = []
    for _ in range(3):  # the fastest of three: the machine may be busy, --help may not
        began = time.perf_counter()
        finished = run_script("-X", "importtime", str(ROOT / script), "--help")
        seconds.append(time.perf_counter() - began)
    assert finished.returncode == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in finished.stderr.splitlines()}
    assert "argparse" in imported  # the list is one of modules
    assert not imported & HEAVY
    assert min(seconds) < 1
    flags = f"{TRAIN_FLAGS} --group-column speaker" if script == "train.py" else INFER_FLAGS
    assert all(f"{flag} " in finished.stdout for flag, _ in pairs(flags))
    assert "guide: 3e-05)" in finished.stdout or script == "infer.py"


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, audiocls, audiocls.config; print(*set(sys.modules) & {HEAVY})"
    finished = run_script("-c", code)
    assert (finished.returncode, finished.stdout.strip(), finished.stderr) == (0, "", "")


@pytest.mark.parametrize("script", ["train.py", "infer.py"])
def test_an_unknown_flag_ends_with_2_and_one_line(script: str) -> None:
    arguments = ["model", "a.wav"] if script == "infer.py" else []
    finished = run_script(script, *arguments, "--nope")
    assert_one_line_error(finished, 2, "--nope", f"{script} --help")
    assert finished.stdout == ""


def test_many_bad_values_are_still_one_line(tmp_path: Path) -> None:
    finished = run_script("train.py", "--dataset", "a\nb", "--batch-size", "x\ny", "--epochs", "0")
    assert_one_line_error(finished, 2, "--batch-size", "--epochs")


def test_a_missing_config_file_ends_with_4() -> None:
    assert_one_line_error(run_script("train.py", "--config", "nowhere.toml"), 4, "nowhere.toml")


# Times


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("30s", 30), ("10m", 600), ("1h", 3600), ("1.5H", 5400), ("m", 0), ("10", 0), ("-1m", 0), ("1m30s", 0)],
)
def test_a_time_is_a_number_and_its_unit(time: str, seconds: float) -> None:
    assert seconds_of(time) == seconds
