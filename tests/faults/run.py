"""All fault drivers in full, one after another: `python tests/faults/run.py [NAME ...]`."""

import subprocess
import sys
from pathlib import Path

# Each is a script of this folder, which prints a line for each broken promise and one of figures.
DRIVERS = ("hostile_audio", "hostile_models", "damaged_checkpoints")


def main() -> int:
    names = sys.argv[1:] or DRIVERS
    if unknown := set(names) - set(DRIVERS):
        print(f"There is no driver {', '.join(unknown)}. There are: {', '.join(DRIVERS)}.", file=sys.stderr)
        return 2
    here = Path(__file__).parent
    return max(
        subprocess.run([sys.executable, here / f"{name}.py"], check=False).returncode for name in names
    )


if __name__ == "__main__":
    sys.exit(main())
