"""Accuracy and time on real recordings: the guide with the Trainer, its recipe here, and the others.

    python benchmarks/accuracy.py --fsdd FOLDER --wake-words FOLDER --model FOLDER --output-dir FOLDER

The data and the model are recipes.py's. Each run is a process of its own, one after the other, evaluated
once, at the end, so that nothing is chosen by the clips it is judged by. The time is the process's.
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


def command_of(side: str, data: str, out: Path, model: str, device: str) -> list[str]:
    shape = ["--model", model, "--output-dir", str(out / f"{data}-{side}")]
    if side == "Trainer":
        on = ["--cpu"] if device == "cpu" else ["--bf16"]
        script = [
            "theirs.py",
            *shape,
            "--dataset",
            str(out / "tables" / data),
            "--epochs",
            "10",
            "--evaluate",
            *on,
        ]
    else:
        script = ["../train.py", *shape, "--dataset", str(out / "tables" / f"{data}.csv"), "--recipe", side]
        script += [
            "--device",
            device,
            "--eval-every",
            "end",
            "--overwrite",
            "--cache-dir",
            str(out / "cache" / side),
        ]
    return [sys.executable, str(HERE / script[0]), *script[1:]]


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
    """The guide has nothing for a damaged file; here what decodes of it is used."""
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
    results = args.output_dir / "accuracy.jsonl"
    for data in args.data.split(","):
        write_parquet(args.output_dir / "tables", data)
        for side in args.sides.split(","):
            command = command_of(side, data, args.output_dir, str(args.model), args.device)
            began = time.perf_counter()
            with (args.output_dir / f"{data}-{side}.log").open("w") as log:
                done = subprocess.run(
                    command, stdout=log, stderr=subprocess.STDOUT, cwd=HERE.parent, check=False
                )
            seconds = time.perf_counter() - began
            text = Path(log.name).read_text()
            figure = {"data": DATA[data], "side": SIDES[side], "seconds": seconds, "rc": done.returncode}
            if side == "Trainer":
                found = re.findall(r"accuracy ([\d.]+)", text)
                figure["accuracy"] = float(found[-1]) if found else None
            elif done.returncode == 0:
                lines = (args.output_dir / f"{data}-{side}" / "metrics.jsonl").read_text().splitlines()
                evaluations = [line for line in map(json.loads, lines) if line["kind"] == "eval"]
                figure["accuracy"] = evaluations[-1]["accuracy"]
            with results.open("a") as file:
                file.write(json.dumps(figure) + "\n")
            print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
