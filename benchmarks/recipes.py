"""What the recipes give on real recordings, and what each ingredient gives by itself.

    python benchmarks/recipes.py --fsdd FOLDER --wake-words FOLDER --model FOLDER --output-dir FOLDER

FSDD is https://github.com/Jakobovski/free-spoken-digit-dataset with train.csv and test.csv (path, label,
speaker); wake words: https://github.com/Picovoice/wake-word-benchmark, 60 clips each in a folder a word;
the model is a pretrained encoder, such as OpenAI's Whisper tiny.en. Each trial is a run of train.py on one
thread, `--jobs` of them side by side. A finished one is a line of results.jsonl: started again, this goes on
where it was. `--only 'standard/*'` makes some of them; the tables at the end are of all that there is.
"""

import argparse
import csv
import fnmatch
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audiocls.data.audio import BadAudio, decode

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")

# What is compared: flags of train.py.
RECIPES = {
    "standard": "--recipe standard",
    "frozen": "--recipe frozen",
    # What the README suggested for one's own clips before there was `standard`.
    "before": "--recipe guide --max-seconds none --batch-size 8 --gradient-accumulation-steps 1 --epochs 20 "
    "--learning-rate 1e-4 --cut-window",
    "guide": "--recipe guide --cut-window",
}
# The ingredients of `standard`, each with the flags that add it to PLAIN, and those that leave it out.
PLAIN = "--recipe standard --augment none --no-head-first --balance-classes no"
INGREDIENTS = {
    "head first": ("--head-first", "--no-head-first"),
    "mask": ("--augment mask", "--augment none"),
    "balance": ("--balance-classes yes", "--balance-classes no"),  # matters for "uneven" alone
}
SHORT = {  # an ablation's
    "few": "--max-steps 150 --eval-every 75",
    "800": "--max-steps 400 --eval-every 200",
    "uneven": "--max-steps 400 --eval-every 200",
}


@dataclass(frozen=True)
class Trial:
    """One run of train.py."""

    name: str  # recipe/model/data/seed
    data: str  # one of the functions of DATA
    seed: int
    flags: str


def trials() -> list[Trial]:
    """All of them, in the order in which they are made."""
    made = []

    def add(recipe: str, model: str, data: str, seeds: tuple[int, ...], flags: str) -> None:
        more = " --model tiny" if model == "random" else ""  # the last --model counts
        made.extend(Trial(f"{recipe}/{model}/{data}/{seed}", data, seed, flags + more) for seed in seeds)

    for model in ("pretrained", "random"):
        for recipe in ("standard", "frozen", "before", "guide"):
            if (recipe, model) != ("frozen", "random"):
                for data in ("official", "speaker", "held-out", "few"):
                    if (model, data) != ("random", "few"):
                        seeds = tuple(range(6)) if data == "speaker" else SEEDS
                        add(
                            recipe, model, data, seeds if recipe == "standard" else seeds[:2], RECIPES[recipe]
                        )
    sets = {"all": RECIPES["standard"], "none": PLAIN}
    sets |= {f"only {name}": f"{PLAIN} {alone}" for name, (alone, _) in INGREDIENTS.items()}
    sets |= {
        f"no {name}": f"{RECIPES['standard']} {others}" for name, (_, others) in INGREDIENTS.items() if others
    }
    for name, flags in sets.items():
        for data, short in SHORT.items():
            if data != "uneven" or name in ("all", "none", "only balance", "no balance"):
                add(name, "pretrained", data, tuple(range(6)), f"{flags} {short}")
    return made


# The data: tables with the columns path, label, split


class Data:
    """Rows of (path, label, split): what is trained on is "train", what is scored "validation"."""

    def __init__(self, fsdd: Path, wake_words: Path) -> None:
        self.fsdd = {split: read_rows(fsdd / f"{split}.csv") for split in ("train", "test")}
        self.words = [
            {"path": str(path), "label": path.parent.name}
            for path in sorted(wake_words.glob("*/*"))
            if is_audio(path)
        ]

    def rows(self, data: str, seed: int) -> list[tuple[str, str, str]]:
        """The division of that name; the same for every recipe."""
        generator = np.random.default_rng([seed, 5])
        digits = [*self.fsdd["train"], *self.fsdd["test"]]
        speaker = SPEAKERS[seed % len(SPEAKERS)]
        match data:
            case "official":
                return split_rows(digits, [row in self.fsdd["test"] for row in digits])
            case "speaker":
                return split_rows(digits, [row["speaker"] == speaker for row in digits])
            case "800":  # clips of the others to train on
                others = [row for row in digits if row["speaker"] != speaker]
                chosen = [others[index] for index in generator.permutation(len(others))[:800]]
                out = [row for row in digits if row["speaker"] == speaker]
                return split_rows([*chosen, *out], [False] * len(chosen) + [True] * len(out))
            case "uneven":  # 60 clips of each even digit, 5 of each odd one
                others = [row for row in digits if row["speaker"] != speaker]
                chosen = []
                for number, digit in enumerate(DIGITS):
                    own = [row for row in others if row["label"] == digit]
                    count = 60 if number % 2 == 0 else 5
                    chosen += [own[index] for index in generator.permutation(len(own))[:count]]
                out = [row for row in digits if row["speaker"] == speaker]
                return split_rows([*chosen, *out], [False] * len(chosen) + [True] * len(out))
            case "held-out":
                order = generator.permutation(len(self.words))
                held_out = set(order[: math.ceil(len(order) / 5)].tolist())
                return split_rows(self.words, [index in held_out for index in range(len(self.words))])
            case "few":  # 8 clips a word to train on
                trained: set[int] = set()
                for word in sorted({row["label"] for row in self.words}):
                    own = [index for index, row in enumerate(self.words) if row["label"] == word]
                    trained |= set(generator.permutation(own)[:8].tolist())
                return split_rows(self.words, [index not in trained for index in range(len(self.words))])
        raise ValueError(data)


