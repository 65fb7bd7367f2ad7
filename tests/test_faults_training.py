"""Short versions of the drivers in tests/faults: `python -m tests.faults` runs the full ones."""

import pytest
from data_helpers import ROOT, run_script


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "count"), [("kills", 3), ("resume_matrix", 2), ("stops", 5), ("disk_full", 3), ("workers", 1)]
)
def test_nothing_is_lost_whatever_happens_to_a_run(driver: str, count: int) -> None:
    done = run_script(str(ROOT / "tests" / "faults" / f"{driver}.py"), "--count", str(count), timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
