"""A DataLoader's worker killed or stopped: the run ends in time, says on which clips it was, can go on."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable

from cases import Tally, parse
from training_runs import Child, Workplace, at_forward, group, workplace
from what_is_left import damaged, differences, fingerprint, leftovers

LONGEST_WAIT_SECONDS = 2.0  # 120 outside of here
MOST_SECONDS = LONGEST_WAIT_SECONDS + 10


def lose(place: Workplace, run: str, draw: random.Random) -> tuple[str, float, list[str]]:
    """Kill or stop a worker in a run, and resume it; returns the case, its seconds, and what is wrong."""
    how = draw.choice((signal.SIGKILL, signal.SIGSTOP))
    training = draw.random() < 0.7
    then_stop = how == signal.SIGSTOP and draw.random() < 0.5  # SIGTERM, while a batch is waited for
    number = draw.randint(1, 12) if training else 1

    def arm(tell: Callable[[], None]) -> None:
        from audiocls.data import workers

        workers.LONGEST_WAIT_SECONDS = 60.0 if then_stop else LONGEST_WAIT_SECONDS
        # Held until the worker is lost: it has work left then, but for what it did ahead.
        at_forward(lambda: (tell(), time.sleep(0.2)), number, training=training)

    path = place.folder / run
    # The head first would be evaluation passes, too, before any worker is there.
    settings = {"num_workers": 2, "eval_batch_size": 1, "checkpoint_every": 3, "no_head_first": True}
    child = Child(place.arguments(path, **settings), arm)
    child.wait_until_told()
    workers = sorted(set(group(child.pid)) - {child.pid})
    lost = workers[-draw.randint(1, 2)]  # of the loader that was started last
    os.kill(lost, how)
    if then_stop:
        time.sleep(draw.uniform(0, 2))
        os.kill(child.pid, signal.SIGTERM)
    began = time.monotonic()
    child.wait(3 * MOST_SECONDS)
    seconds = time.monotonic() - began
    found = damaged(path) + leftovers(path)
    code = 143 if then_stop else 4
    if child.code != code or child.errors.count("\n") != 1:
        found.append(f"ended with {child.code}: {child.errors}")
    elif code == 4 and ".wav" not in child.errors:
        found.append(f"names no clip: {child.errors}")
    if seconds > MOST_SECONDS:
        found.append(f"took {seconds:.1f} s")
    if left := child.orphans():
        found.append(f"{len(left)} processes were left")
    place.run(path, **settings)
    words = f"{how.name}{' and SIGTERM' if then_stop else ''} in {'training' if training else 'evaluation'}"
    return words, seconds, found + differences(path, fingerprint(place.folder / "whole"))


def main() -> int:
    options = parse(__doc__, count=20)
    draw = random.Random(options.seed)
    tally = Tally("workers")
    slowest = 0.0
    with workplace() as place:
        place.run(place.folder / "whole", eval_batch_size=1, no_head_first=True)
        for number in range(options.count):
            case, seconds, found = lose(place, f"run-{number}", draw)
            slowest = max(slowest, seconds)
            tally.add(f"{number}: {case}", found)
            tally.count(case)
    return tally.end(f", the slowest {slowest:.1f} s (a batch is waited for {LONGEST_WAIT_SECONDS:g} s)")


if __name__ == "__main__":
    sys.exit(main())
