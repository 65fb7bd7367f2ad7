"""The commands audiocls-train and audiocls-infer: train.py and infer.py, wherever audiocls is installed.

In a clone the scripts lie beside the package, in a wheel within it, in scripts/.
"""

import importlib.util
import shlex
import sys
from pathlib import Path

from audiocls.errors import exit_code_of

INSTALLED = Path(__file__).with_name("scripts")
IS_CLONE = not INSTALLED.is_dir()


def script(name: str) -> Path:
    """Where train.py or infer.py lies; `name` is without ".py"."""
    return (Path(__file__).resolve().parent.parent if IS_CLONE else INSTALLED) / f"{name}.py"


def to_type(name: str, *arguments: str, folder: str | None = None) -> str:
    """What to type in a shell for a script: `python train.py --demo`, or installed `audiocls-train --demo`.

    In a clone the script is named in `folder`; without one, as it was in the command that runs now.
    """
    running = Path(sys.argv[0])
    if not IS_CLONE or running.stem in ("audiocls-train", "audiocls-infer"):
        return shlex.join([f"audiocls-{name}", *arguments])
    if folder is None:
        folder = str(running.parent) if running.name in ("train.py", "infer.py") else ""
    return shlex.join(["python", str(Path(folder) / f"{name}.py"), *arguments])


def train() -> int:
    return run("train")


def infer() -> int:
    return run("infer")


def run(name: str) -> int:
    """Run a script in this process and return its exit code."""
    spec = importlib.util.spec_from_file_location(name, script(name))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return exit_code_of(module.main)
