"""SpecAugment's masks over frames and channels, drawn clip by clip.

transformers draws them inside the model, a batch at a time, from NumPy's global generator, and reads the
attention mask back from the device for it. Here they are made with the batch: a clip's masks are a function
of (seed, epoch, clip), whatever shares the batch. Source: Park et al. 2019, https://arxiv.org/abs/1904.08779,
in the form of `transformers`' `_compute_mask_indices`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from audiocls.data.loader import Batch, Collator, Example


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

    Where the model is configured to mask channels, `masked_channels`, bool [batch, hidden], too.
    """

    collate: Collator
    frames_of: Callable[[int], int]  # frames of so many samples, or of what a spectrogram's mask counts
    seed: int
    frames: Spans
    channels: Spans | None = None
    hidden_size: int = 0

    def __call__(self, examples: list[Example]) -> Batch:
        batch = self.collate(examples)
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
            generator = np.random.default_rng([self.seed, example.number])
            num_frames = self.frames_of(length)
            masked_frames[row, :num_frames] = self.frames.draw(num_frames, generator)
            if self.channels:
                masked_channels[row] = self.channels.draw(self.hidden_size, generator)
        batch.inputs["masked_frames"] = torch.from_numpy(masked_frames)
        if self.channels:
            batch.inputs["masked_channels"] = torch.from_numpy(masked_channels)
        return batch
