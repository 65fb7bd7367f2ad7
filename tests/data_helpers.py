"""Small recordings and data sets for the tests of the data path."""

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from forked_python import run_forked

from audiocls.config import TrainConfig
from audiocls.data.clips import Clip, FileAudio

ROOT = Path(__file__).resolve().parent.parent


def noise(num_samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """float32 [samples, channels], quiet enough that no format clips it."""
    generator = np.random.default_rng(seed)
    return (0.1 * generator.standard_normal((num_samples, channels))).clip(-0.9, 0.9).astype(np.float32)


def write_wav(path: Path, seconds: float = 0.1, rate: int = 8000, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(round(seconds * rate), seed=seed), rate, subtype="PCM_16")
    return path


def write_class_folders(folder: Path, num_clips: dict[str, int], seconds: float = 0.1) -> Path:
    """`folder/<class>/<nn>.wav`, each clip with samples of its own."""
    for number, (label, count) in enumerate(num_clips.items()):
        for index in range(count):
            write_wav(folder / label / f"{index:02d}.wav", seconds, seed=100 * number + index)
    return folder


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writerows([header, *rows])
    return path


def file_clips(paths: Sequence[Path], label: str = "a") -> list[Clip]:
    return [Clip(str(path), FileAudio(str(path)), label) for path in paths]


def config_for(dataset: Path, **settings: Any) -> TrainConfig:
    """A config whose cache lies beside the data set."""
    settings.setdefault("cache_dir", str(dataset.parent / "cache"))
    return TrainConfig(dataset=str(dataset), **settings)


def run_script(
    *arguments: str, timeout: float = 60, fresh: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    """A script of the repository, or any other arguments to Python, in a process of its own.

    On Linux scripts and modules are forks of one that has imported torch, unless they are to start `fresh`.
    """
    first, *rest = arguments
    where = [str(ROOT / first)] if first.endswith(".py") else [first]
    options.setdefault("env", os.environ | {"PYTHONPATH": str(ROOT)})
    if sys.platform == "linux" and not fresh and (first == "-m" or first.endswith(".py")):
        return run_forked([*where, *rest], timeout=timeout, **options)
    command = [sys.executable, *where, *rest]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)


def unbroken(said: str) -> str:
    """What a run said, each message on one line again."""
    return said.replace("\n  ", " ")


def assert_one_line_error(finished: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    """It ended as a user's mistake ends: a documented exit code, one line on stderr that holds `words`."""
    assert finished.returncode == exit_code, finished.stderr
    lines = finished.stderr.splitlines()
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
