# ruff: noqa: E402 - the environment and the path are set before anything heavy is imported
"""What the drivers of hostile input share: a case in a process of its own, and what came of it.

A case is a fork of a process that has imported everything already: it runs the real `infer.py` or `train.py`,
with descriptors, exit code, memory and time of its own, without the seconds that the imports take.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import soundfile
import torch
from cases import Tally, fork

from audiocls.torchaudio_guard import import_torchaudio

import_torchaudio()
torch.set_num_threads(1)  # in a fork of a process with more, the first work that is shared would hang

MOST_SECONDS = 10.0
MOST_MEGABYTES = 1_500.0
RATE = 16_000


@dataclass
class Outcome:
    """What came of one case."""

    code: int  # the exit code; negative: the signal that ended it
    stdout: bytes
    stderr: bytes
    seconds: float
    megabytes: float  # at its peak

    @property
    def violations(self) -> list[str]:
        """What no input whatever may bring about."""
        found = []
        if self.seconds > MOST_SECONDS:
            found.append(f"took {self.seconds:.1f} s")
        if self.code < 0:
            found.append(f"ended by signal {-self.code}")
        if self.megabytes > MOST_MEGABYTES:
            found.append(f"took {self.megabytes:.0f} MB")
        if b"Traceback" in self.stderr or self.code == 1:
            found.append(f"traceback: {self.stderr.decode(errors='replace').strip().splitlines()[-1:]}")
        elif self.stderr.count(b"\n") > 1:
            found.append(f"more than one line on stderr: {self.stderr[:300]!r}")
        for text in (self.stdout, self.stderr):
            shown = text.decode("utf-8", "replace").replace("\n", "")
            if not all(c.isprintable() for c in shown):
                found.append(f"control characters are printed: {shown[:200]!r}")
        return found


def in_child(work: Callable[[], int], most_seconds: float = 3 * MOST_SECONDS) -> Outcome:
    """Do `work` in a fork; one that takes longer than `most_seconds` is killed."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        began = time.monotonic()
        pid = fork(work, stdout, stderr)
        while True:
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            seconds = time.monotonic() - began
            if ended:
                break
            if seconds > most_seconds:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        for file in (stdout, stderr):
            file.seek(0)
        code = os.waitstatus_to_exitcode(status)
        return Outcome(code, stdout.read(), stderr.read(), seconds, usage.ru_maxrss / 1024)


def script(name: str, *arguments: object) -> Callable[[], int]:
    """`train.py` or `infer.py` with these arguments, to be called in a child."""
    import importlib

    from audiocls.errors import exit_code_of

    main = importlib.import_module(name).main

    def run() -> int:
        sys.argv = [f"{name}.py", *map(str, arguments)]
        return exit_code_of(main)

    return run


@dataclass
class OutcomeTally(Tally):
    """Cases of which each has an Outcome, the slowest and the largest remembered."""

    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[float, str] = (0.0, "")

    def add_outcome(self, case: str, outcome: Outcome, result: str, violations: list[str]) -> None:
        """`result`: what came of it, in a word to count; `violations`: beside what an Outcome knows."""
        self.count(result)
        self.slowest = max(self.slowest, (outcome.seconds, case))
        self.largest = max(self.largest, (outcome.megabytes, case))
        self.add(case, [*outcome.violations, *violations])

    def end(self, more: str = "") -> int:
        (seconds, slowest), (megabytes, largest) = self.slowest, self.largest
        most = f"; slowest {seconds:.1f} s ({slowest!r}), largest {megabytes:.0f} MB ({largest!r})"
        return super().end(most + more)


# A small model and its clips

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 4, 2),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
    "layerdrop": 0.0,
    "mask_time_length": 2,
}
LABELS = ("<script>alert(1)</script>", "\x1b[31mred\u202e", '=HYPERLINK("x")')


def save_classifier(folder: Path, **changes: Any) -> Path:
    """A small fine-tuned Wav2Vec2 of random weights, its labels as hostile as a label can be."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

    from audiocls.hub import quiet_transformers

    quiet_transformers()
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        **SMALL | changes,
        id2label=dict(enumerate(LABELS)),
        label2id={label: id for id, label in enumerate(LABELS)},
    )
    Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return folder


def noise(num_samples: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    """float64 [samples, channels], no louder than 0.9."""
    values = 0.1 * np.random.default_rng(seed).standard_normal((num_samples, channels))
    return values.clip(-0.9, 0.9)


def write_clips(folder: Path, count: int = 12) -> Path:
    """`folder/<class>/<nn>.wav`, of two classes that differ in loudness."""
    for index in range(count):
        path = folder / "ab"[index % 2] / f"{index:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(1_200, index) * (1 + 3 * (index % 2)), RATE)
    return folder
