"""Training on a CUDA GPU in bf16: speed beside the Trainer's. Where a step's time goes: gpu/bench.py.

Each result is printed as it comes and written to benchmarks/results/<card>.json, of which --table makes a
table. Without a GPU it ends with exit code 2.
"""

import argparse
import json
import re
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from common import (
    BASE,
    HERE,
    SAMPLING_RATE,
    SMALL,
    clip_lengths,
    machine,
    parser,
    save_backbone,
    scratch_folder,
    take_turns,
    write_clips,
)

OURS = ("--precision", "bf16", "--epochs", 10_000, "--eval-every", 1_000_000_000)
THEIRS = ("--bf16", "--no-checkpointing")
COMPILED = {"ours": ("--compile", "--cuda-graphs"), "theirs": ("--compile-model",)}
GIB = 2**30


@dataclass(frozen=True)
class Setting:
    """What a group of sides trains on. A round is an epoch of each: more than a loader prepares ahead."""

    name: str  # clips' length, and their number in a micro-batch x micro-batches in a step
    seconds: list[float]  # of each clip
    batch_size: int
    accumulation: int = 1
    sides: tuple[str, ...] = ("ours", "theirs")
    is_compiled: bool = False
    is_graphed: bool = False  # of ours; the Trainer has none

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return len(self.seconds) // (self.batch_size * self.accumulation)

    def commands(self, folder: Path, model: Path, device: str) -> dict[str, tuple]:
        """For each side its script and flags. The clips are written, unless they are there."""
        longest = max(self.seconds)
        clips = folder / f"{len(self.seconds)} clips up to {longest:g} s"
        if not clips.exists():
            write_clips(clips, self.seconds, [SAMPLING_RATE])
        shape = ("--model", model, "--dataset", clips, "--batch-size", self.batch_size)
        shape = (*shape, "--gradient-accumulation-steps", self.accumulation, "--max-seconds", longest)
        on_device = {"ours": ("--device", device), "theirs": ("--cpu",) if device == "cpu" else ()}
        return {
            side: (
                *(f"{side}.py", *shape, *(OURS if side == "ours" else THEIRS), *on_device[side]),
                *(COMPILED[side] if self.is_compiled else ()),
                *(("--cuda-graphs",) if self.is_graphed and side == "ours" else ()),
                *("--output-dir", folder / "runs" / f"{self.name}, {side}"),
            )
            for side in self.sides
        }


def settings_for(device: str) -> list[Setting]:
    """In the order of their value: the time may end before they do. On a CPU only that they run is seen."""
    if device == "cpu":
        return [
            Setting("1 s, 4 x 2", [1.0] * 16, 4, 2),
            Setting("1 s, 8 at once", [1.0] * 16, 8),
            Setting("1-2 s, 4 at once", clip_lengths(8, 1, 2), 4),
        ]
    short = [1.0] * (8 * 128)
    return [
        Setting("1 s, 32 x 4", short, 32, 4),  # the guide's
        Setting("1 s, 128 at once", short, 128),
        Setting("2 s, 8 at once, CUDA graphs", [2.0] * 64, 8, is_graphed=True),
        Setting("1-10 s, 32 at once", clip_lengths(8 * 32, 1, 10), 32),
        # Each by itself: what one of them compiles may take all the time that is left.
        Setting("1 s, 128 at once, compiled", short, 128, sides=("ours",), is_compiled=True),
        Setting("1 s, 128 at once, compiled", short, 128, sides=("theirs",), is_compiled=True),
    ]


class TimeIsUp(Exception):
    """The seconds that the benchmark was given are over."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """End what is within after so many seconds, whatever it waits for."""

    def ring(*args: object) -> NoReturn:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    if seconds is not None:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    except TimeIsUp:
        print(f"ended after {seconds:.0f} s", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure(
    folder: Path,
    model: Path,
    config: Any,
    device: str,
    peak: float,
    rounds: int,
    seconds: float | None,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Print a line for each side of each setting and call `keep` with it, within the time there is.

    `model` is a saved backbone with the configuration `config`, `peak` the device's FLOP/s. A side that fails
    is a line, too.
    """
    with time_limit(seconds):
        for setting in settings_for(device):
            try:
                sides = side_figures(setting, folder, model, config, device, peak, rounds)
            except SystemExit as problem:
                about = {"setting": setting.name, "failed": str(problem)[-1000:]}
                sides = [about | {"side": side} for side in setting.sides]
            for figures in sides:
                print(line_of(figures), flush=True)
                keep(figures)


