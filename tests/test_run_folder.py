"""The folder of a run: one run at a time, never lost by mistake, and only resumed as what it was."""

import subprocess
import sys
from pathlib import Path

import pytest

from audiocls.config import TrainConfig
from audiocls.data.splits import fingerprint
from audiocls.errors import InputOutputFailed, UserError
from audiocls.storage import complete_file, complete_folder, damage, finish_swap, write_text
from audiocls.training.run_folder import claim_run_folder, last_part, remove_run

CONFIG = {"dataset": "PolyAI/minds14", "model": "facebook/wav2vec2-base"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begun(folder: Path) -> Path:
    (folder / "run.json").write_text("{}")
    return folder


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
    root = Path(__file__).parent.parent
    second = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Another run is writing to x" in second.stderr


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


@pytest.mark.parametrize(
    ("name", "part"),
    [("PolyAI/minds14", "minds14"), ("fsdd/train.csv", "train"), ("a/b.TSV", "b"), ("my.clips", "my.clips")],
)
def test_a_run_is_named_after_the_last_part(name: str, part: str) -> None:
    assert last_part(name) == part


def test_other_labels_make_another_split() -> None:
    assert fingerprint(["a\0yes"], ["b\0no"]) != fingerprint(["a\0no"], ["b\0no"])
    assert fingerprint(["a\0yes"], ["b\0no"]) != fingerprint(["a\0yes", "b\0no"], [])


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
    assert damage(tmp_path / "nowhere") == "manifest.json is missing"


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
