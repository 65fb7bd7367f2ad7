"""What the benchmarks share: clips, models, sides that take turns, tables and JSON.

Only the standard library is imported up here: ours.py and theirs.py import this file, and their start is
timed.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
SAMPLING_RATE = 16_000
LABELS = ("buzz", "hiss", "hum", "rise")
LIBRARIES = ("torch", "torchaudio", "transformers", "datasets", "accelerate", "numpy", "soundfile")

# facebook/wav2vec2-base as it is published, where that is not Wav2Vec2Config's default.
BASE: dict[str, Any] = {
    "activation_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "mask_time_prob": 0.05,
    "classifier_proj_size": 256,
}
# Its shape at about a thirtieth of its cost, for --quick.
SMALL: dict[str, Any] = BASE | {
    "conv_dim": (128,) * 7,
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}


# Clips and models


def clip_lengths(num_clips: int, shortest: float, longest: float, seed: int = 0) -> list[float]:
    """Seconds, evenly spread between the two, in a seeded order."""
    import numpy as np

    spread = np.linspace(shortest, longest, num_clips)
    return np.random.default_rng(seed).permutation(spread).tolist()


def write_clips(folder: Path, seconds: Sequence[float], sampling_rates: Sequence[int]) -> Path:
    """`folder/<split>/<label>/<nnnn>.wav`, 16 bit: the train clips, and a validation clip a label.

    Labels and sampling rates take turns; every clip is a tone of its own in noise.
    """
    import numpy as np
    import soundfile

    for split, lengths in {"train": seconds, "validation": [0.5] * len(LABELS)}.items():
        for index, length in enumerate(lengths):
            generator = np.random.default_rng([len(lengths), index])
            rate = sampling_rates[index % len(sampling_rates)]
            times = np.arange(round(length * rate)) / rate
            tone = np.sin(2 * np.pi * generator.uniform(100, 3000) * times)
            sound = generator.uniform(0.1, 0.4) * (tone + generator.normal(0, 0.3, len(times)))
            path = folder / split / LABELS[index % len(LABELS)] / f"{index:04d}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, sound, rate, subtype="PCM_16")
        write_parquet(folder, split)
    return folder


def write_parquet(folder: Path, split: str) -> None:
    """`<folder>-parquet/<split>.parquet`: the same clips as a data set on the Hub has them, for theirs.

    (datasets' own `audiofolder` needs torchcodec even to list the files.)
    """
    import pyarrow
    import pyarrow.parquet

    files = sorted((folder / split).rglob("*.wav"))
    audio = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    labels = [LABELS.index(file.parent.name) for file in files]
    beside = Path(f"{folder}-parquet")
    beside.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"audio": audio, "label": labels}), beside / f"{split}.parquet")


def save_backbone(folder: Path, config: dict[str, Any], *, is_classifier: bool = False) -> Path:
    """A Wav2Vec2 of random weights. As published, a backbone's config asks for gradient checkpointing."""
    from audiocls.torchaudio_guard import import_torchaudio

    import_torchaudio()
    import torch
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForSequenceClassification,
        Wav2Vec2Model,
    )

    torch.manual_seed(0)
    names = dict(enumerate(LABELS))
    if is_classifier:
        labels = {"id2label": names, "label2id": {label: id for id, label in names.items()}}
        model: Any = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**config, **labels))
    else:
        model = Wav2Vec2Model(Wav2Vec2Config(**config))
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(folder)
    if not is_classifier:
        saved = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(saved | {"gradient_checkpointing": True}, indent=2))
    return folder


# Sides: programs that stop after some optimizer steps until it is their turn again


class Turns:
    """A side's end: report after a turn's last step, then wait. What it prints goes to standard error.

    Within a turn nothing waits for the GPU, which may compute a step while the next one is prepared.
    """

    def __init__(self) -> None:
        self.reports = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.began: float | None = None
        self.steps_left = 1  # of this turn

    def end(self, **facts: Any) -> None:
        """An optimizer step is done, or asked for. The first turn is one step and has no seconds."""
        self.steps_left -= 1
        if self.steps_left:
            return
        torch = sys.modules.get("torch")
        on_gpu = torch is not None and torch.cuda.is_initialized()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = self.began and time.perf_counter() - self.began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if on_gpu:
            facts["gpu_bytes"] = torch.cuda.max_memory_allocated()
        print(json.dumps({"seconds": seconds, "peak_bytes": peak} | facts), file=self.reports, flush=True)
        steps = sys.stdin.readline()
        if not steps:  # the benchmark is over
            os._exit(0)
        self.steps_left = int(steps)
        self.began = time.perf_counter()


