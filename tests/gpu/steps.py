"""Every architecture on a device: its scores beside the CPU's, and optimizer steps as the loop takes them.

Shared with benchmarks/gpu/archs.py.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architectures import fine_tuned, save_backbone
from torch.nn.utils import clip_grad_norm_

from audiocls.data.collators import Batch, Example
from audiocls.devices import Readback, autocast, pick_precision
from audiocls.inference.classifier import Classifier
from audiocls.model.backbone import LoadedModel
from audiocls.model.loading import load_for_training, open_backbone
from audiocls.training.loss import loss_sum
from audiocls.training.optim import (
    learning_rate_factor,
    make_optimizer,
    seed_everything,
    set_learning_rates,
    take_step,
)

LABELS = ["down", "left", "up"]
LENGTHS = (16_000, 9_000, 5_000, 16_000)  # samples: some are padded


def waveforms(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    """Noise, float32 [samples] each."""
    generator = np.random.default_rng(0)
    return [generator.standard_normal(length).astype(np.float32) for length in lengths]


def examples(lengths: tuple[int, ...] = LENGTHS) -> list[Example]:
    """Those waveforms as training clips, whose labels take turns."""
    return [Example(one, number % len(LABELS), number) for number, one in enumerate(waveforms(lengths))]


def backbone_to_train(name: str, **changes: Any) -> LoadedModel:
    """A model of that architecture, of random weights, as train.py has it."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        save_backbone(name, Path(folder), changes)
        return load_for_training(open_backbone(folder), LABELS, seed=0)


def classifier_of_spread_scores(name: str) -> LoadedModel:
    """A model of that architecture whose logits differ by about 1: else any two scores are alike."""
    loaded = fine_tuned(name, LABELS)
    classifier = getattr(loaded.model, "model", loaded.model).classifier
    head = getattr(classifier, "dense", classifier)
    with torch.no_grad():
        logits = loaded.model.eval()(**loaded.collator()(examples()).inputs)
        head.weight /= logits.std()
        head.bias /= logits.std()
    return loaded


def scores(loaded: LoadedModel, device: torch.device, precision: str) -> torch.Tensor:
    """A Classifier's scores of the waveforms, float32 [waveforms, labels]. The model goes to the device."""
    classifier = Classifier(loaded, device, pick_precision(precision, device))
    said = classifier(waveforms(), sampling_rate=16_000, batch_size=len(LENGTHS), top_k=None)
    return torch.tensor([[dict(one.scores)[label] for label in LABELS] for one in said])


class Stepper:
    """Takes whole optimizer steps, each part as in audiocls/training/loop.py."""

    def __init__(self, loaded: LoadedModel, device: torch.device, precision: str) -> None:
        self.model = loaded.model.to(device).train()
        self.device, self.precision = device, pick_precision(precision, device)
        self.optimizer = make_optimizer(self.model, 1e-3, 0.01)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.steps_taken = torch.zeros((), dtype=torch.int64, device=device)
        self.num_steps = 0

    def step(self, batch: Batch) -> Readback:
        """Loss and gradient norm on their way to the host: nothing here waits for them."""
        set_learning_rates(self.optimizer, learning_rate_factor(self.steps_taken, 10, 0.0, "linear"))
        batch = batch.to(self.device)
        seed_everything(0, self.num_steps, 0, self.device)
        with autocast(self.device, self.precision):
            logits = self.model(**batch.inputs)
        loss = loss_sum(logits, batch.labels, 0.0) / len(batch.labels)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(self.model.parameters(), 1.0)
        is_finite = torch.isfinite(loss.detach() + norm)
        take_step(self.optimizer, is_finite)
        self.steps_taken += is_finite
        self.scaler.update()
        self.optimizer.zero_grad()
        self.num_steps += 1
        return Readback(torch.stack([loss.detach(), norm]))
