"""The processes that train together: as many as torchrun has started, one a GPU, or else this one alone.

torch's own engine carries the gradients (DistributedDataParallel; NCCL between GPUs, gloo between CPUs). What
is trained on is a function of the step and of the number of a micro-batch or a clip, never of the rank: ranks
only divide a step's micro-batches among them, see batch_plan.Step.dealt. What one process must do for all (to
claim a folder, to look at a clock) the first rank does, and the others are told.
"""

import contextlib
import hashlib
import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from audiocls.devices import available_cores
from audiocls.errors import (
    TRAINING_FAILED,
    Ending,
    InputOutputFailed,
    Stopped,
    UserError,
    ending_of,
    reason,
    tell,
)
from audiocls.hub import use_local_cache
from audiocls.peers import (
    JOIN_SECONDS,
    LEAVE_SECONDS,
    LOST_IN_TROUBLE_SECONDS,
    LOST_SECONDS,
    NOT_COME,
    PeerEnded,
    Peers,
    torchrun_keeps_store,
)
from audiocls.signals import StopSignal

LONGEST_WAIT = timedelta(hours=2)  # in a collective, for others that are alive: the first one may be saving
STORE_SECONDS = 10.0  # for torchrun's store to answer; torch asks twice
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Which of the processes this one is, and what they do together; of one alone nothing needs doing."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on this machine
    local_world_size: int = 1
    peers: Peers | None = None

    @property
    def is_first(self) -> bool:
        """Whether it is this one that writes."""
        return self.rank == 0

    def own_device(self, name: str) -> str:
        """What `--device` means here: a GPU of this rank's own, or its share of the CPU's cores.

        Raises UserError where it names one GPU for all.
        """
        if self.local_world_size == 1:
            return name
        if name.startswith(("cuda:", "mps")):
            raise UserError(
                f"--device {name} is one GPU for all ranks: give cuda (each has its own), or cpu."
            )
        if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
            if self.local_world_size > (count := torch.cuda.device_count()):
                raise UserError(f"There are {self.local_world_size} ranks here, and {count} GPUs.")
            return f"cuda:{self.local_rank}"
        # As torchrun has it, where nobody has said otherwise.
        if os.environ.get("OMP_NUM_THREADS", "1") == "1":
            torch.set_num_threads(max(1, available_cores() // self.local_world_size))
        return "cpu"

    @contextlib.contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """On each machine its first rank does this alone; the others after it find in caches what it left."""
        key = f"machine {os.environ.get('GROUP_RANK', self.rank // self.local_world_size)} is prepared"
        if self.peers and self.local_rank > 0:
            self.peers.wait_for(key)
            use_local_cache("only the first rank of a machine asks it")
        yield
        if self.peers and self.local_rank == 0:
            self.peers.store.set(key, "")

    def remember(self, key: str, value: str) -> None:
        """Keep something for when torchrun starts all ranks again."""
        if self.peers:
            self.peers.lasting.set(key, value)

    def remembered(self, key: str) -> str | None:
        """What was kept before such a restart; None: nothing."""
        if self.peers and self.peers.lasting.check([key]):
            return self.peers.lasting.get(key).decode()
        return None

    def decide(self, what: Callable[[], T]) -> T:
        """What the first rank finds. The others get the same; only it calls `what`."""
        if self.world_size == 1:
            return what()
        found: list[Any] = [what() if self.is_first else None]
        dist.broadcast_object_list(found, device=torch.device("cpu"))
        return found[0]

    def gather(self, own: T) -> list[T]:
        """What each rank has, by rank."""
        if self.world_size == 1:
            return [own]
        all_of_them: list[Any] = [None] * self.world_size
        dist.all_gather_object(all_of_them, own)
        return all_of_them

    def check_alike(self, what: str, own: Callable[[], Any]) -> None:
        """Raises UserError where ranks do not have the same, as on machines with different files."""
        if self.world_size == 1:
            return
        digests = self.gather(hashlib.sha256(repr(own()).encode()).digest())
        unlike = [rank for rank, digest in enumerate(digests) if digest != digests[self.rank]]
        if unlike:
            raise UserError(
                f"Rank {unlike[0]} has other {what} than rank {self.rank}: they must be the same."
            )

    def sum(self, first: Tensor, *others: float) -> Tensor:
        """These numbers, each summed over the ranks: float64 [numbers], where `first` lies.

        Nothing waits for them. On Apple's GPUs they are float32.
        """
        on_gpu = first.device.type == "cuda"
        dtype = torch.float32 if first.device.type == "mps" else torch.float64
        rest = torch.tensor(others, dtype=dtype, pin_memory=on_gpu).to(first.device, non_blocking=on_gpu)
        numbers = torch.cat([first.detach().to(dtype)[None], rest])
        if self.world_size > 1:
            dist.all_reduce(numbers)
        return numbers

    def wrapped(self, model: nn.Module) -> Any:
        """The model, with the first rank's weights: a backward pass gives the sum of the ranks' gradients."""
        if self.world_size == 1:
            return model
        # LayerDrop leaves out other layers on each rank, and a model may have weights that it never uses. To
        # find those leaves what no rank has used without a gradient, as in one process: AdamW passes it over.
        # It also keeps torch from regrouping its buckets after the first step, which would change the order
        # of summation: a resumed run would round differently.
        replica = DistributedDataParallel(model, find_unused_parameters=True)
        replica.register_comm_hook(None, added_up)
        return replica

    def exchanging(self, replica: Any, *, when: bool) -> contextlib.AbstractContextManager:
        """A backward pass within exchanges gradients, or only adds to the rank's own, for a later one."""
        return contextlib.nullcontext() if when or self.world_size == 1 else replica.no_sync()

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give the tensors the values that the first rank's have."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def added_up(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The sum over ranks of some gradients: torch's own mean would be of ranks, not of a step's clips."""
    reduced: Any = dist.all_reduce(bucket.buffer(), async_op=True)
    return reduced.get_future().then(lambda future: future.value()[0])


ALONE = Ranks()


@contextlib.contextmanager
def joined(stop: StopSignal) -> Iterator[Ranks]:
    """The ranks that torchrun started, of which this process is one; without it, ALONE.

    They end together. The first to fail says why, in one line; the others leave without a word, and with the
    same exit code. After a stop signal to any of them the exit code is 0: after any other torchrun would
    start them again.
    """
    if "RANK" not in os.environ:
        yield ALONE
        return
    if missing := {"WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys():
        raise UserError(f"RANK is set, and {min(missing)} is not: start it by torchrun, or unset RANK.")
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank > 0:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process
    local_rank, local_size = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    stop.exit_code, stop.is_one_of_several = 0, True
    store = meeting_place(LONGEST_WAIT, keeps_it=rank == 0 and not torchrun_keeps_store())
    name, absent = name_of_start(store, rank, world_size, stop)
    # A client of its own: one that waits in the store keeps others of the same from it.
    peers = Peers(meeting_place(timedelta(seconds=LOST_SECONDS)), name, rank, world_size, stop)
    try:
        if absent is not None:
            peers.tell(f"error: rank {absent} {NOT_COME}.", TRAINING_FAILED)
            raise PeerEnded
        stop.undefer("stopped")
        prefixed = dist.PrefixStore(name, store)
        # By default torch would leave out gloo where there are GPUs, and with it all that is not a tensor.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=prefixed, rank=rank, world_size=world_size, timeout=LONGEST_WAIT
        )
        yield Ranks(rank, world_size, local_rank, local_size or world_size, peers)
        peers.wait_for_all()
        stop.ignore()  # all is done
    except BaseException as error:
        raise SystemExit(end(error, peers)) from None
    dist.destroy_process_group()


def meeting_place(most_wait: timedelta, *, keeps_it: bool = False) -> dist.TCPStore:
    """The store in which ranks meet. torchrun has it before they start; else the first rank keeps it.

    A question to it fails after `most_wait`. Raises InputOutputFailed where it cannot be reached.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    patience = timedelta(seconds=STORE_SECONDS if torchrun_keeps_store() else JOIN_SECONDS)
    try:
        store = dist.TCPStore(address, port, None, keeps_it, patience, wait_for_workers=False)
    except RuntimeError as error:
        why = f"{address}:{port} cannot be reached. Has what started them ended? ({reason(error)})"
        raise InputOutputFailed(f"The ranks cannot meet: {why}") from None
    store.set_timeout(most_wait)
    return store


def name_of_start(store: dist.Store, rank: int, world_size: int, stop: StopSignal) -> tuple[str, int | None]:
    """A name for this start of all ranks, given by the first; and to that one, a rank that did not come.

    torchrun's store may outlive a restart, and in it the addresses of ranks that are no more: what they write
    under this name only those find that are there now. Ends this process where the first rank does not come.
    """
    own = uuid.uuid4().hex
    deadline = time.monotonic() + JOIN_SECONDS

    def wait() -> bool:
        """False once it has been too long."""
        nonlocal deadline
        time.sleep(0.02)
        if stop.requested:  # those that are there will come, and stop together
            deadline = min(deadline, time.monotonic() + LOST_IN_TROUBLE_SECONDS)
        return time.monotonic() < deadline

    if rank > 0:
        store.set(f"rank {rank}", own)
        while not store.check([f"answer to {own}"]):
            if not wait():
                if rank == 1:
                    tell(f"error: rank 0 {NOT_COME}.")
                raise SystemExit(TRAINING_FAILED)
        name = store.get(f"answer to {own}").decode()
        store.set(f"rank {rank} is in {name}", "")
        return name, None
    others = set(range(1, world_size))
    while others:
        for other in sorted(others):
            if store.check([f"rank {other}"]):
                store.set(f"answer to {store.get(f'rank {other}').decode()}", own)
            if store.check([f"rank {other} is in {own}"]):
                others.remove(other)
        if others and not wait():
            return own, min(others)
    return own, None


def end(error: BaseException, peers: Peers) -> int:
    """End all ranks because of what this one met, unless another one was first; returns the exit code."""
    peers.is_leaving = True
    # What may only follow from the end of another rank: a collective that fails, and a signal, which torchrun
    # then sends to all. (Of a signal that is `deferred` all ranks have agreed to stop.)
    is_stop, deferred = isinstance(error, Stopped), not peers.stop.at_once
    follows = isinstance(error, PeerEnded | RuntimeError) or (is_stop and not deferred)
    peers.stop.ignore()
    if not (follows and peers.why_ended()):
        known = ending_of(error)
        ending = known or Ending(f"error: {reason(error)}", 1)
        says = ending.says
        if peers.world_size > 1:
            says = says.replace("error: ", f"error: rank {peers.rank}: ", 1)
        if peers.tell(says, 0 if is_stop else ending.exit_code) and known is None:
            traceback.print_exception(error)
    peers.let_others_leave("knows")
    peers.is_quiet.wait(LEAVE_SECONDS)  # a process that ends within a call of the store aborts
    assert peers.ended
    return peers.ended.exit_code