def side_figures(
    setting: Setting, folder: Path, model: Path, config: Any, device: str, peak: float, rounds: int
) -> list[dict[str, Any]]:
    """For each side the medians of its rounds, and the clips/s of each round."""
    from audiocls.log.flops import training_flops

    commands, steps = setting.commands(folder, model, device), setting.steps
    seconds, last = take_turns(commands, turns=1, steps=steps, rounds=rounds, warm_up=steps - 1)
    flops = sum(training_flops(config, round(one * SAMPLING_RATE)) for one in setting.seconds)
    return [
        {
            "setting": setting.name,
            "side": side,
            "clips/s": len(setting.seconds) / statistics.median(many),
            "audio s/s": sum(setting.seconds) / statistics.median(many),
            "share of the peak": flops / statistics.median(many) / peak,  # padding is no work
            "GiB": last[side].get("gpu_bytes", 0) / GIB,
            "seconds to the first step": last[side]["seconds_to_first_step"],
            "clips/s by round": [len(setting.seconds) / one for one in many],
        }
        for side, many in seconds.items()
    ]


def line_of(figures: dict[str, Any]) -> str:
    """A side's figures on a line."""
    numbers = [f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, float)]
    return f"{figures['setting']}: {figures['side']}: " + figures.get("failed", ", ".join(numbers))


# The table


def table(files: Sequence[Path]) -> str:
    """What --json wrote, as a table in Markdown, a row a setting of each card."""
    head = ("clips/s", "audio s/s", "ratio", "of the peak", "GiB", "s to the first step")
    lines = [f"| ours / the Trainer | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        lines += [f"| **{content['machine']['gpu']}**{' |' * (len(head) + 1)}"]
        sides = {(one["setting"], one["side"]): one for one in content["sides"]}
        lines += [row(name, sides) for name in dict.fromkeys(name for name, _ in sides)]
    return "\n".join(lines)


def row(setting: str, sides: dict[tuple[str, str], dict[str, Any]]) -> str:
    """A setting's row; a side that is not there or failed is a dash."""
    both = [sides.get((setting, side), {}) for side in ("ours", "theirs")]

    def cell(key: str, form: str) -> str:
        return " / ".join(format(one[key], form) if key in one else "-" for one in both)

    ratio = "-"
    if all("clips/s" in one for one in both):
        ours, theirs = (one["clips/s by round"] for one in both)
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        of_medians = both[0]["clips/s"] / both[1]["clips/s"]
        ratio = f"{of_medians:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    cells = (cell("clips/s", ",.0f"), cell("audio s/s", ",.0f"), ratio, cell("share of the peak", ".0%"))
    cells = (*cells, cell("GiB", ".1f"), cell("seconds to the first step", ".0f"))
    return f"| {setting} | {' | '.join(cells)} |"


def file_name(card: str) -> str:
    """The name of a card as a file's: NVIDIA H200 -> nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--seconds", type=float, metavar="LIMIT", help="end then, with what there is")
    arguments.add_argument("--table", nargs="+", type=Path, metavar="JSON", help="only print their table")
    arguments.add_argument("--check-on-cpu", action="store_true", help=argparse.SUPPRESS)  # that it runs
    args = arguments.parse_args()
    if args.table:
        print(table(args.table))
        return 0
    began = time.perf_counter()
    from audiocls.torchaudio_guard import import_torchaudio

    import_torchaudio()
    import torch
    from transformers import Wav2Vec2Config

    from audiocls.log.profiling import matmul_flops_per_second
    from audiocls.storage import write_text

    if not torch.cuda.is_available() and not args.check_on_cpu:
        print("gpu.py: torch sees no CUDA GPU; training.py measures on the CPU", file=sys.stderr)
        return 2
    device, size = ("cpu", SMALL) if args.check_on_cpu else ("cuda", BASE)
    rounds = 2 if args.check_on_cpu else 3 if args.quick else 7
    peak = matmul_flops_per_second(torch.device(device), torch.bfloat16)
    if device == "cuda":
        torch.cuda.empty_cache()  # the sides share the card
    content: dict[str, Any] = {
        "quick": args.quick,
        "machine": machine(),
        "settings": {
            "model": "small" if args.check_on_cpu else "wav2vec2-base, random weights, bf16",
            "peak": f"{peak / 1e12:.1f} TFLOP/s, of a large bf16 matrix product",
            "rounds": rounds,
        },
        "sides": [],
    }
    for key, value in (content["machine"] | content["settings"]).items():
        print(f"{key}: {value}", flush=True)
    out = args.json and Path(args.json)
    if out is None and device == "cuda" and not args.quick:
        out = HERE / "results" / f"{file_name(torch.cuda.get_device_name())}.json"

    def keep(figures: dict[str, Any]) -> None:
        content["sides"].append(figures)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_text(out, json.dumps(content, indent=2) + "\n")

    with scratch_folder() as folder:
        model = save_backbone(folder / "model", size)
        left = args.seconds and args.seconds - (time.perf_counter() - began)
        measure(folder, model, Wav2Vec2Config(**size), device, peak, rounds, left, keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
