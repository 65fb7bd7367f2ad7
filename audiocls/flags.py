"""The flags of train.py and infer.py, and config files: derived from the two dataclasses of config.py."""

import argparse
import contextlib
import dataclasses
import difflib
import json
import math
import os
import tomllib
import typing
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar

from audiocls.commands import to_type
from audiocls.config import GUIDE_DATASET, CompareConfig, FoldsConfig, InferConfig, TrainConfig
from audiocls.errors import InputOutputFailed, UserError
from audiocls.recipes import RECIPES, settings_of, usual_recipe

Config = TypeVar("Config", TrainConfig, InferConfig, CompareConfig, FoldsConfig)

AFTER = "Flags of train.py stand after --. "
LIST = object()  # the value of --recipe without a name
# Where a run was written, and whether it replaced another, is no part of what it did.
NOT_REPEATED = {"output_dir", "overwrite", "resume", "push_to_hub", "push_dry_run"}
MOST = 2**31 - 1  # of a whole number of anything
KIND_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a name",
    bool: "true or false",
    NoneType: "none",
}


def parse_train(argv: list[str], usual: dict[str, Any] | None = None) -> TrainConfig:
    """train.py's flags, with defaults < recipe < `usual` < `--config FILE` < flags. Raises UserError.

    --recipe without a name lists the recipes and exits.
    """
    about = "Fine-tune a speech encoder to classify audio."
    parser = make_parser(TrainConfig, to_type("train"), "[options]", about)
    sets = parser.add_argument_group("short forms and files")
    sets.add_argument("--demo", action="store_const", const="demo", help="short for --recipe demo")
    sets.add_argument(
        "--freeze-feature-encoder",
        dest="freeze",
        action="store_const",
        const="feature-encoder",
        help="short for --freeze feature-encoder",
    )
    sets.add_argument(
        "--config", metavar="FILE", help="settings from a .toml or .json file, or from a run's run.json"
    )
    flags = vars(parser.parse_args(argv))
    recipe, demo, file = (flags.pop(name, None) for name in ("recipe", "demo", "config"))
    if recipe is LIST:
        print(listing())
        raise SystemExit(0)
    if demo and recipe not in (None, "demo"):
        raise UserError(f"--demo is short for --recipe demo: leave out --recipe {recipe}.")
    settings = read_config_file(Path(os.path.expanduser(file))) if file else {}
    dataset = flags.get("dataset", settings.get("dataset", GUIDE_DATASET))
    recipe = demo or recipe or settings.get("recipe", usual_recipe(dataset))
    all_names = {field.name for field in dataclasses.fields(TrainConfig)} - NOT_REPEATED
    if settings.keys() >= all_names and recipe != settings["recipe"]:
        raise UserError(
            f"--config {file} holds all settings of a run of --recipe {settings['recipe']}: leave out "
            f"--recipe {recipe}, or --config."
        )
    typed = settings | flags | {"recipe": recipe}
    is_known = isinstance(recipe, str) and recipe in RECIPES
    below = settings_of(recipe, typed) if is_known else {}
    return build(TrainConfig, below | (usual or {}) | typed)


def parse_infer(argv: list[str]) -> InferConfig:
    """infer.py's flags. Raises UserError."""
    usage = "MODEL (INPUTS ... | --dataset NAME | --export FORMAT --output FILE) [options]"
    about = "Classify audio files with a fine-tuned model."
    parser = make_parser(InferConfig, to_type("infer"), usage, about)
    return build(InferConfig, vars(parser.parse_intermixed_args(argv)))  # flags may stand between inputs


