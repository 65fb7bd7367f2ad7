"""Several ranks on this machine, as torchrun starts them: forks of this process, which gloo connects."""

import contextlib
import os
import pickle
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from audiocls.distributed import Ranks, joined
from audiocls.signals import StopSignal


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process of its own."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    return {name: str(value) for name, value in (ranks | {"MASTER_PORT": port}).items()} | {
        "MASTER_ADDR": "127.0.0.1"
    }


def on_ranks(world_size: int, work: Callable[[Ranks, StopSignal], Any]) -> list[Any]:
    """What `work` returns on each of so many ranks. Raises AssertionError where one fails."""
    port, children = free_port(), []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(world_size):
            if (pid := os.fork()) == 0:
                code = 1
                try:
                    os.environ |= environment(rank, world_size, port)
                    torch.set_num_threads(1)
                    stop = StopSignal()
                    with joined(stop) as ranks:
                        Path(folder, str(rank)).write_bytes(pickle.dumps(work(ranks, stop)))
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    with contextlib.suppress(OSError):
                        sys.stderr.flush()
                    os._exit(code)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        assert codes == [0] * world_size, codes
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(world_size)]
