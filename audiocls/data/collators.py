"""Waveforms and labels -> padded batches, with SpecAugment's masks."""

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from audiocls.data.resampling import Waveform
from audiocls.hub import import_transformers


class Example(NamedTuple):
    """A clip as it is put into a batch."""

    # float32 [samples], or features, float16 [frames, channels], or pooled states, float32 [states, hidden]
    values: np.ndarray
    label: int = 0
    draw: int = 0  # epoch * num_clips + clip index: seeds everything random about this example
    num_samples: int = 0  # of the clip, whatever the values are


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


Collator = Callable[[list[Example]], Batch]


@dataclass(frozen=True)
class WaveformCollator:
    """`input_values`, float32 [batch, samples], padded on the right as the feature extractor says.

    Where `with_lengths` says so and something is padded: `lengths`, int64 [batch], the samples of each clip.
    """

    feature_extractor: Any
    with_lengths: bool = False
    edges: tuple[int, ...] = ()  # lengths to pad to, so that a GPU meets few

    def __call__(self, examples: list[Example]) -> Batch:
        lengths = torch.tensor([len(example.values) for example in examples])
        longest = padded_length(int(lengths.max()), self.edges)
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

    def __reduce__(self) -> Any:
        # Its class is transformers', whose import must find torchaudio as our guard leaves it. A worker makes
        # the filter bank anew: with that, Whisper's has 129 kB, and the pipe to a new process takes 64 kB.
        extractor = self.feature_extractor
        return unpickled_collator, (pickle.dumps(type(extractor)), extractor.to_dict())

    def __call__(self, examples: list[Example]) -> Batch:
        waveforms = [example.values.copy() for example in examples]  # AST's warns of a read-only array
        rate = self.feature_extractor.sampling_rate
        inputs = dict(self.feature_extractor(waveforms, sampling_rate=rate, return_tensors="pt"))
        return Batch(inputs, labels_of(examples), sum(map(len, waveforms)))


def unpickled_collator(extractor_class: bytes, settings: dict[str, Any]) -> SpectrogramCollator:
    import_transformers()
    return SpectrogramCollator(pickle.loads(extractor_class).from_dict(settings))


@dataclass(frozen=True)
class FeatureCollator:
    """`features`, float16 [batch, channels, frames], of clips that have been through the convolutions.

    `lengths`, as above, counts samples all the same.
    """

    samples_of_frames: Callable[[int], int]
    edges: tuple[int, ...] = ()  # as above, in frames

    def __call__(self, examples: list[Example]) -> Batch:
        longest = padded_length(max(len(example.values) for example in examples), self.edges)
        features = np.zeros((len(examples), longest, examples[0].values.shape[1]), np.float16)
        for row, example in enumerate(examples):
            features[row, : len(example.values)] = example.values
        inputs = {"features": torch.from_numpy(features).transpose(1, 2)}
        lengths = torch.tensor([self.samples_of_frames(len(example.values)) for example in examples])
        most, num_samples = self.samples_of_frames(longest), int(lengths.sum())
        if lengths.min() < most:
            inputs["lengths"] = lengths
        return Batch(inputs, labels_of(examples), num_samples, most * len(examples) - num_samples)


def collate_pooled(examples: list[Example]) -> Batch:
    """`pooled`, float32 [batch, states, hidden], of clips that have been through the whole encoder."""
    pooled = torch.from_numpy(np.stack([example.values for example in examples]))
    return Batch({"pooled": pooled}, labels_of(examples), sum(example.num_samples for example in examples))


def padded_length(longest: int, edges: tuple[int, ...]) -> int:
    """The first of `edges` that a batch fits into; none does: its longest clip's own length."""
    return next((edge for edge in edges if edge >= longest), longest)


def length_quantiles(num_samples: np.ndarray, most: int = 4) -> tuple[int, ...]:
    """Up to `most` lengths to pad to, in samples: quantiles of the clips' lengths, int64 [clips]."""
    edges = np.quantile(num_samples, np.arange(1, most + 1) / most, method="higher")
    return tuple(np.unique(edges).tolist())


