"""Several ranks beside one process, on the CPU through gloo: the same result, what a step sends, how fast."""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    BASE,
    HERE,
    SAMPLING_RATE,
    SMALL,
    Row,
    Side,
    clip_lengths,
    interleaved,
    parser,
    report,
    save_backbone,
    scratch_folder,
    write_clips,
)

TRAIN = HERE.parent / "train.py"


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--worker", metavar="MODEL", help="what each rank does to show what a step exchanges")
    args = made.parse_args()
    if args.worker:
        exchange(Path(args.worker))
        return
    with scratch_folder() as folder:
        model = save_backbone(folder / "model", SMALL if args.quick else BASE)
        raw = {"same": same_result(folder), "exchanged": exchanged(model)}
        rows = speed(folder, model, 3 if args.quick else 5)
    settings = {
        "model": "Wav2Vec2, 3 layers of 256, convolutions of 128" if args.quick else "wav2vec2-base",
        "ours": "two ranks of one thread",
        "theirs": "one process of two threads",
        "a round": "64 clips of 1 s in steps of 4 x 8; 16 of 1 to 10 s in steps of 4 x 2",
    }
    report(args, settings, rows, **raw)


def ranks(world_size: int) -> Iterator[dict[str, str]]:
    """The environment of each rank, as torchrun makes it."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    shared = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "MASTER_PORT": port}
    shared |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": 1, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    for rank in range(world_size):
        own = shared | {"RANK": rank, "LOCAL_RANK": rank}
        yield os.environ | {name: str(value) for name, value in own.items()}


def run(world_size: int, program: Path, *flags: object) -> str:
    """What the first rank prints."""
    command = [sys.executable, str(program), *map(str, flags)]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for environment in ranks(world_size)
    ]
    printed = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes)
    return printed[0]


# (a) The same result


def same_result(folder: Path) -> dict[int, dict[str, float]]:
    """20 steps of four micro-batches on 1 to 4 ranks, with dropout and SpecAugment: how far from one process.

    (Not of the demo's model: of its ReLUs one at 0 may fall to either side, and its gradient with it.)
    """
    from safetensors.torch import load_file

    model = save_backbone(folder / "small", SMALL)
    clips = write_clips(folder / "same", clip_lengths(100, 0.5, 1.5), [SAMPLING_RATE])
    shape = ("--model", model, "--dataset", clips, "--max-seconds", "none", "--learning-rate", 1e-4)
    shape += ("--device", "cpu", "--batch-size", 4, "--global-batch-size", 16)
    often = ("--max-steps", 20, "--log-every", 1, "--eval-every", 10)
    found: dict[int, dict[str, float]] = {}
    records: dict[int, list[dict[str, Any]]] = {}
    weights: dict[int, dict[str, Any]] = {}
    for world_size in (1, 2, 3, 4):
        output = folder / "runs" / f"same {world_size}"
        run(world_size, TRAIN, *shape, *often, "--output-dir", output)
        lines = (output / "metrics.jsonl").read_text().splitlines()
        records[world_size] = [json.loads(line) for line in lines]
        weights[world_size] = load_file(output / "checkpoints" / "step-00000020" / "model.safetensors")
        pairs = list(zip(records[world_size], records[1], strict=True))
        found[world_size] = {
            "train loss": max(distances(pairs, "train", "loss")),
            "grad norm": max(distances(pairs, "train", "grad_norm")),
            "eval loss": max(distances(pairs, "eval", "loss")),
            "eval clips": max(distances(pairs, "eval", "num_clips")),
            "weight": max(
                (weights[world_size][name] - weights[1][name]).abs().max().item() for name in weights[1]
            ),
        }
        shown = ", ".join(f"{name} {value:.2g}" for name, value in found[world_size].items())
        print(f"(a) {world_size} ranks, float32, largest distance from one process: {shown}")
    return found


def distances(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], kind: str, key: str) -> list[float]:
    return [abs(ours[key] - theirs[key]) for ours, theirs in pairs if ours["kind"] == theirs["kind"] == kind]


# (b) What a step exchanges


def exchanged(model: Path) -> list[dict[str, Any]]:
    found = [json.loads(run(world_size, HERE / "ranks.py", "--worker", model)) for world_size in (2, 3, 4)]
    for one in found:
        print(
            f"(b) {one['ranks']} ranks: {one['collectives']} collectives a step, {one['bytes'] / 1e6:.2f} MB "
            f"of which {one['gradient_bytes'] / 1e6:.2f} are gradients; all send {one['sent'] / 1e6:.1f} MB, "
            f"in theory {one['sent_in_theory'] / 1e6:.1f}; gradients alone take {one['seconds']:.2f} s"
        )
    return found


def exchange(model: Path) -> None:
    """One rank's part: a step of two micro-batches, its collectives, and what the machine sends to itself."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from audiocls.distributed import joined
    from audiocls.model.loading import load_for_training, open_backbone
    from audiocls.signals import StopSignal

    with joined(StopSignal()) as ranks:
        loaded = load_for_training(open_backbone(str(model)), ["a", "b"], seed=0)
        replica = ranks.wrapped(loaded.model)
        trained = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]

        def step() -> None:
            for is_last in (False, True):
                with ranks.exchanging(replica, when=is_last):
                    replica(torch.randn(1, SAMPLING_RATE)).sum().backward()
            ranks.sum(torch.tensor(0.0), 0, 0, 0, 0)
            loaded.model.zero_grad()

        step()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True, acc_events=True) as seen:
            step()
        ranks.gather(None)
        before = sent_bytes()
        step()
        ranks.gather(None)
        sent = sent_bytes() - before
        gradients = torch.zeros(sum(parameter.numel() for parameter in trained))
        began = time.perf_counter()
        torch.distributed.all_reduce(gradients)
        seconds = time.perf_counter() - began
        sizes = [
            (torch.Size(event.input_shapes[0]).numel(), event.input_shapes)
            for event in seen.events()
            if event.name == "gloo:all_reduce"
        ]
        *gradient_sizes, _, _ = (size for size, _ in sizes)  # then which of them there are, and the sums
        gradient_bytes = gradients.numel() * 4
        found = {
            "ranks": ranks.world_size,
            "collectives": len(sizes),
            "bytes": sum(gradient_sizes) * 4 + len(trained) * 4 + 5 * 8,
            "gradient_bytes": gradient_bytes,
            "sent": sent,
            "sent_in_theory": 2 * (ranks.world_size - 1) * gradient_bytes,
            "seconds": seconds,
        }
        if ranks.is_first:
            print(json.dumps(found), flush=True)


