"""A disk that fills up, at any size: exit 4, what was saved stays whole, and with room the run goes on."""

import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from training_runs import Child, Tally, damaged, differences, fingerprint, leftovers, parse, workplace

PAGE = 4096
ENOUGH = 64_000_000  # bytes


def mount(folder: Path, size: int) -> bool:
    """Put a disk of `size` bytes in the place of `folder`, or change its size."""
    how = "remount," if folder.is_mount() else ""
    command = ["mount", "-t", "tmpfs", "-o", f"{how}size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def limit_files(size: int) -> Any:
    """In a child: no file may grow beyond `size` bytes."""
    return lambda tell: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def main() -> int:
    options = parse(__doc__, count=30)
    tally = Tally("disk full")
    slowest = 0.0
    with workplace() as place:
        whole = place.folder / "whole"
        place.run(whole, checkpoint_every=3)
        expected = fingerprint(whole)
        files = [path.stat().st_size for path in whole.rglob("*") if path.is_file()]
        disk = place.folder / "disk"
        disk.mkdir()
        has_disk = mount(disk, ENOUGH)
        (disk / "somebody's").write_bytes(bytes(PAGE))  # the smallest disk is full
        # A whole run needs somewhat more than what it leaves: a checkpoint is written before one is dropped.
        most = 1.8 * sum(files) if has_disk else max(files)
        try:
            for number, size in enumerate(
                np.linspace(0 if has_disk else 100, most, options.count).astype(int)
            ):
                pages = max(1, int(size) // PAGE)
                run = disk / f"run-{number}"
                limit = None if has_disk and mount(disk, pages * PAGE) else limit_files(int(size))
                began = time.monotonic()
                child = Child(place.arguments(run, checkpoint_every=3), limit).wait()
                slowest = max(slowest, time.monotonic() - began)
                found = damaged(run) + leftovers(run)
                if child.code == 4:
                    found += [f"said: {child.errors}"] if child.errors.count("\n") != 1 else []
                elif child.code != 0:
                    found.append(f"ended with {child.code}: {child.errors}")
                tally.count(
                    "refused" if child.code == 4 and not (run / "run.json").exists() else f"exit {child.code}"
                )
                if has_disk:
                    mount(disk, ENOUGH)
                place.run(run, checkpoint_every=3)
                tally.add(f"{size} bytes", found + differences(run, expected))
                subprocess.run(["rm", "-r", str(run)], check=True)
        finally:
            if has_disk:
                subprocess.run(["umount", str(disk)], check=True)
    how = "of a tmpfs" if has_disk else "of a file, by RLIMIT_FSIZE: no tmpfs may be mounted here"
    return tally.end(f", sizes {how}, up to {most:.0f} bytes, the slowest {slowest:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
