"""Waveforms and labels -> padded batches, through torch's DataLoader."""

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from audiocls.data.audio import BadAudio
from audiocls.data.clips import Clip
from audiocls.data.resampling import Waveform
from audiocls.data.workers import WorkerLost, started
from audiocls.errors import InputOutputFailed, named
from audiocls.signals import StopSignal


class Example(NamedTuple):
    """A clip as it is put into a batch."""

    values: np.ndarray  # float32 [samples], or features, float16 [frames, channels]
    label: int = 0
    number: int = 0  # of the clip, counted on over the epochs: what is random about it follows from this


@dataclass
class Batch:
    """What one forward pass takes."""

    inputs: dict[str, Tensor]  # as the model's forward names them, see Collator
    labels: Tensor  # int64 [batch]
    num_samples: int  # of real audio
    padding_samples: int = 0  # beside it; of spectrograms not counted

    def pin_memory(self) -> "Batch":
        inputs = {name: tensor.pin_memory() for name, tensor in self.inputs.items()}
        return replace(self, inputs=inputs, labels=self.labels.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`; to a CUDA GPU, from pinned memory, the copy does not wait."""
        # On Apple's GPU it must: the memory is freed before it is read (pytorch issue 189690).
        ahead = device.type == "cuda"
        inputs = {name: tensor.to(device, non_blocking=ahead) for name, tensor in self.inputs.items()}
        return replace(self, inputs=inputs, labels=self.labels.to(device, non_blocking=ahead))


@dataclass(frozen=True)
class ClipDataset(Dataset):
    """Some of the decoded clips, with the number of their label."""

    waveforms: Any  # Waveforms, or Features made of them: an array for each clip of the data set
    rows: np.ndarray  # int64 [clips], into waveforms
    labels: np.ndarray  # int64 [clips]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Example:
        """The clip of that number; they count on over the epochs."""
        index = number % len(self)
        return Example(self.waveforms[self.rows[index]], int(self.labels[index]), number)

    @property
    def num_samples(self) -> np.ndarray:
        """int64 [clips], the length of each waveform."""
        return self.decoded.num_samples[self.rows]

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

    @property
    def identities(self) -> list[str]:
        """What each clip is: its name and its label."""
        return [f"{clip.path}\0{clip.label}" for clip in self.clips]


Collator = Callable[[list[Example]], Batch]


@dataclass(frozen=True)
class WaveformCollator:
    """`input_values`, float32 [batch, samples], padded on the right as the feature extractor says.

    Where `with_lengths` says so and something is padded: `lengths`, int64 [batch], the samples of each clip.
    """

    feature_extractor: Any
    with_lengths: bool = False
    edges: tuple[int, ...] = ()  # lengths to pad to, so that a compiled model meets few

    def __call__(self, examples: list[Example]) -> Batch:
        lengths = torch.tensor([len(example.values) for example in examples])
        longest = next((edge for edge in self.edges if edge >= lengths.max()), int(lengths.max()))
        input_values = np.full((len(examples), longest), self.feature_extractor.padding_value, np.float32)
        for row, example in enumerate(examples):
            waveform = example.values
            normal = normalize(waveform) if self.feature_extractor.do_normalize else waveform
            input_values[row, : len(waveform)] = normal
        inputs = {"input_values": torch.from_numpy(input_values)}
        if self.with_lengths and lengths.min() < longest:
            inputs["lengths"] = lengths
        num_samples = int(lengths.sum())
        return Batch(inputs, labels_of(examples), num_samples, input_values.size - num_samples)


@dataclass(frozen=True)
class SpectrogramCollator:
    """What the feature extractor of a spectrogram model (AST, Whisper, Wav2Vec2-BERT) makes of waveforms."""

    feature_extractor: Any

    def __call__(self, examples: list[Example]) -> Batch:
        waveforms = [example.values for example in examples]
        rate = self.feature_extractor.sampling_rate
        inputs = dict(self.feature_extractor(waveforms, sampling_rate=rate, return_tensors="pt"))
        return Batch(inputs, labels_of(examples), sum(map(len, waveforms)))


@dataclass(frozen=True)
class FeatureCollator:
    """`features`, float16 [batch, channels, frames], of clips that have been through the convolutions.

    `lengths`, as above, counts samples all the same.
    """

    samples_of_frames: Callable[[int], int]

    def __call__(self, examples: list[Example]) -> Batch:
        longest = max(len(example.values) for example in examples)
        features = np.zeros((len(examples), longest, examples[0].values.shape[1]), np.float16)
        for row, example in enumerate(examples):
            features[row, : len(example.values)] = example.values
        inputs = {"features": torch.from_numpy(features).transpose(1, 2)}
        lengths = torch.tensor([self.samples_of_frames(len(example.values)) for example in examples])
        most, num_samples = self.samples_of_frames(longest), int(lengths.sum())
        if lengths.min() < most:
            inputs["lengths"] = lengths
        return Batch(inputs, labels_of(examples), num_samples, most * len(examples) - num_samples)


def length_edges(num_samples: np.ndarray, most: int = 4) -> tuple[int, ...]:
    """Up to `most` lengths to pad to, in samples: quantiles of the clips' lengths, int64 [clips]."""
    return tuple(
        sorted({int(np.quantile(num_samples, k / most, method="higher")) for k in range(1, most + 1)})
    )


def labels_of(examples: list[Example]) -> Tensor:
    return torch.tensor([example.label for example in examples])


def normalize(waveform: Waveform) -> Waveform:
    """Zero mean and unit variance, as `Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm` has it."""
    return (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)


@dataclass(frozen=True)
class Loader:
    """A Batch for each of `batches`, in their order; each iteration starts workers of its own."""

    clips: ClipDataset
    batches: Iterable[list[int]]  # the clips of each, by number
    options: dict[str, Any]
    stop: StopSignal | None = None  # leaves, where a signal asked for that, instead of giving the next batch

    def __iter__(self) -> Iterator[Batch]:
        asked, named = itertools.tee(self.batches)
        loader = DataLoader(self.clips, batch_sampler=asked, **self.options)
        wait_for = self.stop.wait_for if self.stop else operator.call
        with started(loader) as prepared:
            for numbers in named:
                try:
                    batch = wait_for(lambda: next(prepared))
                except WorkerLost as lost:
                    # It prepares two batches ahead, in turns with the others.
                    turns = itertools.islice(named, loader.num_workers - 1, loader.num_workers)
                    clips = " and ".join(self.names(batch) for batch in (numbers, *turns))
                    raise InputOutputFailed(
                        f"A process that prepares batches {lost}. It had {clips}."
                    ) from None
                except BadAudio as error:  # a file that was there when the run began
                    raise InputOutputFailed(
                        f"One of {self.names(numbers)} {str(error).splitlines()[-1]}."
                    ) from None
                yield batch

    def names(self, numbers: list[int]) -> str:
        """The paths of these clips, the first few of them."""
        rows = [self.clips.rows[number % len(self.clips)] for number in numbers]
        return named([self.clips.decoded.clips[row].path for row in rows], 3)


def make_loader(
    clips: ClipDataset,
    batches: Iterable[list[int]],
    collate: Collator,
    *,
    num_workers: int | None,
    device: torch.device,
    stop: StopSignal | None = None,
) -> Loader:
    """The clips of `batches`, put together for `device`.

    `num_workers` None: two for a GPU, so that it need not wait; none for a CPU, whose cores they would take.
    """
    on_gpu = device.type == "cuda"
    options = {
        "collate_fn": collate,
        "num_workers": 2 * on_gpu if num_workers is None else num_workers,
        "pin_memory": on_gpu,
    }
    return Loader(clips, batches, options, stop)
