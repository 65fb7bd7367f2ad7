"""Short versions of the fault drivers for inputs; `python -m tests.faults` runs them in full."""

import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parent / "faults"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "count"), [("hostile_audio", 12), ("hostile_models", 5), ("damaged_checkpoints", 8)]
)
def test_hostile_input_breaks_no_promise(driver: str, count: int) -> None:
    command = [sys.executable, str(FAULTS / f"{driver}.py"), "--count", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout
