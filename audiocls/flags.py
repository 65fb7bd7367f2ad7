"""The flags of train.py and infer.py, and config files: derived from the two dataclasses of config.py."""

import argparse
import dataclasses
import difflib
import json
import math
import os
import tomllib
import typing
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

from audiocls.config import RECIPES, InferConfig, TrainConfig
from audiocls.errors import InputOutputFailed, UserError

Config = TypeVar("Config", TrainConfig, InferConfig)

MOST = 2**31 - 1  # of a whole number of anything
KIND_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a name",
    bool: "true or false",
    type(None): "none",
}


def parse_train(argv: list[str]) -> TrainConfig:
    """train.py's flags, with defaults < recipe < `--config FILE` < flags. Raises UserError."""
    about = "Fine-tune a speech encoder to classify audio. The defaults are the Hugging Face guide's."
    parser = make_parser(TrainConfig, "train.py [options]", about)
    sets = parser.add_argument_group("sets of settings")
    sets.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        help="scratch: a tiny model from random weights; demo: the same on synthetic data (default: guide)",
    )
    sets.add_argument("--demo", action="store_const", const="demo", help="short for --recipe demo")
    sets.add_argument(
        "--config", metavar="FILE", help="settings from a .toml or .json file, or from a run's run.json"
    )
    flags = vars(parser.parse_args(argv))
    recipe, demo, file = (flags.pop(name, None) for name in ("recipe", "demo", "config"))
    if demo and recipe not in (None, "demo"):
        raise UserError(f"--demo is short for --recipe demo: leave out --recipe {recipe}.")
    settings = read_config_file(Path(os.path.expanduser(file))) if file else {}
    file_recipe = settings.pop("recipe", "guide")
    recipe = demo or recipe or file_recipe
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise UserError(f"{file} names the recipe {recipe!r}. There are: {', '.join(RECIPES)}.")
    return build(TrainConfig, RECIPES[recipe] | settings | flags)


def parse_infer(argv: list[str]) -> InferConfig:
    """infer.py's flags. Raises UserError."""
    usage = "infer.py MODEL (INPUTS ... | --dataset NAME | --export FORMAT --output FILE) [options]"
    parser = make_parser(InferConfig, usage, "Classify audio files with a fine-tuned model.")
    return build(InferConfig, vars(parser.parse_intermixed_args(argv)))  # flags may stand between inputs


def make_parser(config: type, usage: str, description: str) -> argparse.ArgumentParser:
    """A parser whose result holds only what was typed, so that the layers below it keep their say."""
    parser = Parser(
        prog=usage.split(maxsplit=1)[0],
        usage=usage,
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    groups: dict[str, Any] = {"": parser}
    for field in dataclasses.fields(config):
        about = field.metadata
        if (group := about["group"]) not in groups:
            groups[group] = parser.add_argument_group(group)
        target = groups[group]
        shown = "" if field.default is None or field.type is bool else f" (default: {field.default})"
        help = (about["help"] + shown).replace("%", "%%")
        if about["positional"]:
            nargs = None if about["positional"] == "1" else about["positional"]
            optional = {"default": ()} if nargs == "*" else {}
            target.add_argument(
                field.name, nargs=nargs, metavar=field.name.upper(), help=about["help"], **optional
            )
        elif field.type is bool:
            for value in (not field.default, field.default):  # the default, too: it wins over a file
                flag = flag_name(field.name if value else f"no_{field.name}")
                shown = help if value != field.default else argparse.SUPPRESS
                target.add_argument(flag, dest=field.name, action="store_const", const=value, help=shown)
        else:
            metavar = about["metavar"] or (
                "{" + ",".join(about["choices"]) + "}" if about["choices"] else None
            )
            target.add_argument(
                flag_name(field.name), metavar=metavar or kinds(field)[0].__name__.upper(), help=help
            )
    return parser


class Parser(argparse.ArgumentParser):
    """argparse, with its mistakes told as ours are: in one line."""

    def error(self, message: str) -> typing.NoReturn:
        typed = message.removeprefix("unrecognized arguments: ").split()[:1]
        if message.startswith("unrecognized") and (
            near := difflib.get_close_matches(typed[0], self._option_string_actions, n=1)
        ):
            message += f" (did you mean {near[0]}?)"
        raise UserError(f"{message}. See {self.prog} --help.")


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
            problems.append(str(error))
    made = config(**values)
    problems += made.problems()
    if problems:
        raise UserError(" ".join(problems))
    return made


def check(field: dataclasses.Field, value: Any) -> Any:
    """`value`, converted from text where it was typed. Raises ValueError saying what is allowed."""
    about, allowed = field.metadata, kinds(field)
    if about["positional"] == "*":
        return tuple(value)
    if isinstance(value, str) and value.lower() == "none" and type(None) in allowed:
        value = None
    if isinstance(value, str):
        for kind in (kind for kind in (int, float) if kind in allowed):
            try:
                value = kind(value)
                break
            except ValueError:
                continue
    if type(value) is int and float in allowed:
        value = float(value)
    if type(value) not in allowed:
        raise ValueError(
            f"{flag_name(field.name)} is {value!r}: give {' or '.join(KIND_NAMES[kind] for kind in allowed)}."
        )
    if value == "":
        raise ValueError(f"{flag_name(field.name)} is empty: give a name.")
    if isinstance(value, str) and not can_be_a_name(value):
        raise ValueError(f"{flag_name(field.name)} is {value!r}, which no name can be.")
    if about["choices"] and value not in about["choices"]:
        raise ValueError(f"{flag_name(field.name)} is {value!r}: give one of {', '.join(about['choices'])}.")
    if isinstance(value, int | float):
        low, high, above = about["minimum"], about["maximum"], about["above"]
        if not math.isfinite(value):
            raise ValueError(f"{flag_name(field.name)} is {value}: give a finite number.")
        if above is not None and value <= above:
            raise ValueError(f"{flag_name(field.name)} is {value}: give a number above {above}.")
        if low is not None and value < low:
            raise ValueError(f"{flag_name(field.name)} is {value}: {low} is the least.")
        high = MOST if high is None and isinstance(value, int) else high
        if high is not None and value > high:
            raise ValueError(f"{flag_name(field.name)} is {value}: {high} is the most.")
    return value


def can_be_a_name(text: str) -> bool:
    """Whether a file or a repository can have such a name."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


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
    # Where a run was written, and whether it replaced another, is no part of what it did.
    places = ("output_dir", "overwrite", "resume", "push_to_hub", "push_dry_run")
    once = places if path.name == "run.json" else ()
    return {name.replace("-", "_"): value for name, value in settings.items() if name not in once}
