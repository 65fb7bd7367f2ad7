"""Ranks under torchrun of which one fails, hangs or is stopped: all end together, in time, and can go on."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cases import Tally, parse
from rank_helpers import environment, free_port
from training_runs import Child, Workplace, workplace
from what_is_left import damaged, differences, fingerprint, leftovers

MOST_SECONDS, MOST_SECONDS_STOPPED = 60.0, 120.0
SETTINGS: dict[str, Any] = {
    "gradient_accumulation_steps": 2,  # 12 steps of two: of four ranks two have no clip that counts
    "eval_batch_size": 1,
    "eval_every": 4,
    "checkpoint_every": 3,
    "no_head_first": True,
}
# Phase: how often each rank comes there at least, in a run. To the others only the first rank comes.
OF_ALL = {
    "importing": 1,
    "joining": 1,
    "loading data": 1,
    "loading weights": 1,
    "forward": 12,
    "backward": 12,
    "all-reduce": 24,  # the gradients, then the numbers that are logged
    "optimizer": 12,
    "worker": 4,
    "evaluation": 6,
    "last test": 1,
    "waiting at the end": 1,
}
OF_FIRST = {"filling the cache": 30, "saving": 6, "exporting the best": 1, "wrap-up": 1}
AT_END = ("last test", "wrap-up", "waiting at the end")
FAILURES = ("exception", "memory", "SIGKILL")
STOPS = ("SIGTERM", "SIGINT twice", "torchrun SIGTERM", "torchrun SIGINT")
RESTARTS = ("named", "default", "overwrite")  # the run folder
KINDS = [  # in turns, each in another phase
    *("exception", "SIGKILL", "memory", "SIGTERM", "restart", "SIGKILL", "torchrun SIGTERM", "exception"),
    *("restart", "memory", "SIGINT twice", "SIGKILL", "torchrun SIGKILL", "torchrun SIGINT", "exception"),
]
ONCE = ["SIGSTOP", "slow cache"]  # at the end, in a run of many: they take minutes


@dataclass
class Fault:
    """What goes wrong, see one_rank.py."""

    kind: str
    phase: str
    rank: int
    number: int
    folder: str
    ranks: int = 2
    restart: str | None = None  # one of RESTARTS: torchrun starts all again

    def __str__(self) -> str:
        kind = self.kind + (f", restarted ({self.restart} folder)" if self.restart else "")
        return f"{kind:34} {self.phase:19} {self.number:2}  rank {self.rank} of {self.ranks}"


@dataclass
class End:
    """How torchrun and its ranks ended."""

    code: int
    seconds: float  # from the fault until no process was left
    printed: str
    lines: list[str] = field(default_factory=list)  # ours, of an error or a stop
    exit_codes: dict[str, str] = field(default_factory=dict)  # "attempt-0-rank-1": what it left with
    orphans: int = 0


def faults(count: int, draw: random.Random, folder: Path) -> list[Fault]:
    """So many, of all kinds; each phase comes before one comes again."""
    once = ONCE if count > len(KINDS) else []
    kinds = [KINDS[number % len(KINDS)] for number in range(count - len(once))] + once
    phases: list[str] = []
    found = []
    for number, kind in enumerate(kinds):
        if not phases:
            phases = draw.sample([*OF_ALL, *OF_FIRST], len(OF_ALL) + len(OF_FIRST))
        restart = draw.choice(RESTARTS) if kind == "restart" else None
        kind = draw.choice(("SIGKILL", "exception")) if restart else kind
        # A worker is not signalled by itself, and what waits for one that is stopped is tried elsewhere.
        fit = [phase for phase in phases if phase != "worker" or kind in FAILURES] or ["forward"]
        phase = fit[0]
        if kind == "SIGSTOP":
            phase = "forward"
        elif phase in phases:
            phases.remove(phase)
        num_ranks = 4 if number % 3 == 2 else 2
        rank = 0 if phase in OF_FIRST else draw.randrange(num_ranks)
        times = draw.randint(2 if phase == "evaluation" else 1, (OF_ALL | OF_FIRST)[phase])
        found.append(Fault(kind, phase, rank, times, str(folder / f"fault-{number}"), num_ranks, restart))
    return found


def launched(place: Workplace, fault: Fault, arguments: list[str]) -> End:
    """The command under torchrun, and how it ended."""
    folder = Path(fault.folder)
    shutil.rmtree(folder / "work", ignore_errors=True)
    (folder / "work").mkdir(parents=True)  # its working directory: the default run folder lies in it
    restarts = 2 if fault.restart else 3 if fault.kind in STOPS else 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(fault.ranks), "--max-restarts", str(restarts)]
    command += [str(Path(__file__).with_name("one_rank.py")), json.dumps(asdict(fault)), *arguments]
    with (folder / "printed").open("w") as printed:
        began = time.time()
        torchrun = subprocess.Popen(
            command,
            cwd=folder / "work",
            env=os.environ | {"AUDIOCLS_FAULT": fault.folder},
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = torchrun.wait(300)
        except subprocess.TimeoutExpired:
            torchrun.kill()
            code = torchrun.wait()
        deadline = time.time() + MOST_SECONDS
        while (left := processes_of(fault)) and time.time() < deadline:
            time.sleep(0.1)
    happened = folder / "happened"
    seconds = time.time() - (float(happened.read_text()) if happened.exists() else began)
    for pid in left:
        os.kill(pid, 9)
    text = (folder / "printed").read_text(errors="replace")
    lines = re.findall(r"^(?:error: |stopped\b).*", text, re.MULTILINE)
    codes = {path.name: path.read_text() for path in sorted(folder.glob("attempt-*"))}
    return End(code, seconds, text, lines, codes, len(left))


def processes_of(fault: Fault) -> list[int]:
    """The living processes that were started for it, by what is in their environment."""
    mark = f"AUDIOCLS_FAULT={fault.folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def on_ranks(place: Workplace, num_ranks: int, run: Path, **settings: Any) -> None:
    """A whole run on so many forks, without torchrun, which takes seconds to start. It must succeed."""
    port = free_port()
    arguments = place.arguments(run, **SETTINGS, **settings)

    def as_rank(rank: int) -> Child:
        def before(tell: Any) -> None:
            os.environ.update(environment(rank, num_ranks, port))

        return Child(arguments, before)

    children = [as_rank(rank) for rank in range(num_ranks)]
    for child in children:
        if child.wait().code != 0:
            raise RuntimeError(f"a run without any fault ended with {child.code}: {child.errors}")


wholes: dict[int, dict[str, str]] = {}


def expected_of(place: Workplace, num_ranks: int) -> dict[str, str]:
    """What a run on so many ranks leaves that nothing happens to."""
    if num_ranks not in wholes:
        run = place.folder / f"whole-{num_ranks}"
        on_ranks(place, num_ranks, run)
        wholes[num_ranks] = fingerprint(run)
    return wholes[num_ranks]


def judge(fault: Fault, end: End, run: Path) -> list[str]:
    """What is wrong with how they ended."""
    found = []
    most = MOST_SECONDS_STOPPED if fault.kind == "SIGSTOP" else MOST_SECONDS
    if end.seconds > most:
        found.append(f"took {end.seconds:.0f} s")
    if end.orphans:
        found.append(f"{end.orphans} processes were left")
    found += damaged(run)
    attempts = len({name.split("-")[1] for name in end.exit_codes})
    if "[W" in end.printed:  # torchrun's own lines have no bracket
        found.append("torch warns")
    if fault.kind == "slow cache":
        return found + ([] if end.code == 0 and not end.lines else [f"ended with {end.code}"])
    if attempts != (2 if fault.restart else 1):
        found.append(f"{attempts} attempts")
    if fault.restart:
        return found + ([] if end.code == 0 else [f"ended with {end.code}"])
    if fault.kind in STOPS:
        return found + judge_stop(fault, end, run)
    if end.code == 0:
        found.append("exit code 0")
    # One that fails before ranks have met can tell nobody: another one adds that it has not come.
    by_itself = fault.kind in ("exception", "memory")
    most_lines = 2 if by_itself and fault.phase == "importing" else 1
    if not 1 <= len(end.lines) <= most_lines or not end.lines[0].startswith("error: "):
        return [*found, f"{len(end.lines)} lines"]
    line = end.lines[0]
    says = {"exception": "injected", "memory": "memory"}[fault.kind] if by_itself else "killed"
    if fault.phase == "worker" and fault.kind == "SIGKILL":
        says = "was killed by SIGKILL"
    if fault.kind == "torchrun SIGKILL":
        return found + ([] if "ended" in line else ["another reason"])
    if says.lower() not in line.lower():
        found.append(f"does not say {says!r}")
    if f"rank {fault.rank}" not in line:
        found.append("names another rank")
    return found


def judge_stop(fault: Fault, end: End, run: Path) -> list[str]:
    found = []
    if end.code != (1 if fault.kind.startswith("torchrun") else 0):
        found.append(f"torchrun ended with {end.code}")
    # Deep in the start of torch's process group the others leave without another word, but with 0: see above.
    fine = {"0", ""} if fault.phase == "joining" else {"0"}
    if set(end.exit_codes.values()) - fine:
        found.append(f"exit codes {end.exit_codes}")
    is_run = (run / "run.json").exists()
    ended = json.loads((run / "run.json").read_text())["ended"] if is_run else "stopped"
    if ended != "stopped" and not (fault.phase in AT_END and ended == "finished"):
        found.append(f"run.json says {ended}")
    if len(end.lines) != 1 and not (fault.phase in AT_END and not end.lines):
        found.append(f"{len(end.lines)} lines")
    if any(line.startswith("error") for line in end.lines):
        found.append("calls it an error")
    return found


def try_out(place: Workplace, fault: Fault, *, with_torchrun: bool) -> tuple[list[str], End]:
    """Let it happen, then resume; returns what is wrong, and how it ended."""
    expected = expected_of(place, fault.ranks)
    folder = Path(fault.folder)
    cache = folder / "cache" if fault.phase == "filling the cache" or fault.kind == "slow cache" else None
    settings: dict[str, Any] = {"cache_dir": cache or place.folder / "cache"}
    settings["num_workers"] = 2 if fault.phase == "worker" or fault.number % 2 == 0 else 0
    run = folder / "run"
    arguments = place.arguments(run, **SETTINGS, **settings)
    if fault.restart:
        arguments.remove("--resume")
    if fault.restart == "default":
        where = arguments.index("--output-dir")
        del arguments[where : where + 2]
        run = folder / "work" / "runs" / "clips-model"
    if fault.restart == "overwrite":
        shutil.copytree(place.folder / f"whole-{fault.ranks}", run)
        arguments.append("--overwrite")
    end = launched(place, fault, arguments)
    found = judge(fault, end, run)
    if not (folder / "happened").exists() and fault.kind != "slow cache":
        found.append("it never happened")
    if fault.restart:
        if (others := len(list(run.parent.glob("clips-model*"))) - 1) > 0:
            found.append(f"{others} other run folders")
    elif with_torchrun:
        again = Fault("none", "", -1, 0, fault.folder + "-again", fault.ranks)
        if launched(place, again, arguments).code != 0:
            found.append("cannot be resumed")
    else:
        on_ranks(place, fault.ranks, run, **settings)
    if not (run / "checkpoints").exists():
        return [*found, "no run"], end
    return found + differences(run, expected) + leftovers(run, cache or run), end


def main() -> int:
    options = parse(__doc__, count=32)
    draw = random.Random(options.seed)
    tally = Tally("ranks")
    slowest = 0.0
    with workplace() as place:
        for number, fault in enumerate(faults(options.count, draw, place.folder)):
            found, end = try_out(place, fault, with_torchrun=number % 5 == 0)
            slowest = max(slowest, end.seconds)
            went_on = "went on" if fault.restart else "resumed"
            line = end.lines[0] if end.lines else "-"
            print(f"{fault}  {end.seconds:5.1f} s  {'FAILED' if found else went_on}  {line}", flush=True)
            tally.add(str(fault), [*found, end.printed[-6000:]] if found else [])
            tally.count(fault.kind)
    print(f"{tally.cases} failures, {tally.failed} failed, slowest {slowest:.0f} s")
    return tally.end()


if __name__ == "__main__":
    sys.exit(main())
