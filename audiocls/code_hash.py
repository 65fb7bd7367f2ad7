"""Which code makes a run: people change it, and runs of two states of it must not pass for one."""

import functools
import hashlib
from pathlib import Path

from audiocls.commands import script

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
