"""What the drivers of hostile input share: infer.py or train.py in a fork, and what came of it."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from cases import Child, Tally
from conftest import RANDOM, SMALL

from audiocls.errors import exit_code_of
from audiocls.hub import quiet_transformers

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
        elif len([line for line in self.stderr.splitlines() if not line.startswith(b"note: ")]) > 1:
            found.append(f"more than one line on stderr: {self.stderr[:300]!r}")
        for text in (self.stdout, self.stderr):
            shown = text.decode("utf-8", "replace").replace("\n", "")
            if not all(c.isprintable() for c in shown):
                found.append(f"control characters are printed: {shown[:200]!r}")
        return found


def in_child(work: Callable[[], int], most_seconds: float = 3 * MOST_SECONDS) -> Outcome:
    """Do `work` in a fork; one that takes longer than `most_seconds` is killed."""
    child = Child(work).wait(most_seconds)
    assert child.code is not None
    return Outcome(child.code, child.printed(1), child.printed(2), child.seconds, child.megabytes)


def script(name: str, *arguments: object) -> Callable[[], int]:
    """`train.py` or `infer.py` with these arguments, to be called in a child."""
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


LABELS = ("<script>alert(1)</script>", "\x1b[31mred\u202e", '=HYPERLINK("x")')


def save_classifier(folder: Path) -> Path:
    """A small fine-tuned Wav2Vec2 of random weights, its labels as hostile as a label can be."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

    quiet_transformers()
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {label: id for id, label in enumerate(LABELS)}}
    Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**SMALL | RANDOM | labels)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return folder
