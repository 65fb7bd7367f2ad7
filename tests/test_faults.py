"""Short versions of the drivers in tests/faults: `python -m tests.faults` runs the full ones."""

import pytest
from data_helpers import ROOT, run_script


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "count"),
    [
        *(("kills", 3), ("resume_matrix", 2), ("stops", 5), ("disk_full", 3), ("workers", 1), ("ranks", 1)),
        *(("hostile_audio", 12), ("hostile_models", 5), ("damaged_checkpoints", 8)),
    ],
)
def test_no_fault_and_no_hostile_input_breaks_a_promise(driver: str, count: int) -> None:
    done = run_script(str(ROOT / "tests" / "faults" / f"{driver}.py"), "--count", str(count), timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout
