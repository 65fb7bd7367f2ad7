"""Which code makes a run: people change it, and runs of two states of it must not pass for one."""

import functools
import hashlib
import json
from pathlib import Path

from audiocls.commands import script
from audiocls.errors import InputOutputFailed
from audiocls.storage import READ_ERRORS

PACKAGE = Path(__file__).parent
SHOW_ONLY = ("inference", "log", "reporting", "scripts")  # decide nothing about what a run comes to


@functools.cache
def code_hash() -> str:
    """12 hexadecimal digits for the sources that decide what a run comes to."""
    sources = [
        path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] not in SHOW_ONLY
    ]
    content = hashlib.sha256()
    for path in [*sources, script("train")]:
        content.update(hashlib.sha256(path.read_bytes()).digest())
    return content.hexdigest()[:12]


def code_of(run_folder: Path) -> str | None:
    """The code that made a run, as `code_hash` gives it; where it has changed since, each, with "then".

    None where there is no run.json.
    """
    path = run_folder / "run.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["versions"].get("code", "unknown"))
    except FileNotFoundError:
        return None
    except READ_ERRORS as error:
        raise InputOutputFailed(f"{path} cannot be read: {error}.") from None