def sent_bytes() -> int:
    """What this machine has sent to itself so far (Linux)."""
    (line,) = [
        line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")
    ]
    return int(line.split()[9])


# (c) How fast


def speed(folder: Path, model: Path, rounds: int) -> list[Row]:
    """Optimizer steps in turns: one process with both cores, and two ranks with one each."""
    rows = []
    for name, size, lengths in (("1 s", 8, [1.0] * 64), ("1-10 s", 2, clip_lengths(16, 1, 10))):
        clips = write_clips(folder / name.replace(" ", "-"), lengths, [SAMPLING_RATE])
        flags = ("--model", model, "--dataset", clips, "--batch-size", size, "--global-batch-size", 4 * size)
        flags += (
            "--device",
            "cpu",
            "--epochs",
            10_000,
            "--eval-every",
            1_000_000_000,
            "--max-seconds",
            "none",
        )
        with (
            several(2, *flags, "--output-dir", folder / "runs" / f"{name} two") as two,
            several(1, *flags, "--output-dir", folder / "runs" / f"{name} one") as one,
        ):
            epoch = len(lengths) // (4 * size)
            measures = {"ours": partial(turn, two, epoch), "theirs": partial(turn, one, epoch)}
            seconds = interleaved(measures, rounds=rounds)
        heard = {side: [sum(lengths) / one for one in many] for side, many in seconds.items()}
        print(name, {side: round(statistics.median(many), 2) for side, many in seconds.items()}, "s an epoch")
        rows.append(Row(f"c  {name}", "audio s/s", heard["ours"], heard["theirs"], higher_is_better=True))
    return rows


@contextmanager
def several(world_size: int, *flags: object) -> Iterator[list[Side]]:
    """So many ranks of a training run, all after their first step."""
    with ExitStack() as stack:
        environments = [dict(os.environ)] if world_size == 1 else ranks(world_size)
        sides = [stack.enter_context(Side("ours.py", *flags, environment=one)) for one in environments]
        for side in sides:
            side.first_step()
        yield sides


def turn(sides: list[Side], steps: int) -> float:
    """Seconds until the last of them has taken so many more optimizer steps."""
    for side in sides:
        side.ask(steps)
    return max(side.done() for side in sides)


if __name__ == "__main__":
    main()
