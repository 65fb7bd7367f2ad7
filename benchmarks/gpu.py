"""Training on a CUDA GPU in bf16: speed beside the Trainer's. Where a step's time goes: gpu/bench.py.

Without a GPU it ends with exit code 2.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from common import (
    BASE,
    SAMPLING_RATE,
    SMALL,
    Row,
    clip_lengths,
    parser,
    report,
    save_backbone,
    scratch_folder,
    take_turns,
    write_clips,
)

BATCH_SIZE, ACCUMULATION = 32, 4  # the guide's
STEPS = 8  # of one side before it is the other's turn: more than what a loader prepares meanwhile
OURS = ("--precision", "bf16", "--epochs", 10_000, "--eval-every", 1_000_000_000)
THEIRS = ("--bf16", "--no-checkpointing")


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--check-on-cpu", action="store_true", help=argparse.SUPPRESS)  # that it runs
    args = arguments.parse_args()
    from audiocls.torchaudio_guard import import_torchaudio

    import_torchaudio()
    import torch

    from audiocls.log.profiling import matmul_flops_per_second

    if not torch.cuda.is_available() and not args.check_on_cpu:
        print("gpu.py: torch sees no CUDA GPU; training.py measures on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if args.check_on_cpu else "cuda")
    size = SMALL if args.check_on_cpu else BASE
    rounds = 2 if args.check_on_cpu else 3 if args.quick else 7
    with scratch_folder() as folder:
        peak = matmul_flops_per_second(device, torch.bfloat16)
        model = save_backbone(folder / "model", size)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the sides share the card
        rows, facts = throughput(folder, model, size, device, rounds, peak)
    settings = {
        "model": "small" if args.check_on_cpu else "wav2vec2-base, random weights",
        "1 s clips": f"steps of {ACCUMULATION} x {BATCH_SIZE}, a round is {STEPS} steps of each side",
        "1-10 s clips": f"steps of {BATCH_SIZE}, a round is an epoch",
        "peak": f"{peak / 1e12:.1f} TFLOP/s, of a large bf16 matrix product",
        "rounds": rounds,
    }
    report(args, settings, rows, bf16_peak=peak, sides=facts)
    print("\nsides, 1 s clips:")
    for name, figures in facts.items():
        print(f"  {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    return 0


def throughput(
    folder: Path, model: Path, size: dict[str, Any], device: Any, rounds: int, peak: float
) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """Whole programs, taking turns; and for each side its facts on one-second clips."""
    from transformers import Wav2Vec2Config

    from audiocls.log.flops import training_flops

    where: tuple = ("--device", device.type)
    not_gpu = ("--cpu",) if device.type == "cpu" else ()
    clips_per_step = BATCH_SIZE * ACCUMULATION
    clips = write_clips(folder / "one-second", [1.0] * clips_per_step, [SAMPLING_RATE])
    shape: tuple = ("--model", model, "--dataset", clips, "--batch-size", BATCH_SIZE)
    shape = (*shape, "--gradient-accumulation-steps", ACCUMULATION)
    sides: dict[str, tuple] = {
        "ours": ("ours.py", *shape, *OURS, *where),
        "ours, compiled": ("ours.py", *shape, *OURS, *where, "--compile"),
        "theirs": ("theirs.py", *shape, *THEIRS, *not_gpu),
        "theirs, compiled": ("theirs.py", *shape, *THEIRS, *not_gpu, "--compile-model"),
    }
    if device.type == "cpu":  # compiling there takes minutes
        sides = {name: side for name, side in sides.items() if "compiled" not in name}
    sides = {name: (*side, "--output-dir", folder / "runs" / name) for name, side in sides.items()}
    warm_up = 1 if device.type == "cpu" else 5
    seconds, last = take_turns(sides, turns=1, steps=STEPS, rounds=rounds, warm_up=warm_up)
    speed = {name: [STEPS * clips_per_step / one for one in many] for name, many in seconds.items()}
    flops = training_flops(Wav2Vec2Config(**size), SAMPLING_RATE)
    facts = {
        name: {
            "clips/s": statistics.median(speed[name]),
            "share of the peak": statistics.median(speed[name]) * flops / peak,
            "GiB on the GPU": last[name].get("gpu_bytes", 0) / 2**30,
            "seconds to the first step": last[name]["seconds_to_first_step"],
        }
        for name in sides
    }

    lengths = clip_lengths(8 * BATCH_SIZE if device.type == "cuda" else 64, 1, 10)
    clips = write_clips(folder / "ragged", lengths, [SAMPLING_RATE])
    shape = ("--model", model, "--dataset", clips, "--batch-size", BATCH_SIZE)
    shape = (*shape, "--gradient-accumulation-steps", 1)
    steps = len(lengths) // BATCH_SIZE
    sides = {
        "ours": ("ours.py", *shape, *OURS, *where, "--max-seconds", "none"),
        "theirs": ("theirs.py", *shape, *THEIRS, *not_gpu, "--max-seconds", 10),
    }
    sides = {
        name: (*side, "--output-dir", folder / "runs" / f"ragged {name}") for name, side in sides.items()
    }
    seconds, _ = take_turns(sides, turns=1, steps=steps, rounds=min(rounds, 5), warm_up=steps - 1)
    audio = {name: [sum(lengths) / one for one in many] for name, many in seconds.items()}
    rows = [Row("1 s clips, eager", "clips/s", speed["ours"], speed["theirs"], True)]
    if "ours, compiled" in speed:
        compiled = speed["ours, compiled"], speed["theirs, compiled"]
        rows.append(Row("1 s clips, compiled", "clips/s", *compiled, True))
    rows.append(Row("1-10 s clips, eager", "audio s/s", audio["ours"], audio["theirs"], True))
    return rows, facts


if __name__ == "__main__":
    sys.exit(main())
