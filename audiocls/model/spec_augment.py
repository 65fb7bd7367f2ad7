"""SpecAugment's masks over time, drawn clip by clip.

transformers draws them inside the model, a batch at a time, from NumPy's global generator, and reads the
attention mask back from the device for it. Here they are made with the batch: a clip's mask is a function of
(seed, epoch, clip), whatever shares the batch. Source: Park et al. 2019, https://arxiv.org/abs/1904.08779, in
the form of `transformers`' `_compute_mask_indices`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from audiocls.data.loader import Batch, Collator, Example


@dataclass(frozen=True)
class SpecAugment:
    """A collator whose batches also hold `mask_time_indices`, bool [batch, frames]; True = masked."""

    collate: Collator
    frames_of: Callable[[int], int]  # frames of so many samples, or of whatever the attention mask counts
    seed: int
    mask_prob: float  # the share of frames in masked spans, were there no overlaps
    mask_length: int  # frames of a span
    min_masks: int  # spans at least, where they fit

    def __call__(self, examples: list[Example]) -> Batch:
        batch = self.collate(examples)
        mask = batch.inputs.get("attention_mask")
        if mask is None:
            longest = (batch.num_samples + batch.padding_samples) // len(examples)
            lengths = [longest] * len(examples)
        else:
            longest, lengths = mask.shape[1], mask.sum(1).tolist()
        is_masked = np.zeros((len(examples), self.frames_of(longest)), bool)
        for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            generator = np.random.default_rng([self.seed, example.number])
            for start in self.spans(self.frames_of(length), generator):
                is_masked[row, start : start + self.mask_length] = True
        batch.inputs["mask_time_indices"] = torch.from_numpy(is_masked)
        return batch

    def spans(self, num_frames: int, generator: np.random.Generator) -> np.ndarray:
        """Where the masked spans of a clip begin; they may overlap."""
        # Rounded up or down at random, so that the share is right on average.
        wanted = int(self.mask_prob * num_frames / self.mask_length + generator.random())
        starts = max(0, num_frames - self.mask_length + 1)
        num_spans = min(max(wanted, self.min_masks), num_frames // self.mask_length, starts)
        return generator.choice(starts, num_spans, replace=False) if num_spans else np.zeros(0, int)
