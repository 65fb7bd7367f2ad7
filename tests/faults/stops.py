"""SIGTERM and Ctrl-C in every phase, to the process and to its group: in time, nothing left, resumable."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cases import ROOT, Tally, parse
from training_runs import Child, Workplace, at_forward, group, workplace, wrap
from what_is_left import differences, fingerprint, leftovers

MOST_SECONDS = 10.0
STOPPED = 143
Arm = Callable[[Callable[[], None], random.Random], None]


@dataclass
class Phase:
    """A part of a run: how a child tells that it is there, and for how long the signal may wait then."""

    arm: Arm
    most_delay: float  # seconds
    settings: dict[str, Any] = field(default_factory=dict)
    fresh_cache: bool = False
    may_end: bool = False  # the run may be over when the signal comes


FEATURES = {"freeze": "feature-encoder", "cache_features": True}


def in_decoding(tell: Callable[[], None], draw: random.Random) -> None:
    from audiocls.data import decoding

    wrap(decoding, "decode", lambda: (tell(), time.sleep(0.02)))


def in_caching(tell: Callable[[], None], draw: random.Random) -> None:
    from audiocls.training import features

    writer = type("SlowWriter", (features.CacheWriter,), {})
    wrap(writer, "write", lambda: (tell(), time.sleep(0.02)))
    features.CacheWriter = writer


def in_loop(name: str, calls: int) -> Arm:
    """In one of the first `calls` calls of something that the loop calls."""

    def arm(tell: Callable[[], None], draw: random.Random) -> None:
        from audiocls.training import loop

        number = draw.randint(1, calls)
        seen = 0

        def count() -> None:
            nonlocal seen
            seen += 1
            if seen == number:
                tell()

        wrap(loop, name, count)

    return arm


def in_forward(training: bool, passes: int) -> Arm:
    return lambda tell, draw: at_forward(tell, draw.randint(1, passes), training=training)


def at_end(tell: Callable[[], None], draw: random.Random) -> None:
    from audiocls.reporting import wrap_up

    wrap(wrap_up, "say_end", tell)


PHASES = {
    "decoding": Phase(in_decoding, 0.3, fresh_cache=True),
    "training": Phase(in_forward(True, 22), 0.05),
    "evaluation": Phase(in_forward(False, 8), 0.02),
    "saving": Phase(in_loop("save_checkpoint", 5), 0.03, {"checkpoint_every": 3}),
    "feature caching": Phase(in_caching, 0.3, FEATURES, fresh_cache=True),
    "exporting the best": Phase(in_loop("export_best", 1), 0.02),  # there is one
    "final test": Phase(in_loop("finish", 1), 0.1, may_end=True),
    "end": Phase(at_end, 0.1, may_end=True),
}
START = "start"  # a process of its own: what is imported is a phase, too


def send(pid: int, draw: random.Random) -> str:
    """Signal the process or its group; returns what was done in words."""
    number = draw.choice((signal.SIGTERM, signal.SIGINT))
    to_group = draw.random() < 0.5
    (os.killpg if to_group else os.kill)(pid, number)
    return f"{number.name} to the {'group' if to_group else 'process'}"


def shared_memory(pids: list[int]) -> list[str]:
    """What these processes have left in /dev/shm."""
    names = [path.name for path in Path("/dev/shm").glob("*")]
    return [name for name in names if any(re.search(rf"(?<!\d){pid}(?!\d)", name) for pid in pids)]


def judge(code: int | None, seconds: float, errors: str, orphans: list[int], may_end: bool) -> list[str]:
    found = []
    if code != STOPPED and not (may_end and code == 0):
        found.append(f"ended with {code}: {errors}")
    elif errors.count("\n") != (code == STOPPED):
        found.append(f"said on stderr: {errors}")
    if seconds > MOST_SECONDS:
        found.append(f"took {seconds:.1f} s")
    if orphans:
        found.append(f"{len(orphans)} processes were left")
    return found


def stop_in(name: str, place: Workplace, number: int, draw: random.Random) -> tuple[list[str], str, float]:
    """Stop a run in a phase, resume it; returns what is wrong, the case in words, and the seconds it took."""
    phase = PHASES[name]
    num_workers = draw.choice((0, 2))
    cache = place.folder / (f"cache-{number}" if phase.fresh_cache else "cache")
    settings = {"num_workers": num_workers, "cache_dir": cache, **phase.settings}
    run = place.folder / f"run-{number}"
    child = Child(place.arguments(run, **settings), lambda tell: phase.arm(tell, draw))
    if not child.wait_until_told():
        return [f"never came there: {child.wait().errors}"], name, 0.0
    time.sleep(draw.uniform(0, phase.most_delay))
    processes = group(child.pid)
    sent = time.monotonic()
    how = "too late" if child.poll() else send(child.pid, draw)
    child.wait(3 * MOST_SECONDS)
    seconds = time.monotonic() - sent
    found = judge(child.code, seconds, child.errors, child.orphans(), phase.may_end)
    found += leftovers(run, cache) + shared_memory(processes)
    place.run(run, **settings)
    expected = fingerprint_of(place, phase.settings)
    return found + differences(run, expected), f"{name}, {how}, {num_workers} workers", seconds


wholes: dict[str, dict[str, str]] = {}


def fingerprint_of(place: Workplace, settings: dict[str, Any]) -> dict[str, str]:
    """What a run with these settings leaves that nothing happens to."""
    name = "whole" + "".join(settings)
    if name not in wholes:
        place.run(place.folder / name, **settings)
        wholes[name] = fingerprint(place.folder / name)
    return wholes[name]


def stop_at_start(place: Workplace, number: int, draw: random.Random) -> tuple[list[str], str, float]:
    """Stop a process of its own within its first seconds, from where Python has our handlers."""
    run = place.folder / f"run-{number}"
    command = [sys.executable, str(ROOT / "train.py"), *place.arguments(run)]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not handles_sigint(process.pid) and process.poll() is None:
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 4) ** 2 / 4)
    sent = time.monotonic()
    how = "too late" if process.poll() is not None else send(process.pid, draw)
    _, errors = process.communicate(timeout=3 * MOST_SECONDS)
    seconds = time.monotonic() - sent
    is_done = (run / "report.html").exists()  # then the signal came while Python shut down
    found = judge(process.returncode, seconds, errors, group(process.pid), may_end=is_done)
    found += leftovers(run, place.folder / "cache")
    place.run(run)
    return found + differences(run, fingerprint_of(place, {})), f"{START}, {how}", seconds


def handles_sigint(pid: int) -> bool:
    """Whether the process has a handler for SIGTERM, which Python itself has not."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = re.search(r"SigCgt:\s*([0-9a-f]+)", status)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def main() -> int:
    options = parse(__doc__, count=60)
    draw = random.Random(options.seed)
    tally = Tally("stops")
    slowest = 0.0
    with workplace() as place:
        fingerprint_of(place, {})
        phases = [START, *PHASES]
        for number in range(options.count):
            name = phases[number % len(phases)]
            if name == START:
                found, case, seconds = stop_at_start(place, number, draw)
            else:
                found, case, seconds = stop_in(name, place, number, draw)
            slowest = max(slowest, seconds)
            tally.add(f"{number}: {case}", found)
            tally.count(name)
    return tally.end(f", the slowest {slowest:.1f} s after its signal")


if __name__ == "__main__":
    sys.exit(main())