def split_rows(rows: list[dict[str, str]], is_held_out: list[bool]) -> list[tuple[str, str, str]]:
    return [
        (row["path"], row["label"], "validation" if held_out else "train")
        for row, held_out in zip(rows, is_held_out, strict=True)
    ]


def read_rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return [row | {"path": str(table.parent.resolve() / row["path"])} for row in csv.DictReader(file)]


def is_audio(path: Path) -> bool:
    try:
        decode(path.read_bytes(), 16_000, 1_600, 600)
    except BadAudio:
        return False
    return True


# Runs


def run(trial: Trial, data: Data, args: argparse.Namespace) -> None:
    """Train, keep a line of what came out, and remove the rest."""
    folder = args.output_dir / trial.name.replace("/", "-").replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "clips.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *data.rows(trial.data, trial.seed)])
    flags = ["--dataset", table, "--model", args.model, *trial.flags.split(), "--seed", trial.seed]
    where = ["--output-dir", folder / "run", "--overwrite", "--device", "cpu", "--log-every", 50]
    began = time.monotonic()
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run(
            [sys.executable, str(HERE.parent / "train.py"), *map(str, (*flags, *where))],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        print(f"{trial.name} failed: {folder / 'log.txt'}", flush=True)
        return
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    evaluations = [record for record in map(json.loads, lines) if record["kind"] == "eval"]
    last, best = evaluations[-1], max(evaluations, key=lambda record: record["accuracy"])
    result = {
        "name": trial.name,
        "minutes": (time.monotonic() - began) / 60,
        "steps": last["step"],
        "clips": last["num_clips"],
        "accuracy": last["accuracy"],  # of the last evaluation: nothing was chosen by it
        "loss": last["loss"],
        "best_accuracy": best["accuracy"],
        "flags": trial.flags,
    }
    with args.results.open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result), flush=True)
    shutil.rmtree(folder)


# Tables


def print_tables(results: list[dict[str, Any]]) -> None:
    """Mean accuracy of each recipe on each data set, and each ingredient's paired differences."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["name"].rpartition("/")[0], []).append(result)
    print("\nrecipe/model/data: accuracy of the last evaluation (of the best), mean over runs; minutes a run")
    for name, runs in groups.items():
        accuracy, best, minutes = (
            [run[key] for run in runs] for key in ("accuracy", "best_accuracy", "minutes")
        )
        each = ", ".join(f"{value:.1%}" for value in accuracy)
        print(
            f"{name:34} {statistics.mean(accuracy):7.2%} ({statistics.mean(best):.2%})  "
            f"{statistics.mean(minutes):5.1f} min  each: {each}"
        )
    print("\ningredients: difference in accuracy and in loss that it makes, with 95% intervals over seeds")
    for data in SHORT:
        for name in INGREDIENTS:
            for what, with_it, without in (
                ("added", f"only {name}", "none"),
                ("not left out", "all", f"no {name}"),
            ):
                pairs = paired(results, f"{with_it}/pretrained/{data}", f"{without}/pretrained/{data}")
                if len(pairs) > 1:
                    accuracy, loss = (
                        interval([one[key] - other[key] for one, other in pairs])
                        for key in ("accuracy", "loss")
                    )
                    print(f"{data:4} {name:6} {what:13} n={len(pairs)}  {accuracy}  loss {loss}")


def paired(results: list[dict[str, Any]], one: str, other: str) -> list[tuple[dict, dict]]:
    """Results of the same seed of two groups."""
    by_name = {result["name"]: result for result in results}
    names = [(f"{one}/{seed}", f"{other}/{seed}") for seed in range(100)]
    return [(by_name[a], by_name[b]) for a, b in names if a in by_name and b in by_name]


# Student's t for 95%, by the number of differences.
T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57}


def interval(differences: list[float]) -> str:
    mean = statistics.mean(differences)
    half = T[len(differences)] * statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("fsdd", "wake-words", "model", "output-dir"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument(
        "--only", default="*", help="patterns of the trials' names, recipe/model/data/seed, by commas"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print the trials' names")
    args = parser.parse_args()
    args.results = args.output_dir / "results.jsonl"
    args.output_dir.mkdir(parents=True, exist_ok=True)
    done = (
        [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    )
    names = {result["name"] for result in done}

    def is_wanted(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in args.only.split(","))

    to_do = [one for one in trials() if is_wanted(one.name) and one.name not in names]
    if args.list:
        print(*(trial.name for trial in to_do), sep="\n")
        return
    data = Data(args.fsdd, args.wake_words)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda trial: run(trial, data, args), to_do))
    print_tables([json.loads(line) for line in args.results.read_text().splitlines()])


if __name__ == "__main__":
    main()
