"""Stopped at every kind of place and resumed: the same bits as never stopped, whatever else is set."""

import itertools
import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Any

from cases import Tally, parse
from training_runs import Child, Workplace, at_forward, workplace
from what_is_left import differences, fingerprint, leftovers

# 15 clips in micro-batches of 2: 8 an epoch, which make 8 steps, or 3 of up to 3 micro-batches. 10 clips to
# evaluate on make 3 batches. Each place is the forward passes of training or evaluation, counted from the
# start or the resumption, in which the signal comes.
Stop = tuple[bool, int]  # training?, forward pass
PLACES: dict[str, list[Stop]] = {
    "start": [(True, 1)],
    "mid-epoch": [(True, 12)],
    "inside accumulation": [(True, 13)],
    # In the last step but one, then in the first of the next epoch: counted anew, from where it was resumed.
    "boundary -1 and +1": [(True, 7), (True, 3)],
    "in evaluation": [(False, 2)],
    "after the end": [],
}


def stop_there(stop: Stop) -> Callable[[Any], None]:
    training, number = stop
    return lambda tell: at_forward(lambda: os.kill(os.getpid(), signal.SIGTERM), number, training=training)


def go_through(
    place: Workplace, name: str, stops: list[Stop], expected: dict[str, str], **settings: Any
) -> list[str]:
    """Run, stop, resume; returns what is wrong."""
    run = place.folder / name
    found = []
    for stop in stops:
        child = Child(place.arguments(run, **settings), stop_there(stop)).wait()
        if child.code != 143:
            found.append(f"stopped at {stop}, ended with {child.code}: {child.errors}")
    if not stops:
        place.run(run, **settings)
        before = fingerprint(run)
    place.run(run, **settings)
    if not stops and fingerprint(run) != before:
        found.append("resuming after the end changed something")
    return found + differences(run, expected) + leftovers(run)


def main() -> int:
    options = parse(__doc__, count=48)
    draw = random.Random(options.seed)
    tally = Tally("resume matrix")
    with workplace() as place:
        computed = list(itertools.product((1, 3), ("fp32", "bf16")))
        wholes = {}
        cells = [(*cell, how) for cell in itertools.product(PLACES, (0, 2)) for how in computed]
        for name, num_workers, how in draw.sample(cells, min(options.count, len(cells))):
            settings = {"gradient_accumulation_steps": how[0], "precision": how[1]}
            if how not in wholes:
                place.run(place.folder / f"whole-{how}", **settings)
                wholes[how] = fingerprint(place.folder / f"whole-{how}")
            case = f"{name}, {num_workers} workers, accumulation {how[0]}, {how[1]}"
            found = go_through(place, case, PLACES[name], wholes[how], num_workers=num_workers, **settings)
            tally.add(case, found)
            tally.count("cells")
        how = draw.choice(list(wholes))
        chain = [(True, draw.randint(2, 6)), (False, 2), (True, draw.randint(2, 6))]
        settings = {"gradient_accumulation_steps": how[0], "precision": how[1]}
        tally.add(f"chain {chain}", go_through(place, "chain", chain, wholes[how], num_workers=2, **settings))
        tally.count("chain of three resumes")
    return tally.end()


if __name__ == "__main__":
    sys.exit(main())
