"""The folder of a run: one run at a time, never lost by mistake, and only resumed as what it was."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from data_helpers import ROOT, run_script, unbroken
from safetensors.torch import load_file, save_file

from audiocls import storage
from audiocls.code_hash import code_hash
from audiocls.config import TrainConfig
from audiocls.errors import INPUT_OUTPUT_FAILED, InputOutputFailed, UserError, exit_code_of
from audiocls.storage import (
    checksums_of,
    complete_file,
    complete_folder,
    damage,
    finish_swap,
    lock,
    remove_abandoned,
    write_text,
)
from audiocls.training.checkpoint import check_room, export_best, step_folder
from audiocls.training.run_folder import (
    check_same,
    claim_run_folder,
    code_so_far,
    default_folder,
    micro_batch_before,
    remove_run,
    short_name,
)

CONFIG = {"dataset": "PolyAI/minds14", "model": "facebook/wav2vec2-base"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begun(folder: Path) -> Path:
    (folder / "run.json").write_text("{}")
    return folder


def test_a_run_begun_before_a_setting_was_there_counts_as_having_its_default(tmp_path: Path) -> None:
    about = dict.fromkeys(("precision", "forward_pass", "label2id", "split_fingerprint"), "same")
    (tmp_path / "run.json").write_text(json.dumps(about | {"config": {"seed": 1}}))
    check_same(tmp_path, about | {"config": {"seed": 1, "label_smoothing": 0.0}})
    with pytest.raises(UserError, match=r"--label-smoothing: 0.0 -> 0.1\.$"):
        check_same(tmp_path, about | {"config": {"seed": 1, "label_smoothing": 0.1}})


def test_it_is_said_and_kept_that_a_run_goes_on_by_other_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for before, after, says in (
        (code_hash(), code_hash(), False),
        ("0123", f"0123 then {code_hash()}", True),
        (f"0123 then {code_hash()}", f"0123 then {code_hash()}", False),
    ):
        (tmp_path / "run.json").write_text(json.dumps({"versions": {"code": before}}))
        assert code_so_far(tmp_path) == after
        assert ("note: the code is not the one" in unbroken(capsys.readouterr().out)) == says


def test_the_code_is_all_that_decides_and_nothing_that_only_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(ROOT / "audiocls", tmp_path / "audiocls")
    monkeypatch.setattr("audiocls.code_hash.PACKAGE", copy)

    def changed(name: str) -> str:
        with (copy / name).open("a") as file:
            file.write("# changed\n")
        return code_hash.__wrapped__()

    now = code_hash.__wrapped__()
    assert now == code_hash()  # wherever it lies
    assert changed("reporting/report.py") == changed("log/run_log.py") == now
    assert len({now, *map(changed, ("training/loss.py", "model/encoder.py", "recipes.py"))}) == 4


def test_default_names_count_up_and_resume_takes_the_newest() -> None:
    names = [str(begun(claim_run_folder(TrainConfig(**CONFIG)))) for _ in range(3)]
    assert names == [f"runs/minds14-wav2vec2-base{suffix}" for suffix in ("", "-2", "-3")]


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_resume_and_overwrite_take_the_newest_of_the_default_name(how: str) -> None:
    assert str(claim_run_folder(TrainConfig(**CONFIG, **{how: True}))) == "runs/minds14-wav2vec2-base"
    for suffix in ("-2", "-3"):
        Path(f"runs/minds14-wav2vec2-base{suffix}").mkdir()
    assert str(claim_run_folder(TrainConfig(**CONFIG, **{how: True}))) == "runs/minds14-wav2vec2-base-3"


def test_a_second_run_in_one_folder_leaves_at_once() -> None:
    claim_run_folder(TrainConfig(**CONFIG, output_dir="x"))
    code = (
        "from audiocls.config import TrainConfig; from audiocls.training.run_folder import claim_run_folder; "
        "claim_run_folder(TrainConfig(output_dir='x'))"
    )
    second = run_script("-c", code)
    assert "Another run is writing to x" in second.stderr
    assert Path("x").is_dir()  # the first run's, still empty


def test_a_folder_that_cannot_be_made_is_an_output_error() -> None:
    Path("file").touch()
    with pytest.raises(InputOutputFailed, match="file/run could not be written"):
        claim_run_folder(TrainConfig(**CONFIG, output_dir="file/run"))


def test_overwriting_removes_what_the_run_wrote_and_nothing_else() -> None:
    folder = begun(claim_run_folder(TrainConfig(**CONFIG, output_dir="x")))
    (folder / "best").mkdir()
    (folder / "notes.txt").write_text("mine")
    remove_run(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_run_is_named_after_the_short_name() -> None:
    names = ("PolyAI/minds14", "fsdd/train.csv", "train.csv", "a/b.TSV", "my.clips")
    assert list(map(short_name, names)) == ["minds14", "fsdd", "train", "b", "my.clips"]


def test_a_run_that_trains_on_is_named_after_the_run_it_begins_with() -> None:
    Path("runs/x/best").mkdir(parents=True)
    Path("runs/x/best/config.json").write_text("{}")
    for model in ("runs/x", "runs/x/", "runs/x/best", "runs/x/best/", str(Path("runs/x/best").resolve())):
        config = TrainConfig(dataset="PolyAI/minds14", model=model, overwrite=True)
        assert default_folder(config) == Path("runs/minds14-x")


@pytest.mark.parametrize("model", ["runs/a-b", "runs/a-b/", "runs/a-b/best", "link", "other"])
@pytest.mark.parametrize("how", ["", "overwrite", "resume"])
def test_a_run_is_not_begun_over_the_model_that_it_begins_with(model: str, how: str) -> None:
    Path("runs/a-b/best").mkdir(parents=True)
    Path("runs/a-b/best/config.json").write_text("{}")
    Path("other").mkdir()
    Path("other/best").symlink_to(Path("runs/a-b/best").resolve())
    Path("link").symlink_to("runs/a-b")
    if how == "overwrite":
        begun(Path("runs/a-b"))
    config = TrainConfig(dataset="a", model=model, output_dir="runs/a-b", **({how: True} if how else {}))
    with pytest.raises(UserError, match=f"--model {model} lies in runs/a-b, .* another --output-dir"):
        claim_run_folder(config)
    assert Path("runs/a-b/best/config.json").exists()


def test_a_run_is_not_begun_over_its_model_in_the_default_folder_either() -> None:
    Path("runs/a-b/b").mkdir(parents=True)
    Path("runs/a-b/b/config.json").write_text("{}")
    with pytest.raises(UserError, match="lies in runs/a-b, "):
        claim_run_folder(TrainConfig(dataset="a", model="runs/a-b/b", overwrite=True))


def test_a_run_may_lie_beside_its_model_and_be_called_tiny() -> None:
    Path("models/m").mkdir(parents=True)
    for model, folder in (("models/m", "models/m-2"), ("models/m", "models/m/runs/1"), ("tiny", "tiny")):
        Path(folder).mkdir(parents=True)
        assert claim_run_folder(TrainConfig(model=model, output_dir=folder)) == Path(folder)


# Files and folders that are complete or absent


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), complete_file(tmp_path / "a.txt") as file:
        file.write("half")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_link_stays_one_and_a_device_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").write_text("old")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    write_text(Path("/dev/null"), "gone")
    assert Path("/dev/null").is_char_device()


def test_a_folder_is_what_its_manifest_says_or_damaged(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with complete_folder(tmp_path / "best", step=1) as unfinished:
            (unfinished / "model").write_text(content)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (tmp_path / "best" / "model").read_text() == "two"
    assert damage(tmp_path / "best") is None
    (tmp_path / "best" / "model").write_text("six")
    assert damage(tmp_path / "best") == "model is not as it was written"
    (tmp_path / "best" / "model").unlink()
    assert damage(tmp_path / "best") == "model is missing"
    assert damage(tmp_path / "nowhere") == "checksums.json is missing"


def test_a_failure_while_filling_a_folder_leaves_the_old_one(tmp_path: Path) -> None:
    with complete_folder(tmp_path / "best") as unfinished:
        (unfinished / "model").write_text("old")
    with pytest.raises(InputOutputFailed), complete_folder(tmp_path / "best") as unfinished:
        raise OSError(28, "No space left on device")
    assert (tmp_path / "best" / "model").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_swap_cut_short_is_finished(tmp_path: Path) -> None:
    with complete_folder(tmp_path / "best") as unfinished:
        (unfinished / "model").write_text("old")
    (tmp_path / "best").rename(tmp_path / ".best.old")
    finish_swap(tmp_path / "best")
    assert damage(tmp_path / "best") is None


def test_a_claim_says_how_to_go_on() -> None:
    begun(claim_run_folder(TrainConfig(**CONFIG, output_dir="y")))
    with pytest.raises(UserError, match="--resume, --overwrite"):
        claim_run_folder(TrainConfig(**CONFIG, output_dir="y"))


# What a killed run left


def test_a_claim_removes_what_a_killed_run_left_and_finishes_its_swaps() -> None:
    folder = Path("x", "checkpoints")
    (folder / ".step-00000003.unfinished").mkdir(parents=True)
    (folder / ".step-00000002.old").mkdir()
    Path("x", ".run.json.unfinished").touch()
    for name in ("best", ".best.old"):
        Path("x", name).mkdir()
    (folder / "step-00000001").mkdir()
    claim_run_folder(TrainConfig(**CONFIG, output_dir="x", resume=True))
    left = sorted(str(path) for path in Path("x").rglob("*"))
    steps = [f"x/checkpoints/step-0000000{step}" for step in (1, 2)]
    assert left == ["x/best", "x/checkpoints", *steps]


def test_a_worker_of_a_killed_run_does_not_keep_its_folder() -> None:
    Path("folder").mkdir()
    read, write = os.pipe()
    run = os.fork()
    if run == 0:
        lock(Path("folder"))
        if os.fork() == 0:  # the worker, which lives on
            os.write(write, str(os.getpid()).encode())
            time.sleep(60)
        os._exit(0)
    os.waitpid(run, 0)
    worker = int(os.read(read, 20))
    try:
        assert lock(Path("folder"))
    finally:
        os.kill(worker, signal.SIGKILL)


def test_only_folders_that_nobody_works_in_are_abandoned() -> None:
    for name in ("unfinished-dead", "unfinished-alive", "other"):
        Path(name).mkdir()
    read, write = os.pipe()
    alive = os.fork()
    if alive == 0:
        lock(Path("unfinished-alive"))
        os.write(write, b"!")
        time.sleep(60)
    os.read(read, 1)
    try:
        remove_abandoned(Path(), "unfinished-")
        assert sorted(path.name for path in Path().iterdir()) == ["other", "unfinished-alive"]
    finally:
        os.kill(alive, signal.SIGKILL)
        os.waitpid(alive, 0)


# A disk that is full


def test_what_safetensors_cannot_write_is_an_output_error(tmp_path: Path) -> None:
    with (
        pytest.raises(InputOutputFailed, match=r"best could not be written: .*Is a directory"),
        complete_folder(tmp_path / "best") as unfinished,
    ):
        (unfinished / "model.safetensors").mkdir()
        save_file({"a": torch.zeros(2)}, unfinished / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_run_for_which_there_is_no_room_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Linear(1_000_000, 1, bias=False)  # 4 MB, saved twice, and AdamW's two moments
    for free, fits in ((16_000_000, True), (15_999_999, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        with contextlib.nullcontext() if fits else pytest.raises(InputOutputFailed, match="take 16 MB"):
            check_room(tmp_path, model)


def test_output_to_a_full_disk_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert exit_code_of(main) == INPUT_OUTPUT_FAILED
    assert capsys.readouterr().err == "error: the output could not be written: No space left on device.\n"


def test_two_runs_that_start_at_once_get_a_folder_each(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def make_just_after_another(folder: Path, *args: Any, **options: Any) -> None:
        if folder.name == "minds14-wav2vec2-base":
            make(folder, *args, **options)
        make(folder, *args, **options)

    monkeypatch.setattr(Path, "mkdir", make_just_after_another)
    assert default_folder(TrainConfig(**CONFIG)) == Path("runs/minds14-wav2vec2-base-2")


def test_best_is_made_anew_where_it_is_of_another_checkpoint_of_that_step(tmp_path: Path) -> None:
    for weight in (1.0, 2.0):  # the same step again, after the first checkpoint was damaged
        with complete_folder(step_folder(tmp_path, 3), step=3) as unfinished:
            save_file({"weight": torch.tensor(weight)}, unfinished / "model.safetensors")
            (unfinished / "predictions.jsonl").write_text("{}\n")
        export_best(tmp_path, 3)
        assert load_file(tmp_path / "best" / "model.safetensors")["weight"] == weight
    (tmp_path / "best" / "checksums.json").write_text('{"step": 3, "files": {}}')  # edited: it says nothing
    export_best(tmp_path, 3)
    assert "model.safetensors" in checksums_of(tmp_path / "best")["files"]


def test_a_folder_that_is_taken_for_abandoned_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stolen: list[Path] = []

    def lock_after_another(folder: Path) -> bool:
        if not stolen:  # between its making and its locking, another process removes it
            stolen.append(folder)
            folder.rmdir()
        return lock(folder)

    monkeypatch.setattr(storage, "lock", lock_after_another)
    with storage.unfinished_folder(tmp_path / "place") as folder:
        assert folder.is_dir() and folder not in stolen


def test_output_to_a_pipe_goes_there_and_a_link_to_itself_gives_way(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    write_text(Path(f"/dev/fd/{writer}"), "text")
    assert os.read(reader, 10) == b"text"
    (tmp_path / "loop").symlink_to("loop")
    write_text(tmp_path / "loop", "text")
    assert (tmp_path / "loop").read_text() == "text"


@pytest.mark.parametrize(
    ("content", "resume", "found"),
    [
        ('{"micro_batch_size": 48}', True, 48),
        ('{"micro_batch_size": 48}', False, None),
        ('{"micro_batch_size": "48"}', True, None),
        ('{"micro_batch_size": 0}', True, None),
        ('{"micro_batch_size": true}', True, None),
        ('{"micro_batch_size": 129}', True, None),  # a step has 128
        ("{}", True, None),
        ("[]", True, None),
        ("{", True, None),
        (None, True, None),
    ],
)
def test_a_resumed_run_has_the_micro_batches_that_its_run_json_names(
    content: str | None, resume: bool, found: int | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert micro_batch_before(tmp_path, TrainConfig(resume=resume)) == found


def test_a_resumed_run_may_have_other_micro_batches_of_the_same_steps(tmp_path: Path) -> None:
    """What is advised where memory runs out, on another card say."""
    others = {"precision": "fp32", "forward_pass": "audiocls", "label2id": {}, "split_fingerprint": ""}
    config = dataclasses.asdict(TrainConfig())
    (tmp_path / "run.json").write_text(json.dumps({"config": config} | others))
    for sizes in ({"batch_size": 16, "gradient_accumulation_steps": 8}, {"global_batch_size": 128}):
        check_same(tmp_path, {"config": config | sizes} | others)
    with pytest.raises(UserError, match="--batch-size: auto -> 16"):
        check_same(tmp_path, {"config": config | {"batch_size": 16}} | others)
