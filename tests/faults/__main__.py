"""The drivers of faults, all or some: `python -m tests.faults`, `python -m tests.faults kills --count 20`.

Each prints a line for a case that broke a promise and one with its figures; the exit code is 1 where any did.
"""

import argparse
import subprocess
import sys
from pathlib import Path

DRIVERS = {  # name: what it does, in the file of that name
    "kills": "kill -9 at random moments, a good part of them inside a save",
    "resume_matrix": "stopped at every kind of place and resumed, bit for bit",
    "stops": "SIGTERM and Ctrl-C in every phase, to the process and to its group",
    "disk_full": "a disk that fills up, at any size",
    "ranks": "one of several ranks failed, killed, stopped, under torchrun",
    "workers": "a DataLoader's worker killed or stopped",
    "hostile_audio": "recordings that lie, burst, break off or are none at all",
    "hostile_formats": "the same of phones and browsers, which FFmpeg decodes",
    "hostile_models": "model folders made to run code, to fill the memory, to mislead",
    "damaged_checkpoints": "checkpoints cut, flipped, swapped, edited",
}


def main() -> int:
    drivers = "\n".join(f"  {name:14} {about}" for name, about in DRIVERS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        epilog=f"drivers:\n{drivers}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("drivers", nargs="*", metavar="DRIVER", help="those to run (default: all)")
    parser.add_argument("--count", type=int, help="cases of each (default: the driver's own)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: %(default)s)")
    options = parser.parse_args()
    if unknown := set(options.drivers) - set(DRIVERS):
        parser.error(f"there is no driver {', '.join(sorted(unknown))}")
    arguments = ["--seed", str(options.seed)]
    arguments += [] if options.count is None else ["--count", str(options.count)]
    files = [str(Path(__file__).with_name(f"{name}.py")) for name in options.drivers or DRIVERS]
    codes = [subprocess.run([sys.executable, file, *arguments], check=False).returncode for file in files]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
