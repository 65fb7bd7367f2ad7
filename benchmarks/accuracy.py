"""Accuracy and time on real recordings: the guide with the Trainer, its recipe here, and the others.

    python benchmarks/accuracy.py --fsdd FOLDER --wake-words FOLDER --model FOLDER --output-dir FOLDER

The data and the model are recipes.py's. Each run is a process of its own, one after the other, evaluated
once, at the end, so that nothing is chosen by the clips it is judged by. The time is the process's. The guide
has nothing for damaged files: the Trainer is not given them.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import soundfile
from common import HERE
from recipes import read_rows, write_tables

DATA = {"few": "wake words", "official": "spoken digits"}
SIDES = {
    "Trainer": "the guide, with the Trainer",
    "guide": "the guide's recipe here",
    "standard": "`standard`",
    "frozen": "`frozen`",
}


def command_of(side: str, data: str, args: argparse.Namespace) -> list[str]:
    out, tables = args.output_dir, args.output_dir / "tables"
    if side == "Trainer":
        on = "--cpu" if args.device == "cpu" else "--bf16"
        command = ["theirs.py", "--dataset", tables / data, "--epochs", 10, "--evaluate", on]
    else:
        command = ["../train.py", "--dataset", tables / f"{data}.csv", "--recipe", side]
        command += ["--device", args.device, "--overwrite"]
        command += ["--eval-every", "end", "--cache-dir", out / "cache" / side]
    command += ["--model", args.model, "--output-dir", out / f"{data}-{side}"]
    return [sys.executable, *map(str, command)]


def accuracy_of(side: str, run: Path, log: str) -> float | None:
    """Of the only evaluation; None where the run failed before it."""
    if side == "Trainer":
        found = re.findall(r"^accuracy ([\d.]+)", log, re.MULTILINE)
        return float(found[-1]) if found else None
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return next((record["accuracy"] for record in records if record["kind"] == "eval"), None)


def write_parquet(tables: Path, data: str) -> None:
    """`tables/<data>-parquet/`: the clips with their bytes, as a data set on the Hub has them, for theirs."""
    rows = read_rows(tables / f"{data}.csv")
    names = sorted({row["label"] for row in rows})
    folder = tables / f"{data}-parquet"
    folder.mkdir(exist_ok=True)
    for split, of_split in (("train", "train"), ("validation", "test")):
        chosen = [row for row in rows if row["split"] == of_split and decodes(row["path"])]
        audio = [{"bytes": Path(row["path"]).read_bytes(), "path": Path(row["path"]).name} for row in chosen]
        labels = [names.index(row["label"]) for row in chosen]
        table = pyarrow.table({"audio": audio, "label": labels})
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")
    (folder / "labels.json").write_text(json.dumps(names))


def decodes(path: str) -> bool:
    """Whether soundfile reads all of it."""
    try:
        soundfile.read(path)
    except soundfile.LibsndfileError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("fsdd", "wake-words", "model", "output-dir"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", default=",".join(DATA), help="of these, by commas")
    parser.add_argument("--sides", default=",".join(SIDES), help="of these, by commas")
    args = parser.parse_args()
    write_tables(args)
    for data in args.data.split(","):
        write_parquet(args.output_dir / "tables", data)
        for side in args.sides.split(","):
            run, began = args.output_dir / f"{data}-{side}", time.perf_counter()
            command = command_of(side, data, args)
            done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
            seconds, log = time.perf_counter() - began, done.stdout + done.stderr
            run.with_suffix(".log").write_text(log)
            accuracy = accuracy_of(side, run, log) if done.returncode == 0 else None
            figures = {"data": DATA[data], "side": SIDES[side], "seconds": seconds, "accuracy": accuracy}
            line = json.dumps(figures | {"exit code": done.returncode})
            print(line, flush=True)
            with (args.output_dir / "accuracy.jsonl").open("a") as file:
                file.write(f"{line}\n")


if __name__ == "__main__":
    main()
