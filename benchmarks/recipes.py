"""What the recipes give on real recordings, and what each ingredient of `standard` gives by itself.

    python benchmarks/recipes.py --fsdd FOLDER --wake-words FOLDER --model FOLDER --output-dir FOLDER

FSDD is https://github.com/Jakobovski/free-spoken-digit-dataset with train.csv and test.csv (path, label,
speaker); wake words: https://github.com/Picovoice/wake-word-benchmark, 60 clips each in a folder a word;
the model is a pretrained encoder, such as OpenAI's Whisper tiny.en. Each study is one or more commands of
audiocls.compare and audiocls.folds, which are printed: started again, they go on where they were. Everything
is evaluated at the end alone, so that nothing is chosen by the clips it is judged by.
"""

import argparse
import csv
import fnmatch
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

RECIPES = {
    "standard": "--recipe standard",
    "frozen": "--recipe frozen",
    # What the README suggested for one's own clips before there was `standard`.
    "before": "--recipe guide --max-seconds none --batch-size 8 --gradient-accumulation-steps 1 --epochs 20 "
    "--learning-rate 1e-4 --cut-window",
    "guide": "--recipe guide --cut-window",
    "random": "--recipe scratch --model tiny",
}
# The ingredients of `standard`, and how each is left out.
WITHOUT = ("--no-head-first", "--augment none", "--no-head-first --augment none", "--augment speed,mask")
BALANCE = ("--balance-classes no", "--balance-classes yes")


def studies(args: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Each study's name and a command of it: a module's name, and its arguments."""
    tables, out = args.output_dir / "tables", args.output_dir
    recipes = [RECIPES[name] for name in args.recipes.split(",")]
    model = ["--model", args.model, "--eval-every", "end", *shlex.split(args.flags)]

    def compare(name: str, settings: list[str], seeds: int, *flags: object) -> tuple[str, list[str]]:
        where = ["--seeds", str(seeds), "--output-dir", str(out / name)]
        return name, ["audiocls.compare", *settings, *where, "--", *model, *map(str, flags)]

    yield compare("official", recipes, 3, "--dataset", tables / "official.csv")
    yield compare("words", recipes, 3, "--dataset", args.wake_words, "--split-by", "stratified")
    yield compare("few", recipes, 3, "--dataset", tables / "few.csv")
    folders = [str(out / "speakers" / name) for name in args.recipes.split(",")]
    by_speaker = ["--dataset", str(tables / "digits.csv"), "--group-column", "speaker"]
    for folder, recipe in zip(folders, recipes, strict=True):
        of_train = [*model, *by_speaker, *shlex.split(recipe)]
        yield "speakers", ["audiocls.folds", "speakers", "--output-dir", folder, "--", *of_train]
    if len(folders) > 1:
        yield "speakers", ["audiocls.compare", *folders, "--output-dir", str(out / "speakers")]
    # One speaker after the other is held out, as the seed has it.
    held_out = ["--group-column", "speaker", "--split-by", "group", "--max-steps", 400]
    yield compare("ingredients", ["", *WITHOUT], 6, "--dataset", tables / "800.csv", *held_out)
    yield compare("uneven", list(BALANCE), 6, "--dataset", tables / "uneven.csv", *held_out)


def write_tables(args: argparse.Namespace) -> None:
    """The data of the studies, as tables with the columns path, label, speaker, split."""
    generator = np.random.default_rng(5)
    official = [
        row | {"split": split} for split in ("train", "test") for row in read_rows(args.fsdd / f"{split}.csv")
    ]
    digits = [row | {"split": "train"} for row in official]
    mixed = [digits[index] for index in generator.permutation(len(digits))]
    names = sorted({row["label"] for row in digits})
    of_each = {name: [row for row in mixed if row["label"] == name] for name in names}
    uneven = [row for number, name in enumerate(names) for row in of_each[name][: (72, 6)[number % 2]]]
    few = []  # 8 clips of each word to train on
    for word in sorted(path for path in args.wake_words.iterdir() if path.is_dir()):
        clips = sorted(path for path in word.iterdir() if path.suffix in (".wav", ".flac"))
        for place, index in enumerate(generator.permutation(len(clips))):
            split = "train" if place < 8 else "test"
            few.append({"path": str(clips[index]), "label": word.name, "speaker": "", "split": split})
    folder = args.output_dir / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"official": official, "digits": digits, "800": mixed[:800], "uneven": uneven, "few": few}
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, ["path", "label", "speaker", "split"])
            table.writeheader()
            table.writerows(rows)


def read_rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return [row | {"path": str(table.parent.resolve() / row["path"])} for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("fsdd", "wake-words", "model", "output-dir"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument(
        "--recipes", default="standard,frozen,before,guide,random", help="of these, by commas"
    )
    parser.add_argument("--only", default="*", help="patterns of the studies' names, by commas")
    parser.add_argument("--flags", default="", help="further flags of train.py, for all")
    args = parser.parse_args()
    args.model = str(args.model)
    write_tables(args)
    for name, command in studies(args):
        if any(fnmatch.fnmatch(name, pattern) for pattern in args.only.split(",")):
            print(f"\n{name}: python -m {shlex.join(command)}", flush=True)
            subprocess.run([sys.executable, "-m", *command], check=True)


if __name__ == "__main__":
    main()