def parse_compare(argv: list[str]) -> tuple[CompareConfig, list[str]]:
    """compare.py's flags, and those of train.py that follow --. Raises UserError."""
    usage = "A B ... [options] [-- flags of train.py that all have in common]"
    about = (
        "Train with each of several settings, over several seeds, and say how each differs from the first. "
        "Runs that are there are not made again: the same command goes on, and more --seeds only add some."
    )
    parser = make_parser(CompareConfig, "python -m audiocls.compare", usage, about, AFTER)
    own, shared = divided(argv, parser)
    ours = parser._option_string_actions.keys()
    with_value = {flag_name(one.name) for one in dataclasses.fields(TrainConfig) if one.type is not bool}
    if alone := [word for word in own if word in with_value - ours]:
        raise UserError(
            f'A setting stands in quotes, as "{alone[0]} VALUE"; what all have in common stands after --.'
        )
    # A setting may be one flag, "--cut-window": with a space before it, it is none of ours.
    own = [f" {word}" if word.startswith("-") and word.split("=")[0] not in ours else word for word in own]
    return build(CompareConfig, vars(parser.parse_intermixed_args(own))), shared


def parse_folds(argv: list[str]) -> tuple[FoldsConfig, list[str]]:
    """folds.py's flags, and those of train.py that follow --. Raises UserError."""
    usage = "NUMBER|speakers [options] -- flags of train.py"
    about = (
        "Cross-validation: score every clip by a model that never heard it, and find doubtful labels. Runs "
        "that are there are not made again: the same command goes on."
    )
    parser = make_parser(FoldsConfig, "python -m audiocls.folds", usage, about, AFTER)
    own, shared = divided(argv, parser)
    return build(FoldsConfig, vars(parser.parse_args(own))), shared


def divided(argv: list[str], parser: "Parser") -> tuple[list[str], list[str]]:
    """What stands before the first --, for the parser, and after it, for train.py. Raises UserError."""
    place = argv.index("--") if "--" in argv else len(argv)
    of_train = {flag_name(field.name) for field in dataclasses.fields(TrainConfig)}
    for word in argv[place + 1 :]:
        if word.split("=")[0] in parser._option_string_actions.keys() - of_train - {"-h", "--help"}:
            raise UserError(f"{word} is a flag of {parser.prog}: it stands before --.")
    return argv[:place], argv[place + 1 :]


def listing() -> str:
    """Every recipe with its settings and where they come from, as --recipe prints it."""
    lines = []
    for name, recipe in RECIPES.items():
        lines.append(f"{name}: {recipe.about}")
        lines += [
            f"  {as_typed(setting, value):34} {why}".rstrip()
            for setting, (value, why) in recipe.settings.items()
        ]
    return "\n".join(lines)


def make_parser(config: type, prog: str, usage: str, description: str, hint: str = "") -> "Parser":
    """A parser that returns only the flags that were typed: recipe, file and default decide the others.

    `prog` is the command, and `usage` what follows it; the `hint` is a sentence for its errors.
    """
    parser = Parser(
        prog=prog,
        usage=f"%(prog)s {usage}",
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.hint = hint
    target: Any = parser
    for field in dataclasses.fields(config):
        about = field.metadata
        if about["group"]:
            target = parser.add_argument_group(about["group"])
        help = about["help"]
        standard = RECIPES["standard"].settings.get(field.name) if config is TrainConfig else None
        if field.name == "recipe":
            help += f" (default: standard; guide for {GUIDE_DATASET})"
        elif standard and standard.value != field.default:
            of_standard, of_guide = ("none" if v is None else v for v in (standard.value, field.default))
            help += f" (default: {of_standard}; guide: {of_guide})" if field.type is not bool else ""
        elif field.default not in (None, "", ()) and field.type is not bool:
            help += f" (default: {field.default})"
        help = help.replace("%", "%%")
        if about["positional"]:
            nargs = "*" if field.type == tuple[str, ...] else None
            target.add_argument(field.name, nargs=nargs, default=(), metavar=field.name.upper(), help=help)
        elif field.type is bool:
            for value in (not field.default, field.default):  # the default, too: it wins over a file
                flag = flag_name(field.name if value else f"no_{field.name}")
                shown = help if value != field.default else argparse.SUPPRESS
                target.add_argument(flag, dest=field.name, action="store_const", const=value, help=shown)
        else:
            allowed = "|".join([kinds(field)[0].__name__.upper(), *about["words"]])
            if about["choices"]:
                allowed = "{" + ",".join(about["choices"]) + "}"
            name, metavar = flag_name(field.name), about["metavar"] or allowed
            if field.name == "recipe":
                target.add_argument(name, metavar=metavar, nargs="?", const=LIST, help=help)
            else:
                target.add_argument(name, metavar=metavar, help=help)
    return parser


class Parser(argparse.ArgumentParser):
    """argparse, its errors raised as UserError."""

    hint = ""

    def error(self, message: str) -> typing.NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].partition(" ")[0]
        if near := difflib.get_close_matches(unknown, self._option_string_actions, n=1):
            message += f" (did you mean {near[0]}?)"
        raise UserError(f"{message}. {self.hint}See {self.prog} --help.")


