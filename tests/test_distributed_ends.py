"""Several ranks end together: the first to fail says why, in one line, and none is left."""

import dataclasses
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RANDOM, Lab, save_backbone, write_clips
from data_helpers import ROOT, run_script
from rank_helpers import environment, free_port, on_ranks

from audiocls import peers
from audiocls.config import TrainConfig
from audiocls.distributed import Ranks, joined
from audiocls.errors import OutOfMemory, UserError, exit_code_of
from audiocls.signals import StopSignal
from audiocls.training.checkpoint import step_folders
from audiocls.training.run_folder import after_restart

Work = Callable[[Ranks, StopSignal], Any]


@dataclasses.dataclass
class End:
    """How some ranks ended."""

    codes: list[int]  # negative: the signal
    printed: str  # on stderr

    @property
    def lines(self) -> list[str]:
        return re.findall(r"^(?:error|stopped).*", self.printed, re.MULTILINE)


def end_of(world_size: int, work: Work, folder: Path, before: Callable[[], object] = lambda: None) -> End:
    """How ranks end that do this as train.py would, with little patience for one that is lost.

    `before` they have met each does that. One that is left when the others have ended is killed, as torchrun
    does it.
    """
    port, children = free_port(), []
    with (folder / "printed").open("w+") as printed:
        for rank in range(world_size):
            if (pid := os.fork()) == 0:
                os.dup2(printed.fileno(), 2)
                sys.stderr = os.fdopen(2, "w", closefd=False)
                os._exit(exit_code_as_rank(rank, world_size, port, work, before))
            children.append(pid)
        codes: dict[int, int] = {}
        deadline = time.monotonic() + 20
        while len(codes) < world_size:
            for pid in set(children) - set(codes):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                elif len(codes) == world_size - 1 and world_size > 1 and is_stopped(pid):
                    os.kill(pid, signal.SIGKILL)
                elif time.monotonic() > deadline:
                    os.kill(pid, signal.SIGABRT)
            time.sleep(0.01)
        printed.seek(0)
        return End([codes[pid] for pid in children], printed.read())


def exit_code_as_rank(rank: int, world_size: int, port: int, work: Work, before: Callable[[], object]) -> int:
    os.environ |= environment(rank, world_size, port)
    peers.BEAT_SECONDS, peers.LOST_SECONDS, peers.LOST_IN_TROUBLE_SECONDS = 0.1, 2.0, 1.0
    peers.LEAVE_SECONDS = 1.0
    torch.set_num_threads(1)

    def main() -> int:
        stop = StopSignal()
        stop.defer()
        before()
        with joined(stop) as ranks:
            work(ranks, stop)
        return 0

    try:
        code = exit_code_of(main)
    except SystemExit as error:
        code = int(error.code or 0)
    sys.stderr.flush()
    return code


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def add_up(ranks: Ranks) -> None:
    """Something that waits for all ranks, until one of them has ended."""
    while True:
        ranks.sum(torch.tensor(1.0))
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("error", "says", "code"),
    [
        (UserError("no such thing"), "no such thing", 2),
        (OutOfMemory("Out of memory. Try less."), "Out of memory. Try less.", 5),
        (ValueError("a bug"), "ValueError: a bug", 1),
        (RuntimeError("a bug"), "RuntimeError: a bug", 1),
    ],
)
def test_the_first_to_fail_says_it_once_and_all_end_with_its_code(
    error: Exception, says: str, code: int, tmp_path: Path
) -> None:
    def work(ranks: Ranks, stop: StopSignal) -> None:
        if ranks.rank == 1:
            raise error
        add_up(ranks)

    end = end_of(3, work, tmp_path)
    assert end.codes == [code] * 3
    assert end.lines == [f"error: rank 1: {says}"]
    assert end.printed.count("Traceback") == (code == 1)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_is_killed_ends_the_others(lost: int, tmp_path: Path) -> None:
    """The first rank keeps the store in which they meet, where torchrun does not."""

    def work(ranks: Ranks, stop: StopSignal) -> None:
        if ranks.rank == lost:
            os.kill(os.getpid(), signal.SIGKILL)
        add_up(ranks)

    end = end_of(3, work, tmp_path)
    assert end.codes == [-9 if rank == lost else 5 for rank in range(3)]
    (line,) = end.lines
    says = "rank 1: the store is gone" if lost == 0 else "rank 1 has given no sign of life for 1 s"
    assert line.startswith(f"error: {says}")


