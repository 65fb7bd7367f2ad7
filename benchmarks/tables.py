"""A million rows, a hundred thousand files: the time and memory to read, check and plan them.

Each is measured in a process of its own: the table or folder is read, its splits and labels are chosen, every
file is looked up as the cache does, a part is held out and the batches of an epoch are planned. Nothing is
decoded. The files are empty; those of the table are there, or, with --absent, are not.

    python benchmarks/tables.py [--rows 1000000] [--files 100000] [--absent]
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FORMATS = ("csv", "tsv", "jsonl", "parquet")
NUM_LABELS, NUM_SPEAKERS, FILES_A_FOLDER = 35, 997, 1_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--absent", action="store_true", help="name files that are not there")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if not args.absent:
            make_files(root, args.rows)
        for suffix in FORMATS:
            write_table(root / f"clips.{suffix}", args.rows)
            say(root / f"clips.{suffix}", f"{suffix}, {args.rows:,} rows")
        make_class_folders(root / "folder", args.files)
        say(root / "folder", f"folder, {args.files:,} files")


def say(path: Path, what: str) -> None:
    command = [sys.executable, __file__, "--measure", str(path)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(f"{what}: {finished.stdout.strip()}", flush=True)


def measure(dataset: str) -> None:
    """Print the seconds of each part and the peak of the memory."""
    from audiocls.config import TrainConfig
    from audiocls.data.audio import DecodeOptions
    from audiocls.data.batch_plan import BatchPlan
    from audiocls.data.cache import cache_key
    from audiocls.data.clips import same_file_keys
    from audiocls.data.division import divide
    from audiocls.data.prepare import trained_too, two_labels
    from audiocls.data.splits import choose_clips

    config = TrainConfig(
        dataset=dataset,
        group_column=None if Path(dataset).is_dir() else "speaker",
        split_by="stratified",
    )
    times = [time.perf_counter()]
    chosen = choose_clips(config, Path(dataset).parent)
    times.append(time.perf_counter())
    clips = [*chosen.train, *chosen.test]
    cache_key(clips, DecodeOptions(16_000))
    rows = {"train": np.arange(len(chosen.train)), "test": np.arange(len(chosen.train), len(clips))}
    rows["train"], rows["evaluation"] = divide(config, chosen.train, rows["train"], int, [])
    keys = same_file_keys(clips)
    two_labels(clips, keys)
    for alike in (keys, [clip.group for clip in clips]):
        list(trained_too(clips, rows, alike))
    times.append(time.perf_counter())
    train = rows["train"]
    lengths = np.random.default_rng(0).integers(16_000, 160_000, len(train))
    BatchPlan(len(train), 32, 128, 0, 10, lengths=lengths).steps(0)
    times.append(time.perf_counter())
    read, looked_up, planned = np.diff(times)
    # Not getrusage's peak, which counts that of the process which started this one. In KiB.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**20  # type: ignore[index]
    total = times[-1] - times[0]
    parts = f"{read:.1f} read and checked, {looked_up:.1f} looked up, {planned:.1f} planned"
    print(f"{total:.1f} s ({parts}), {peak:.2f} GiB")


def named_rows(num_rows: int) -> Iterator[dict[str, str]]:
    for row in range(num_rows):
        yield {
            "path": file_name(row),
            "label": f"word {row % NUM_LABELS}",
            "speaker": f"speaker {row % NUM_SPEAKERS}",
            "split": "test" if row % 10 == 0 else "train",
            "text": f"what was said in recording {row}",
        }


def file_name(row: int) -> str:
    return f"audio/{row // FILES_A_FOLDER:04d}/clip_{row:07d}.wav"


def make_files(root: Path, num_files: int) -> None:
    for row in range(num_files):
        if row % FILES_A_FOLDER == 0:
            (root / file_name(row)).parent.mkdir(parents=True)
        (root / file_name(row)).touch()


def make_class_folders(root: Path, num_files: int) -> None:
    for number in range(num_files):
        folder = root / f"word {number % NUM_LABELS}" / f"session {number // FILES_A_FOLDER % 10}"
        if number < NUM_LABELS * FILES_A_FOLDER * 10:
            folder.mkdir(parents=True, exist_ok=True)
        (folder / f"clip_{number:07d}.wav").touch()


def write_table(path: Path, num_rows: int) -> None:
    if path.suffix == ".parquet":
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset.from_list(list(named_rows(num_rows))).to_parquet(path)
        return
    separator = {".csv": ",", ".tsv": "\t"}.get(path.suffix)
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(named_rows(num_rows)):
            if separator and number == 0:
                file.write(separator.join(row) + "\n")
            file.write((separator.join(row.values()) if separator else json.dumps(row)) + "\n")


if __name__ == "__main__":
    main()
