"""Write the settings of config.py and recipes.py into docs/reference.md."""

import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from audiocls.config import CompareConfig, FoldsConfig, InferConfig, TrainConfig
from audiocls.flags import flag_name, kinds
from audiocls.recipes import RECIPES

PAGE = Path(__file__).with_name("reference.md")
SETTINGS = {
    "train.py": TrainConfig,
    "infer.py": InferConfig,
    "audiocls.compare": CompareConfig,
    "audiocls.folds": FoldsConfig,
}
BEGIN, END = "<!-- settings: made by docs/make_reference.py -->\n", "<!-- end of settings -->\n"


def settings() -> str:
    """A table for each program, with a row a setting."""
    parts = []
    for program, config in SETTINGS.items():
        parts += [f"### {program}\n", *rows(config), ""]
    return "\n".join(parts)


def rows(config: type) -> Iterator[str]:
    is_train = config is TrainConfig
    yield "| | | " + ("`standard` | `guide` |" if is_train else "default |")
    yield "|---|---|---|" + ("---|" if is_train else "")
    for field in dataclasses.fields(config):
        about = field.metadata
        if about["group"]:
            yield f"| **{about['group']}** | | |" + (" |" if is_train else "")
        name = field.name if about["positional"] else flag_name(field.name)
        if field.type is bool and field.default:  # as in --help, what is typed is the other one
            name = flag_name(f"no_{field.name}")
        elif field.type is not bool and not about["positional"]:
            allowed = [kinds(field)[0].__name__, *about["words"]]
            choices = about["choices"] or ([about["metavar"]] if about["metavar"] else allowed)
            name += " " + "\\|".join(choices)
        values = [shown(field.default)]
        if is_train:
            standard = RECIPES["standard"].settings.get(field.name)
            values.insert(0, shown(standard.value) if standard else values[0])
        if field.name == "recipe" or (field.type is bool and field.default):
            values = [""] * len(values)
        text = about["help"].replace("|", "\\|")
        yield f"| `{name}` | {text} | {' | '.join(values)} |"


def shown(value: Any) -> str:
    """As in a cell; nothing for what is off."""
    return "" if value is None or value in (False, "", ()) else "on" if value is True else f"`{value}`"


def with_settings(page: str) -> str:
    pattern = re.escape(BEGIN) + ".*" + re.escape(END)
    return re.sub(pattern, lambda _: f"{BEGIN}\n{settings()}\n{END}", page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(with_settings(PAGE.read_text()))