def build(config: Callable[..., Config], settings: dict[str, Any]) -> Config:
    """A config from checked settings. Raises UserError that lists every problem at once."""
    fields = {field.name: field for field in dataclasses.fields(typing.cast(type, config))}
    values, problems = {}, []
    for name, value in settings.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            problems.append(f"There is no setting {name!r}{f': did you mean {near[0]!r}?' if near else '.'}")
            continue
        try:
            values[name] = check(fields[name], value)
        except OverflowError:
            problems.append(f"{flag_name(name)} is too large a number.")
        except ValueError as error:
            problems.append(f"{flag_name(name)} {error}")
    made = config(**values)
    problems += made.problems()
    if problems:
        raise UserError(" ".join(problems))
    return made


def check(field: dataclasses.Field, value: Any) -> Any:
    """`value`, converted from text where it was typed.

    Raises ValueError with what is said after the flag's name: "is 0: 1 is the least."
    """
    about, allowed = field.metadata, kinds(field)
    if field.type == tuple[str, ...]:
        return tuple(value)
    if isinstance(value, str) and value.lower() == "none" and NoneType in allowed:
        value = None
    for kind in (int, float):
        if kind in allowed and isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = kind(value)
    if type(value) is int and float in allowed:
        value = float(value)
    words = about["words"]  # in the place of any text
    if type(value) not in allowed or (words and isinstance(value, str) and value not in words):
        meant = [KIND_NAMES[kind] for kind in allowed if not (words and kind is str)]
        raise ValueError(f"is {value!r}: give {' or '.join([*meant, *map(repr, words)])}.")
    if value == "":
        raise ValueError("is empty: give a name.")
    if isinstance(value, str) and not can_be_a_name(value):
        raise ValueError(f"is {value!r}, which no name can be.")
    if about["choices"] and value not in about["choices"]:
        raise ValueError(f"is {value!r}: give one of {', '.join(about['choices'])}.")
    if isinstance(value, int | float):
        most = MOST if isinstance(value, int) and about["most"] == math.inf else about["most"]
        if not math.isfinite(value):
            raise ValueError(f"is {value}: give a finite number.")
        if value <= about["above"]:
            raise ValueError(f"is {value}: give a number above {about['above']}.")
        if value < about["least"]:
            raise ValueError(f"is {value}: {about['least']} is the least.")
        if value > most:
            raise ValueError(f"is {value}: {most} is the most.")
    return value


def can_be_a_name(text: str) -> bool:
    """Whether a file or a repository can have such a name."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def as_typed(name: str, value: Any) -> str:
    """A setting as it is typed: `--batch-size 8`, `--cut-window`, `--no-cut-window`."""
    if isinstance(value, bool):
        return flag_name(name if value else f"no_{name}")
    return f"{flag_name(name)} {'none' if value is None else value}"


def kinds(field: dataclasses.Field) -> tuple[type, ...]:
    """The types a field takes: (int, NoneType) of `int | None`."""
    hint: Any = field.type
    return typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings in a .toml or .json file; of a run.json, those of its run."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputOutputFailed(f"--config {path} cannot be read: {error}.") from None
    try:
        settings = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config {path} is not valid {path.suffix[1:] or 'json'}: {error}.") from None
    if not isinstance(settings, dict):
        raise UserError(f"--config {path} must hold names and values, as {{'epochs': 5}}.")
    if isinstance(settings.get("config"), dict):
        settings = settings["config"]
    once = NOT_REPEATED if path.name == "run.json" else set()
    return {name.replace("-", "_"): value for name, value in settings.items() if name not in once}
