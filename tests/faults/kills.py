"""kill -9 at random moments: nothing lost but one checkpoint interval, nothing corrupt, the same end."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from cases import Tally, parse
from training_runs import Child, workplace
from what_is_left import damaged, differences, fingerprint, leftovers, newest_step, reached_step

CHECKPOINT_EVERY = 3  # steps; an epoch has 8
SETTINGS = {"checkpoint_every": CHECKPOINT_EVERY}
MOST_KILLS = 5  # of one run, before it may come to its end


def die_in_a_save(number: int) -> Callable[[Any], None]:
    """In a child: SIGKILL right before its `number`-th operation on the files of a save."""

    def arm(tell: Any) -> None:
        seen = 0

        def hook(event: str, args: tuple) -> None:
            nonlocal seen
            if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.copyfile") and any(
                suffix in str(path) for path in args[:2] for suffix in (".unfinished", ".old")
            ):
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return arm


def main() -> int:
    options = parse(__doc__, count=200)
    draw = random.Random(options.seed)
    tally = Tally("kills")
    with workplace() as place:
        seconds = place.run(place.folder / "whole", **SETTINGS).seconds
        expected = fingerprint(place.folder / "whole")
        kills = runs = 0
        while kills < options.count:
            runs += 1
            run = place.folder / f"run-{runs}"
            for _ in range(MOST_KILLS):
                in_save = draw.random() < 0.5
                num_workers = draw.choice((0, 0, 2))
                child = Child(
                    place.arguments(run, num_workers=num_workers, **SETTINGS),
                    die_in_a_save(draw.randint(1, 150)) if in_save else None,
                )
                if not in_save:
                    wait_and_kill(child, draw.uniform(0, seconds))
                if child.wait().code != -signal.SIGKILL:
                    tally.add(
                        f"run {runs}", [] if child.code == 0 else [f"ended with {child.code}: {child.errors}"]
                    )
                    break
                kills += 1
                tally.count("inside a save" if leftovers(run) else "elsewhere")
                lost = reached_step(run) - newest_step(run)
                found = damaged(run)
                found += [f"{lost} steps are lost"] if lost > CHECKPOINT_EVERY else []
                tally.add(f"kill {kills} (run {runs}, in save: {in_save}, {num_workers} workers)", found)
            place.run(run, **SETTINGS)  # after the last step it adds nothing
            tally.add(f"end of run {runs}", differences(run, expected) + leftovers(run))
    return tally.end(
        f", {kills} kills of {runs} runs, all of which ended bit-identical" if not tally.failed else ""
    )


def wait_and_kill(child: Child, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not child.poll() and time.monotonic() < deadline:
        time.sleep(0.002)
    if not child.poll():
        os.kill(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
