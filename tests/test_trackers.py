"""TensorBoard and Weights & Biases are told the numbers of metrics.jsonl, once each, also after a resume."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from report_helpers import write_run_folder

from audiocls.errors import UserError
from audiocls.log.run_log import RunLog, SinceLastLog
from audiocls.log.trackers import Trackers, check_installed
from audiocls.reporting import figures
from audiocls.reporting.wrap_up import show_confusion

SINCE = SinceLastLog(loss_sum=6.0, num_clips=4, audio_seconds=2.0, seconds=1.0)


def log_steps(folder: Path, name: str, first: int, last: int, *, log_bytes: int = 0) -> int:
    """A run's records of steps first to last, after those before; the length of metrics.jsonl at step 2."""
    at_step_2 = 0
    trackers = Trackers([name], folder, {"learning_rate": 1e-3, "dataset": "clips"})
    with RunLog(folder, trackers=trackers) as log:
        log.start(4, first - 1, log_bytes)
        for step in range(first, last + 1):
            log.train(step, step / 2, SINCE, {"learning_rate": step * 1e-3}, grad_norm=2.0)
            log.record("eval", step=step, epoch=step / 2, loss=1.0, accuracy=step / 10, is_best=True)
            at_step_2 = log.num_bytes if step == 2 else at_step_2
    return at_step_2


def read_events(folder: Path) -> Any:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_holds_each_point_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log_bytes = log_steps(tmp_path, "tensorboard", 1, 3)  # stopped after step 3; saved at step 2
    log_steps(tmp_path, "tensorboard", 3, 4, log_bytes=log_bytes)
    events = read_events(tmp_path)
    points = [(event.step, event.value) for event in events.Scalars("eval/accuracy")]
    assert points == [(step, pytest.approx(step / 10)) for step in (1, 2, 3, 4)]
    assert {event.value for event in events.Scalars("train/loss")} == {1.5}
    assert [event.step for event in events.Scalars("train/learning_rate")] == [1, 2, 3, 4]
    assert "eval/is_best" not in events.Tags()["scalars"]
    config = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| learning_rate | `0.001` |" in config


def test_tensorboard_gets_the_confusion_matrix(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = write_run_folder(tmp_path / "run", ["a", "b", "$c$"])
    trackers = Trackers(["tensorboard"], folder, {})
    trackers.start(0)
    show_confusion(folder, trackers.image)
    trackers.close()
    (image,) = read_events(folder).Images("confusion")
    assert image.step == 20
    assert image.encoded_image_string.startswith(b"\x89PNG")


class FakeWandb(SimpleNamespace):
    """As much of wandb as we call, with its rule that steps only go on."""

    def __init__(self) -> None:
        super().__init__(logged=[], summary={}, finished=0, inits=[], step=0, Image=np.shape)

    def init(self, **settings: Any) -> "FakeWandb":
        self.inits.append(settings)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        assert step >= self.step
        self.step = step
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    return fake


def test_wandb_goes_on_with_the_same_run_and_logs_nothing_twice(wandb: FakeWandb, tmp_path: Path) -> None:
    log_bytes = log_steps(tmp_path, "wandb", 1, 3)
    wandb.step = 4  # what a run that is resumed says: the next one
    log_steps(tmp_path, "wandb", 3, 4, log_bytes=log_bytes)
    first, second = wandb.inits
    assert first == second
    assert first["resume"] == "allow"
    assert first["config"] == {"learning_rate": 1e-3, "dataset": "clips"}
    logged = [(step, values["eval/accuracy"]) for step, values in wandb.logged if "eval/accuracy" in values]
    assert logged == [(step, step / 10) for step in (1, 2, 3, 4)]
    assert wandb.finished == 2


def test_wandb_is_told_the_test_scores_and_the_matrix(wandb: FakeWandb, tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", ["a", "b"])
    trackers = Trackers(["wandb"], folder, {})
    trackers.start(0)
    trackers.record("eval", {"step": 30, "accuracy": 0.5})
    trackers.record("test", {"step": 20, "accuracy": 0.7, "num_clips": 5})  # the best step lies behind
    trackers.record("end", {"step": 30, "reason": "epochs"})
    show_confusion(folder, trackers.image)
    assert wandb.summary == {"test/accuracy": 0.7, "test/num_clips": 5}
    assert [step for step, _ in wandb.logged] == [30, 30]
    assert wandb.logged[-1][1]["confusion"][2] == 3


def test_a_tracker_that_fails_is_noted_once_and_the_run_goes_on(
    wandb: FakeWandb, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(values: dict[str, Any], step: int) -> None:
        raise OSError("No space left on device")

    wandb.log = fail
    log_steps(tmp_path, "wandb", 1, 3)
    assert capsys.readouterr().out.count("note: wandb is left out from here on: OSError: No space left") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6


def test_a_tracker_that_does_not_start_ends_the_run_with_what_to_do(wandb: FakeWandb, tmp_path: Path) -> None:
    def fail(**settings: Any) -> None:
        raise RuntimeError("api_key not configured")

    wandb.init = fail
    with pytest.raises(UserError, match=r"api_key not configured\. .*wandb login"):
        log_steps(tmp_path, "wandb", 1, 3)


def test_a_tracker_that_is_not_installed_is_named_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed([])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorboard wandb"):
        check_installed(["tensorboard", "wandb"])


@pytest.mark.parametrize("size", [2, 40])
def test_pixels_of_any_matrix_are_a_picture(size: int) -> None:
    pixels = figures.to_pixels(figures.confusion(np.eye(size, dtype=int), ["語"] * size), "x")
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert len(np.unique(pixels)) > 2
