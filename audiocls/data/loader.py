"""Decoded clips -> batches, through torch's DataLoader."""

import dataclasses
import itertools
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from audiocls.data.augment import Augmentation
from audiocls.data.batch_plan import Step
from audiocls.data.clips import Clip
from audiocls.data.collators import Batch, Collator, Example
from audiocls.data.limits import BadAudio
from audiocls.data.stores import Store
from audiocls.data.workers import Task, WorkerLost, begin, unwrapped, watched
from audiocls.devices import available_cores
from audiocls.errors import InputOutputFailed, named
from audiocls.signals import Stop

IGNORED = -100  # as a label: cross-entropy leaves such a clip out


class Request(NamedTuple):
    """One clip of a batch to prepare."""

    place: Any  # where the store has its values
    label: int
    draw: int
    num_samples: int | None  # of the clip; None: as many as there are values, which are its waveform


@dataclass(frozen=True)
class Prepare:
    """Requests -> their batch. A worker process is given this once, and then a list of requests a batch."""

    store: Store
    augment: Augmentation | None
    collate: Collator

    def __call__(self, requests: list[Request]) -> Batch:
        return self.collate([example_of(request, self.store, self.augment) for request in requests])


def example_of(request: Request, store: Store, augment: Augmentation | None) -> Example:
    values = store(request.place)
    if augment is not None:
        values = augment(values, request.draw)
    num_samples = len(values) if request.num_samples is None else request.num_samples
    return Example(values, request.label, request.draw, num_samples)


@dataclass(frozen=True)
class ClipDataset:
    """Some of the decoded clips, with the number of their label."""

    waveforms: Any  # Waveforms, or the Features that a frozen part of the model made of them
    rows: np.ndarray  # int64 [clips], into waveforms
    labels: np.ndarray  # int64 [clips]
    augment: Augmentation | None = None  # of training clips

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: int) -> Example:
        """The clip of a draw: epoch * len(self) + its index."""
        return example_of(self.request(draw), self.waveforms.store, self.augment)

    def request(self, draw: int) -> Request:
        index = draw % len(self)
        row, decoded = self.rows[index], self.decoded
        num_samples = None if decoded is self.waveforms else int(decoded.num_samples[row])
        return Request(self.waveforms.place(row), int(self.labels[index]), draw, num_samples)

    def at_its_longest(self, index: int) -> Example:
        """A clip, repeated up to the length that augmentation may give it: it takes the most memory."""
        example = dataclasses.replace(self, augment=None)[index]
        if self.augment is None:
            return example
        return example._replace(values=np.resize(example.values, self.num_samples[index]))

    @property
    def num_samples(self) -> np.ndarray:
        """int64 [clips], the length of each waveform; of one that is augmented, the most that it may be."""
        lengths = self.decoded.num_samples[self.rows]
        return lengths if self.augment is None else self.augment.most_samples(lengths)

    @property
    def decoded(self) -> Any:
        """The Waveforms, also where `waveforms` are features made of them."""
        return getattr(self.waveforms, "waveforms", self.waveforms)

    @property
    def clips(self) -> list[Clip]:
        return [self.decoded.clips[row] for row in self.rows]

    @property
    def paths(self) -> list[str]:
        return [clip.path for clip in self.clips]


def step_batches(
    clips: ClipDataset,
    steps: Iterable[Step],
    collate: Collator,
    *,
    num_workers: int | None,
    device: torch.device,
    stop: Stop | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[Step, Iterator[tuple[int, Batch, bool]]]]:
    """Each of `steps`, with each of a rank's micro-batches: its number, the Batch, whether it is the last.

    A rank without one repeats the step's smallest, of which no clip counts. Batches of a step that are not
    asked for are passed over: the next step has its own all the same. The rest is as for `load_batches`.
    """
    lengths = clips.num_samples if world_size > 1 else None

    def dealt(step: Step) -> tuple[Step, list[int], bool]:
        if lengths is None:
            return step, list(range(len(step.micro_batches))), True
        return step, *step.share_of(rank, world_size, lengths)

    ours, ahead = itertools.tee(map(dealt, steps))
    draws = (step.micro_batches[number] for step, numbers, _ in ahead for number in numbers)
    batches = load_batches(clips, draws, collate, num_workers=num_workers, device=device, stop=stop)
    for step, numbers, they_count in ours:
        own = itertools.islice(batches, len(numbers))
        weighed = own if they_count else map(of_no_weight, own)
        last = numbers[-1]
        pairs = zip(numbers, weighed, strict=False)  # the batches may end early
        yield step, ((number, batch, number == last) for number, batch in pairs)
        for _ in own:
            pass


def of_no_weight(batch: Batch) -> Batch:
    """The batch with no clip that counts: its loss and its gradient are 0."""
    return dataclasses.replace(
        batch, labels=torch.full_like(batch.labels, IGNORED), num_samples=0, padding_samples=0
    )


def load_batches(
    clips: ClipDataset,
    draws: Iterable[list[int]],
    collate: Collator,
    *,
    num_workers: int | None,
    device: torch.device,
    stop: Stop | None = None,
) -> Iterator[Batch]:
    """A Batch of the clips of each list of draws, in their order, put together for `device`.

    There are no more of them once `stop` is requested. `num_workers` None: `usual_workers`. Raises
    InputOutputFailed, naming clips, where a file is gone, or a worker is killed or gives nothing for
    LONGEST_WAIT_SECONDS.
    """
    asked, awaited = itertools.tee(draws)
    loader = DataLoader(
        Task(Prepare(clips.waveforms.store, clips.augment, collate)),
        sampler=([clips.request(draw) for draw in batch_draws] for batch_draws in asked),
        batch_size=None,  # what is asked for at a time makes a batch
        num_workers=usual_workers(device) if num_workers is None else num_workers,
        worker_init_fn=begin,
        pin_memory=device.type == "cuda",
    )
    batches = watched(loader, stop) if loader.num_workers else map(unwrapped, loader)

    def paths(draws: list[int]) -> str:
        rows = [clips.rows[draw % len(clips)] for draw in draws]
        return named([clips.decoded.clips[row].path for row in rows], 3)

    for batch_draws in awaited:
        if stop is not None and stop.requested:
            return
        try:
            batch = next(batches)
        except WorkerLost as lost:
            if stop is not None and stop.requested:
                return
            # It prepares two batches ahead, in turns with the others.
            turns = itertools.islice(awaited, loader.num_workers - 1, loader.num_workers)
            had = " and ".join(map(paths, (batch_draws, *turns)))
            about = how_to_start() if lost.at_start else f"It had {had}."
            raise InputOutputFailed(f"A process that prepares batches {lost}. {about}") from None
        except BadAudio as error:  # a file that was there when the run began
            raise InputOutputFailed(f"One of {paths(batch_draws)} {error}.") from None
        yield batch


def usual_workers(device: torch.device) -> int:
    """None for a CPU, whose cores they would take. For a GPU two, or four where it has cores for them.

    Beside an H200 two gave 7,300 seconds of audio a second in clips of 1 s, and four 12,900: more than it
    trains on (benchmarks/gpu/bench.py).
    """
    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # which share the machine
    return 0 if device.type != "cuda" else 4 if available_cores() >= 8 * num_ranks else 2


def how_to_start() -> str:
    """What to do about workers that end before they begin."""
    says = "What is printed above says why; --num-workers 0 does without such processes."
    if multiprocessing.get_start_method() != "fork":
        says += ' A script of your own must do all below `if __name__ == "__main__":`: they import it.'
    return says
