"""Waveforms and labels -> padded batches, through torch's DataLoader."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from audiocls.data.audio import Waveform
from audiocls.data.cache import Waveforms
from audiocls.signals import ignore_stop_signals

Example = tuple[Waveform, int]  # float32 [samples], label


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
        """The batch on `device`; from pinned memory the copy does not wait."""
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        return replace(self, inputs=inputs, labels=self.labels.to(device, non_blocking=True))


@dataclass(frozen=True)
class ClipDataset(Dataset):
    """Some of the decoded clips, with the number of their label."""

    waveforms: Waveforms
    rows: np.ndarray  # int64 [clips], into waveforms
    labels: np.ndarray  # int64 [clips]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.waveforms[self.rows[index]], int(self.labels[index])

    @property
    def num_samples(self) -> np.ndarray:
        """int64 [clips], the length of each waveform."""
        return self.waveforms.num_samples[self.rows]

    @property
    def paths(self) -> list[str]:
        return [self.waveforms.clips[row].path for row in self.rows]


@dataclass(frozen=True)
class Collator:
    """Examples -> Batch, as the model's feature extractor prescribes.

    A waveform model gets `input_values`, float32 [batch, samples], padded on the right, and where `with_mask`
    says so and something is padded an `attention_mask`, int64 [batch, samples], 1 = real audio. A spectrogram
    model (AST, Whisper, Wav2Vec2-BERT) gets what its own feature extractor makes.
    """

    feature_extractor: Any
    takes_waveforms: bool
    with_mask: bool = False
    min_length: int = 0  # samples, or frames of a spectrogram, to pad to at least

    def __call__(self, examples: list[Example]) -> Batch:
        waveforms = [waveform for waveform, _ in examples]
        labels = torch.tensor([label for _, label in examples])
        num_samples = sum(map(len, waveforms))
        if not self.takes_waveforms:
            return Batch(self.extract(waveforms), labels, num_samples)
        inputs = self.pad(waveforms)
        return Batch(inputs, labels, num_samples, inputs["input_values"].numel() - num_samples)

    def pad(self, waveforms: list[Waveform]) -> dict[str, Tensor]:
        longest = max(self.min_length, *map(len, waveforms))
        input_values = np.full((len(waveforms), longest), self.feature_extractor.padding_value, np.float32)
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        for row, waveform in enumerate(waveforms):
            input_values[row, : len(waveform)] = (
                normalize(waveform) if self.feature_extractor.do_normalize else waveform
            )
        inputs = {"input_values": torch.from_numpy(input_values)}
        if self.with_mask and lengths.min() < longest:
            inputs["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
        return inputs

    def extract(self, waveforms: list[Waveform]) -> dict[str, Tensor]:
        extractor = self.feature_extractor
        made = extractor(waveforms, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        if "attention_mask" not in made:
            return dict(made)
        # Padding that the attention mask covers; other spectrograms come in one length.
        lacking = max(0, self.min_length - made["attention_mask"].shape[1])
        return {
            name: F.pad(tensor, (0,) * 2 * (tensor.ndim - 2) + (0, lacking)) for name, tensor in made.items()
        }


def normalize(waveform: Waveform) -> Waveform:
    """Zero mean and unit variance, as `Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm` has it."""
    return (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)


def make_loader(
    clips: ClipDataset,
    batches: Iterable[list[int]],
    collate: Collator,
    *,
    num_workers: int | None,
    device: torch.device,
) -> DataLoader:
    """A DataLoader that yields one Batch for each list of indices in `batches`, in their order.

    `num_workers` None: two for a GPU, so that it need not wait; none for a CPU, whose cores they would take.
    """
    on_gpu = device.type == "cuda"
    return DataLoader(
        clips,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=2 * on_gpu if num_workers is None else num_workers,
        pin_memory=on_gpu,
        worker_init_fn=ignore_stop_signals,
    )