def length_grid(num_samples: np.ndarray, ratio: float = 1.05) -> tuple[int, ...]:
    """Lengths to pad to, in samples, each `ratio` times the one before; the last is that of the longest clip.

    On average that is half of `ratio - 1` more padding, and a few dozen lengths where clips last 1 to 10 s.
    """
    longest, shortest = float(num_samples.max()), float(num_samples.min())
    count = math.ceil(math.log(longest / shortest, ratio)) + 1
    return tuple(sorted({math.ceil(longest / ratio**number) for number in range(count)}))


def labels_of(examples: list[Example]) -> Tensor:
    return torch.tensor([example.label for example in examples])


def normalize(waveform: Waveform) -> Waveform:
    """Zero mean and unit variance, as `Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm` has it."""
    return (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)


@dataclass(frozen=True)
class Spans:
    """How much of an axis is masked, in spans that may overlap."""

    prob: float  # the share of the axis in masked spans, were there no overlaps
    length: int  # of a span
    min_spans: int = 0  # where they fit

    def draw(self, size: int, generator: np.random.Generator) -> np.ndarray:
        """bool [size], True = masked."""
        is_masked = np.zeros(size, bool)
        for start in self.starts(size, generator):
            is_masked[start : start + self.length] = True
        return is_masked

    def starts(self, size: int, generator: np.random.Generator) -> np.ndarray:
        """Where the spans begin, int [spans]; none for a share of 0."""
        # Rounded up or down at random, so that the share is right on average.
        wanted = int(self.prob * size / self.length + generator.random())
        starts = max(0, size - self.length + 1)
        num_spans = min(max(wanted, self.min_spans), size // self.length, starts) if self.prob else 0
        return generator.choice(starts, num_spans, replace=False) if num_spans else np.zeros(0, int)


@dataclass(frozen=True)
class SpecAugment:
    """A collator whose batches also hold `masked_frames`, bool [batch, frames]; True = masked.

    Where the model is configured to mask channels, `masked_channels`, bool [batch, hidden], too. A clip's
    masks are a function of (seed, draw), whatever shares the batch; transformers draws them inside the model,
    a batch at a time, from NumPy's global generator. Source: Park et al. 2019,
    https://arxiv.org/abs/1904.08779, in the form of transformers' `_compute_mask_indices`.
    """

    collate: Collator
    frames_of: Callable[[int], int]  # frames of so many samples, or of what a spectrogram's mask counts
    seed: int
    frames: Spans
    channels: Spans | None = None
    hidden_size: int = 0

    def __call__(self, examples: list[Example]) -> Batch:
        batch = self.collate(examples)
        # In samples. A model that is not told of padding takes it for audio: then it may be masked, too.
        longest = (batch.num_samples + batch.padding_samples) // len(examples)
        lengths = [longest] * len(examples)
        if "lengths" in batch.inputs:
            lengths = batch.inputs["lengths"].tolist()
        elif "attention_mask" in batch.inputs:  # of a spectrogram
            mask = batch.inputs["attention_mask"]
            longest, lengths = mask.shape[1], mask.sum(1).tolist()
        masked_frames = np.zeros((len(examples), self.frames_of(longest)), bool)
        masked_channels = np.zeros((len(examples), self.hidden_size), bool)
        for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            generator = np.random.default_rng([self.seed, example.draw])
            num_frames = self.frames_of(length)
            masked_frames[row, :num_frames] = self.frames.draw(num_frames, generator)
            if self.channels:
                masked_channels[row] = self.channels.draw(self.hidden_size, generator)
        batch.inputs["masked_frames"] = torch.from_numpy(masked_frames)
        if self.channels:
            batch.inputs["masked_channels"] = torch.from_numpy(masked_channels)
        return batch
