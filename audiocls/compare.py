"""Settings of train.py compared by what comes out of them: `python -m audiocls.compare --help`."""

import dataclasses
import hashlib
import os
import re
import shlex
import string
import sys
from pathlib import Path
from typing import Any

from audiocls.code_hash import code_hash, code_of
from audiocls.config import TrainConfig
from audiocls.errors import OK, UserError, exit_code_of
from audiocls.flags import as_typed, parse_compare, parse_train, read_config_file
from audiocls.recipes import RECIPES
from audiocls.reporting.comparison import check_comparable, compare
from audiocls.reporting.comparison_page import in_lines, page
from audiocls.reporting.results import begun_with, read_run
from audiocls.reporting.run_index import update_index
from audiocls.reporting.runs import Run, Setting
from audiocls.reporting.wrap_up import noted
from audiocls.signals import StopSignal
from audiocls.storage import failing_as, write_json, write_text
from audiocls.streams import say
from audiocls.training.run_folder import holds_run, short_name
from audiocls.trials import NOT_SHARED, Trial, check_shared, is_finished, run_trials

SEEDS = 3  # of each setting, unless said


def main() -> int:
    stop = StopSignal()
    own, shared = parse_compare(sys.argv[1:])
    given = [setting.strip() for setting in own.settings]
    runs = [folder_of(setting) for setting in given if is_run(setting)]
    if runs:  # as in a run that is there, so that the same clips are held out
        shared = ["--seed", str(config_of_run(runs[0]).seed), *shared]
    num_seeds = own.seeds or (1 if runs else SEEDS)
    configs = [config_of(setting, shared) for setting in given]
    folds = [folder for folder in runs if is_folds(folder)]
    if folds and (len(folds) < len(given) or num_seeds > 1):
        raise UserError(f"{folds[0]} holds folds: compare it with folders of folds alone, without --seeds.")
    name = f"compare-{short_name(configs[0].dataset)}"
    folder = Path(os.path.expanduser(own.output_dir or f"runs/{name}"))
    if holds_run(folder):
        raise UserError(f"{folder} holds a run: name another --output-dir.")

    made: dict[str, Path] = {}  # the folder of settings that are the same but for their wording
    trials = [
        [trial_of(setting, config, number, folder, made) for number in range(num_seeds)]
        for setting, config in zip(given, configs, strict=True)
    ]
    settings = [
        Setting(letter, setting or "no flags", [Run(trial.folder) for trial in some])
        for letter, setting, some in zip(string.ascii_uppercase, given, trials, strict=False)
    ]
    # One of each first: what cannot be compared is found out before the others are made.
    run_trials([some[0] for some in trials], stop)
    check_comparable([dataclasses.replace(one, runs=one.runs[:1]) for one in settings])
    if num_seeds > 1:
        run_trials([some[number] for number in range(1, num_seeds) for some in trials], stop)
    comparison = compare(settings)
    with failing_as(folder):
        folder.mkdir(parents=True, exist_ok=True)
    page_name = name_of([some[0].folder for some in trials], given)
    write_json(folder / f"{page_name}.json", comparison)
    write_text(folder / f"{page_name}.html", page(comparison, folder))
    with noted("the index of the runs"):
        update_index(folder)
    for line in in_lines(comparison):
        say(line)
    say(f"the same as a page: {folder}/{page_name}.html")
    stop.ignore()
    return OK


def folder_of(setting: str) -> Path:
    return Path(os.path.expanduser(setting))


def is_run(setting: str) -> bool:
    return setting != "" and os.path.exists(folder_of(setting) / "run.json")


def config_of(setting: str, shared: list[str]) -> TrainConfig:
    """What a setting means: its own flags win over those that all have in common. A run's is as it was.

    Raises UserError.
    """
    if is_run(setting):
        return config_of_run(folder_of(setting))
    if setting and not setting.startswith("-"):
        if not os.path.isfile(folder_of(setting)):
            what = "is no run's folder" if os.path.exists(folder_of(setting)) else "is not there"
            meant = f'. Is "--recipe {setting}" meant?' if setting in RECIPES else "."
            raise UserError(f"{setting} {what}, and no flag of train.py{meant}")
        settings = read_config_file(folder_of(setting))
        flags = [word for one in settings.items() for word in as_typed(*one).split(" ", 1)]
    else:
        try:
            flags = shlex.split(setting)
        except ValueError as error:
            raise UserError(f"{setting!r}: {error}.") from None
    if "--config" in flags and "--config" in shared:
        raise UserError(f"{setting}: --config stands after --, too: give the file itself as the setting.")
    return check_shared(parse_train([*shared, *flags]), "compare")


def config_of_run(folder: Path) -> TrainConfig:
    """The config that a run began with."""
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    config = begun_with(folder)["config"]
    return TrainConfig(**{name: value for name, value in config.items() if name in known})


def is_folds(folder: Path) -> bool:
    """Whether a folder is one that folds.py pooled: no run of its own."""
    results = read_run(folder)
    return bool(results.folds) and not results.last("end")


def trial_of(setting: str, config: TrainConfig, number: int, folder: Path, made: dict[str, Path]) -> Trial:
    """The run of a setting with its seed and so many more; of a run's folder it is the first.

    `made` has the folders that were given to settings before it, by their digest.
    """
    title = setting or "no flags"
    alone: dict[str, Any] = {name: getattr(TrainConfig, name) for name in NOT_SHARED}
    config = dataclasses.replace(config, seed=config.seed + number, **alone)
    if number == 0 and is_run(setting):
        return Trial(title, folder_of(setting), config, is_given=True)
    if is_run(setting) and code_of(folder_of(setting)) != code_hash():
        beside = folder_of(setting).with_name(f"seed-{config.seed}")  # as an earlier comparison made it
        if folder_of(setting).name.startswith("seed-") and is_finished(beside):
            return Trial(title, beside, config, is_given=True)
        raise UserError(
            f"{setting} was made by other code than this is now, which cannot make its seed {config.seed}: "
            "leave out --seeds, or let compare make the seeds before the code is changed."
        )
    trial = Trial(f"{title}, seed {config.seed}", folder, config)
    there = sorted(folder.glob(f"*-{trial.digest}"))  # of whatever wording
    own = made.setdefault(trial.digest, there[0] if there else folder / f"{slug(setting)}-{trial.digest}")
    return dataclasses.replace(trial, folder=own / f"seed-{config.seed}")


def name_of(folders: list[Path], given: list[str]) -> str:
    """The name of the page of a comparison, which no other one has: by its settings and their first runs."""
    digest = hashlib.sha256("\0".join(map(os.path.realpath, folders)).encode(errors="replace")).hexdigest()
    return f"{'-vs-'.join(map(slug, given))[:100]}-{digest[:6]}"


def slug(setting: str) -> str:
    """A setting as a part of a file's name."""
    words = Path(setting).name.removesuffix(".toml").removesuffix(".json")
    words = setting if setting.startswith("-") else words
    return re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.")[:40] or "no-flags"


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