class Side:
    """The benchmark's end: a fresh process that takes optimizer steps when it is asked to."""

    def __init__(self, program: str, *flags: object, environment: dict[str, str] | None = None) -> None:
        self.began = time.perf_counter()
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / program), *map(str, flags)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )

    def first_step(self) -> Self:
        """Wait for its first optimizer step, which it takes unasked."""
        self.last = self.report()
        self.seconds_to_first_step = time.perf_counter() - self.began
        return self

    def report(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise SystemExit(f"{self.process.args!r} ended early:\n{self.log.read()[-3000:]}")
        return json.loads(line)

    def turn(self, steps: int) -> float:
        """Seconds of so many more optimizer steps, from asking for their clips to the changed weights."""
        self.ask(steps)
        return self.done()

    def ask(self, steps: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()

    def done(self) -> float:
        self.last = self.report()
        return self.last["seconds"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *others: object) -> None:
        if error is not None:
            self.process.kill()
        self.process.communicate()  # closes its standard input, upon which it ends
        self.log.close()


def take_turns(
    programs: dict[str, tuple], *, turns: int, rounds: int, warm_up: int, steps: int = 1
) -> tuple[dict[str, list[float]], dict[str, dict[str, Any]]]:
    """For each side the seconds of every round, of `turns` turns of `steps` steps, and its last report.

    The first step, and `warm_up` more, are not counted.
    """
    with ExitStack() as stack:
        sides = {name: stack.enter_context(Side(*program)).first_step() for name, program in programs.items()}
        for side in sides.values():
            if warm_up:
                side.turn(warm_up)
        seconds = {name: [0.0] * rounds for name in sides}
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            for _ in range(turns):
                for name, side in in_turn(sides, number):
                    seconds[name][number] += side.turn(steps)
        medians = {name: round(statistics.median(many), 3) for name, many in seconds.items()}
        print(f"seconds a round: {medians}", file=sys.stderr)
        facts = {
            name: side.last | {"seconds_to_first_step": side.seconds_to_first_step}
            for name, side in sides.items()
        }
        return seconds, facts


def interleaved(
    measures: dict[str, Callable[[], float]], *, rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Each measure's result in every round, after `warm_up` rounds that are not counted."""
    results: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(-warm_up, rounds):
        for name, measure in in_turn(measures, number):
            result = measure()
            if number >= 0:
                results[name].append(result)
    return results


def in_turn(sides: dict[str, Any], number: int) -> Iterator[tuple[str, Any]]:
    """The sides in order, every other round backwards: none always follows the same one."""
    yield from sides.items() if number % 2 == 0 else reversed(sides.items())


# Results


@dataclass
class Row:
    """One comparison: a figure a round of both sides. `ratio` says how many times as good ours is."""

    name: str
    unit: str
    ours: list[float]
    theirs: list[float]
    higher_is_better: bool = False

    @property
    def ratios(self) -> list[float]:
        """Of every round by itself."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [ours / theirs if self.higher_is_better else theirs / ours for ours, theirs in pairs]

    @property
    def ratio(self) -> float:
        """Of the medians."""
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        return ours / theirs if self.higher_is_better else theirs / ours

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio, "ratios": self.ratios}


def machine() -> dict[str, Any]:
    """What a reader of the figures wants to know."""
    import torch

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": f"{cpu}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(os.getloadavg()[0], 1),  # of the last minute, our own work included
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
    }


def report(args: argparse.Namespace, settings: dict[str, Any], rows: list[Row], **raw: Any) -> None:
    """Print the table; write it with every raw figure to --json."""
    about = machine()
    print(f"\n{Path(sys.argv[0]).name}{' --quick' if args.quick else ''}")
    print(", ".join(f"{key} {value}" for key, value in about.items() if value is not None))
    print("; ".join(f"{key}: {value}" for key, value in settings.items()))
    width = max(len(row.name) for row in rows)
    print(f"\n{'':{width}}  {'unit':>14}  {'ours':>9}  {'theirs':>9}  {'ratio':>6}  spread of the ratio")
    for row in rows:
        ours, theirs = (f"{statistics.median(side):.4g}" for side in (row.ours, row.theirs))
        spread = f"{min(row.ratios):.2f} to {max(row.ratios):.2f}, n={len(row.ratios)}"
        print(f"{row.name:{width}}  {row.unit:>14}  {ours:>9}  {theirs:>9}  {row.ratio:6.2f}  {spread}")
    if args.json:
        content = {"quick": args.quick, "machine": about, "settings": settings, "raw": raw}
        content["rows"] = [row.as_dict() for row in rows]
        Path(args.json).write_text(json.dumps(content, indent=2) + "\n")


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--quick", action="store_true", help="under two minutes on two cores")
    made.add_argument("--json", metavar="FILE", help="write every raw figure to FILE")
    return made


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for the run's files, in which both sides' caches lie too; the network is not asked."""
    with tempfile.TemporaryDirectory(prefix="audiocls-benchmark-") as name:
        os.environ |= {
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": f"{name}/huggingface",
            "XDG_CACHE_HOME": f"{name}/cache",
            "TORCHINDUCTOR_CACHE_DIR": f"{name}/inductor",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
        yield Path(name)