def test_a_rank_that_stands_still_ends_the_others_deep_in_a_collective(tmp_path: Path) -> None:
    def work(ranks: Ranks, stop: StopSignal) -> None:
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        add_up(ranks)

    end = end_of(3, work, tmp_path)
    assert end.codes == [5, -9, 5]
    (line,) = end.lines
    assert line.startswith("error: rank 1 has given no sign of life for 2 s")


def test_a_stop_signal_to_one_rank_ends_all_well(tmp_path: Path) -> None:
    """Before the loop: the others wait for what does not come."""

    def work(ranks: Ranks, stop: StopSignal) -> None:
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        while True:
            time.sleep(0.01)

    end = end_of(3, work, tmp_path)
    assert end.codes == [0, 0, 0]
    assert end.lines == ["stopped"]


def test_a_stop_signal_from_before_they_met_counts(tmp_path: Path) -> None:
    def work(ranks: Ranks, stop: StopSignal) -> None:
        raise AssertionError

    end = end_of(2, work, tmp_path, before=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert end.codes == [0, 0]
    assert end.lines == ["stopped"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_a_stop_signal_to_one_rank_in_training_all_have_taken_the_same_steps(
    lab: Lab, number: signal.Signals
) -> None:
    """A second signal changes nothing."""
    lab.spread(lab.data(12, 4), **RANDOM)

    def work(ranks: Ranks, stop: StopSignal) -> tuple[bool, list[torch.Tensor]]:
        run_lab = dataclasses.replace(lab, stop=stop)
        data = lab.data(12, 4)
        loaded = run_lab.spread(data, **RANDOM)
        passes = 0

        def signal_here(*args: Any) -> None:
            nonlocal passes
            passes += loaded.model.training
            if ranks.rank == 1 and passes == 3:
                os.kill(os.getpid(), number)

        loaded.model.register_forward_hook(signal_here)
        settings = {"batch_size": 1, "global_batch_size": 4, "epochs": 50, "eval_every": "end"}
        run = run_lab.train("run", loaded, data, ranks=ranks, **settings)
        return run.state is None, list(run.weights.values())

    (stopped, weights), (others_stopped, others_weights) = on_ranks(2, work)
    assert stopped
    assert others_stopped
    assert all(torch.equal(*pair) for pair in zip(weights, others_weights, strict=True))
    (checkpoint,) = step_folders(lab.folder / "run")
    assert 0 < int(checkpoint.name[5:]) < 5


def test_ranks_that_end_well_say_nothing_about_it(tmp_path: Path) -> None:
    end = end_of(4, lambda ranks, stop: ranks.sum(torch.tensor(1.0)), tmp_path)
    assert end.codes == [0] * 4
    assert end.printed == ""


# Started again


def test_a_run_that_has_begun_goes_on_after_a_restart_and_is_not_overwritten(tmp_path: Path) -> None:
    given = TrainConfig(overwrite=True)
    folder = str(tmp_path)

    def work(ranks: Ranks, stop: StopSignal) -> list[TrainConfig]:
        seen = [after_restart(given, ranks)]
        ranks.remember("run folder", folder)  # claimed; what is there is still to be overwritten
        seen.append(after_restart(given, ranks))
        ranks.remember("run has begun", "yes")
        seen.append(after_restart(given, ranks))
        ranks.remember("run folder", folder + "-of-another-machine")
        with pytest.raises(UserError, match="is not on this machine"):
            after_restart(given, ranks)
        return seen

    claimed = dataclasses.replace(given, output_dir=folder)
    assert on_ranks(1, work) == [[given, claimed, dataclasses.replace(claimed, overwrite=False, resume=True)]]


def test_torchrun_starts_ranks_again_and_they_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips" / "train", [800] * 12)
    write_clips(tmp_path / "clips" / "validation", [800] * 6, seed=1)
    save_backbone(tmp_path / "model")
    fault = {"kind": "exception", "phase": "optimizer", "rank": 1, "number": 6, "folder": str(tmp_path)}
    flags = (
        "--dataset clips --model model --device cpu --batch-size 2 --global-batch-size 4 --max-steps 8 "
        "--eval-every end --checkpoint-every 2 --max-seconds none --no-head-first --num-workers 0"
    )
    done = run_script(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"),
        *(str(ROOT / "tests" / "faults" / "one_rank.py"), json.dumps(fault), *flags.split()),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "error: rank 1: ValueError: injected" in done.stderr
    # The first rank may have saved step 6 while the other failed at its end.
    assert re.search("going on after step [46]\n", done.stdout), done.stdout
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["ended"] == "finished"
