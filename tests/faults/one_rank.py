# ruff: noqa: E402 - the path is set before anything of ours is imported
"""train.py as one of torchrun's ranks, in which something goes wrong: `one_rank.py FAULT ARGUMENTS...`.

FAULT is a ranks.Fault as JSON. It happens in the first attempt, at the `number`-th time that the rank comes
to the phase. `folder` then holds "happened", the time, and for each rank of each attempt the exit code that
it left with; nothing where it left without a word.
"""

import functools
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import train
from audiocls.errors import exit_code_of

SIGNALS = {  # kind: the signal, and whether it is torchrun's instead of the rank's own
    "SIGKILL": (signal.SIGKILL, False),
    "SIGSTOP": (signal.SIGSTOP, False),
    "SIGTERM": (signal.SIGTERM, False),
    "SIGINT twice": (signal.SIGINT, False),
    "torchrun SIGKILL": (signal.SIGKILL, True),
    "torchrun SIGTERM": (signal.SIGTERM, True),
    "torchrun SIGINT": (signal.SIGINT, True),
}


def places() -> dict[str, tuple[Callable[[], Any], str]]:
    """Each phase, and what is called there: the module or class, and the name in it."""
    import torch
    import torch.distributed as dist

    from audiocls import peers
    from audiocls.data import cache, loader, prepare
    from audiocls.model import encoder, loading
    from audiocls.reporting import wrap_up
    from audiocls.training import checkpoint, loop

    return {
        "joining": (dist, "init_process_group"),
        "loading data": (prepare, "prepare_data"),
        "filling the cache": (cache.CacheWriter, "write"),
        "loading weights": (loading, "load_for_training"),
        "forward": (encoder.SpeechClassifier, "forward"),
        "backward": (torch.Tensor, "backward"),
        "all-reduce": (dist, "all_reduce"),
        "optimizer": (loop, "take_step"),
        "worker": (loader.Prepare, "__call__"),
        "evaluation": (encoder.SpeechClassifier, "forward"),
        "saving": (checkpoint, "save_file"),
        "exporting the best": (loop, "export_best"),
        "last test": (loop, "finish"),
        "wrap-up": (wrap_up, "wrap_up"),
        "waiting at the end": (peers.Peers, "wait_for_all"),
    }


def arm(fault: dict[str, Any]) -> None:
    """Let it happen at its time and place."""
    phase, seen = fault["phase"], 0
    owner, name = (train, "parse_train") if phase == "importing" else places()[phase]
    original = getattr(owner, name)

    def is_there(first: Any) -> bool:
        if phase == "worker":
            return multiprocessing.parent_process() is not None
        if phase in ("forward", "evaluation"):
            # A model is tried in evaluation mode when it is loaded: DistributedDataParallel is not there yet.
            return first.training == (phase == "forward")
        return True

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += is_there(args[0] if args else None)
        if seen == fault["number"]:
            seen += 1
            happen(fault)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def happen(fault: dict[str, Any]) -> None:
    # A signal that comes before a rank has our handlers ends it as it ends any other process.
    if fault["phase"] == "importing":
        while len(list(Path(fault["folder"]).glob("attempt-*"))) < fault["ranks"]:
            time.sleep(0.01)
        time.sleep(0.3)
    Path(fault["folder"], "happened").write_text(str(time.time()))
    kind = fault["kind"]
    if kind == "exception":
        raise ValueError("injected")
    if kind == "memory":
        raise RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
        )
    number, is_torchruns = SIGNALS[kind]
    for _ in range(2 if kind.endswith("twice") else 1):
        os.kill(os.getppid() if is_torchruns else os.getpid(), number)
        time.sleep(0.05)


def slow_cache() -> None:
    """Filling it takes longer than anything may wait in a collective."""
    from datetime import timedelta

    from audiocls import distributed
    from audiocls.data import cache

    distributed.LONGEST_WAIT = timedelta(seconds=4)
    write = cache.CacheWriter.write
    cache.CacheWriter.write = lambda *args: (time.sleep(0.4), write(*args))[1]  # type: ignore[method-assign]


def main() -> int:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as train.py does, before torch comes
    fault = json.loads(sys.argv[1])
    sys.argv = ["train.py", *sys.argv[2:]]
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    ended = Path(fault["folder"], f"attempt-{attempt}-rank-{os.environ['RANK']}")
    ended.touch()
    if fault["kind"] == "slow cache":
        slow_cache()
    elif attempt == "0" and int(os.environ["RANK"]) == fault["rank"]:
        arm(fault)
    try:
        code = exit_code_of(train.main)
    except SystemExit as error:
        ended.write_text(str(error.code))
        raise
    ended.write_text(str(code))
    return code


if __name__ == "__main__":
    sys.exit(main())
