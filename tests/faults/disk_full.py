"""A disk that fills up, at any size: exit 4, what was saved stays whole, and with room the run goes on."""

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cases import Tally, parse
from training_runs import Child, Workplace, workplace
from what_is_left import damaged, differences, fingerprint, leftovers

PAGE = 4096
ENOUGH = 64_000_000  # bytes
SETTINGS = {"checkpoint_every": 3}


def mount(folder: Path, size: int) -> bool:
    """Put a disk of `size` bytes in the place of `folder`, or change its size; False where it may not."""
    if shutil.which("mount") is None:
        return False
    how = "remount," if folder.is_mount() else ""
    command = ["mount", "-t", "tmpfs", "-o", f"{how}size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def limit_files(size: int) -> Callable[[Any], None]:
    """In a child: no file may grow beyond `size` bytes."""
    return lambda tell: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def fill(place: Workplace, disk: Path, size: int, has_disk: bool) -> tuple[str, list[str]]:
    """Run with room for `size` bytes, then with enough; returns how the first ended, and what is wrong."""
    run = disk / "run"
    if has_disk:
        mount(disk, max(1, size // PAGE) * PAGE)
    child = Child(place.arguments(run, **SETTINGS), None if has_disk else limit_files(size)).wait()
    found = damaged(run) + leftovers(run)
    if child.code not in (0, 4) or child.errors.count("\n") != (child.code == 4):
        found.append(f"ended with {child.code}: {child.errors}")
    how = f"exit {child.code}{'' if (run / 'run.json').exists() else ' before anything was written'}"
    if has_disk:
        mount(disk, ENOUGH)
    place.run(run, **SETTINGS)
    found += differences(run, fingerprint(place.folder / "whole"))
    shutil.rmtree(run)
    return how, found


def main() -> int:
    options = parse(__doc__, count=30)
    tally = Tally("disk full")
    with workplace() as place:
        whole, disk = place.folder / "whole", place.folder / "disk"
        place.run(whole, **SETTINGS)
        files = [path.stat().st_size for path in whole.rglob("*") if path.is_file()]
        disk.mkdir()
        has_disk = mount(disk, ENOUGH)
        (disk / "somebody's").write_bytes(bytes(PAGE))  # the smallest disk is full
        # A whole run needs more than what it leaves: a checkpoint is written before one is dropped.
        most = 1.8 * sum(files) if has_disk else max(files)
        try:
            for size in np.linspace(0 if has_disk else 100, most, options.count).astype(int).tolist():
                how, found = fill(place, disk, size, has_disk)
                tally.add(f"{size} bytes", found)
                tally.count(how)
        finally:
            if has_disk:
                subprocess.run(["umount", str(disk)], check=True)
    how = "of a tmpfs" if has_disk else "of a file, by RLIMIT_FSIZE: no tmpfs may be mounted here"
    return tally.end(f", sizes {how}, up to {most:.0f} bytes")


if __name__ == "__main__":
    sys.exit(main())
