"""Training: train.py against the guide's Trainer, on the CPU in float32.

Each side is a process of its own that does one optimizer step in its turn: what else the machine does hits
all alike.
"""

from pathlib import Path

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

OURS = ("--device", "cpu", "--precision", "fp32", "--epochs", 10_000, "--eval-every", 1_000_000_000)
THEIRS = ("--cpu",)
FROZEN = ("--freeze", "feature-encoder")
CHECKPOINTING_OFF = ("--no-checkpointing",)


def main() -> None:
    args = parser(__doc__).parse_args()
    rounds, num_ragged = (3, 24) if args.quick else (5, 48)
    with scratch_folder() as folder:
        model = save_backbone(folder / "model", SMALL if args.quick else BASE)
        rows = one_second(folder, model, rounds) + ragged(folder, model, num_ragged, rounds)
    settings = {
        "model": "Wav2Vec2, 3 layers of 256, convolutions of 128" if args.quick else "wav2vec2-base",
        "weights": "random",
        "one-second clips": "steps of 2 x 16, a round is a step",
        "1-10 s clips": f"{num_ragged} of them in steps of 8 (d: 6), a round is an epoch",
        "not counted": "the first step; of the 1-10 s clips the first epoch",
        "rounds": rounds,
    }
    report(args, settings, rows)


def one_second(folder: Path, model: Path, rounds: int) -> list[Row]:
    """(a) The guide's recipe, and (e) its peak memory."""
    clips = write_clips(folder / "one-second", [1.0] * 32, [SAMPLING_RATE])
    shape = ("--model", model, "--dataset", clips, "--batch-size", 16, "--gradient-accumulation-steps", 2)
    sides: dict[str, tuple] = {
        "ours": ("ours.py", *shape, *OURS),
        "theirs": ("theirs.py", *shape, *THEIRS, *CHECKPOINTING_OFF),
        "theirs, as published": ("theirs.py", *shape, *THEIRS),
    }
    sides = {name: (*side, "--output-dir", folder / "runs" / name) for name, side in sides.items()}
    seconds, last = take_turns(sides, turns=1, rounds=rounds, warm_up=0)
    speed = {name: [32 / one for one in many] for name, many in seconds.items()}
    memory = {name: [one["peak_bytes"] / 2**30] for name, one in last.items()}
    return [
        Row("a  guide's recipe, 1 s", "clips/s", speed["ours"], speed["theirs"], True),
        Row(
            "a' as published: with checkpointing",
            "clips/s",
            speed["ours"],
            speed["theirs, as published"],
            True,
        ),
        Row("e  peak memory of a", "GiB", memory["ours"], memory["theirs"]),
    ]


def ragged(folder: Path, model: Path, num_clips: int, rounds: int) -> list[Row]:
    """(b) Both frozen, (c) ours with cached features, (d) as b and (d') as c, theirs not frozen; (e) memory.

    A pair after the other: two sides with batches of 8 such clips hold 18 GB between them; with an encoder
    that is not frozen it is more, and batches are of 6.
    """
    theirs = (*THEIRS, *CHECKPOINTING_OFF, "--max-seconds", 10)
    ours = (*OURS, "--max-seconds", "none", *FROZEN)
    pairs: dict[str, tuple[int, tuple, tuple]] = {
        "b  frozen, 1-10 s": (8, ours, (*theirs, *FROZEN)),
        "c  frozen, cached": (8, (*ours, "--cache-features"), (*theirs, *FROZEN)),
        "d  as b, theirs not frozen": (6, ours, theirs),
        "d' as c, theirs not frozen": (6, (*ours, "--cache-features"), theirs),
    }
    lengths = clip_lengths(num_clips, 1, 10)
    clips = write_clips(folder / "ragged", lengths, [SAMPLING_RATE])
    rows = []
    for name, (batch_size, *flags) in pairs.items():
        shared = ("--model", model, "--dataset", clips, "--batch-size", batch_size)
        shared += ("--gradient-accumulation-steps", 1)
        sides = {
            side: (f"{side}.py", *shared, *one, "--output-dir", folder / "runs" / f"{name[:2]} {side}")
            for side, one in zip(("ours", "theirs"), flags, strict=True)
        }
        steps = num_clips // batch_size
        seconds, last = take_turns(sides, turns=steps, rounds=rounds, warm_up=steps - 1)
        speed = {side: [sum(lengths) / one for one in many] for side, many in seconds.items()}
        memory = {side: [one["peak_bytes"] / 2**30] for side, one in last.items()}
        rows.append(Row(name, "audio s/s", speed["ours"], speed["theirs"], True))
        rows.append(Row(f"e  peak memory of {name[:2]}", "GiB", memory["ours"], memory["theirs"]))
    return rows


if __name__ == "__main__":
    main()
