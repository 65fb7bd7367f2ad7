"""Exact evaluation: every clip once, sums and counts divided at the end."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from audiocls.data.loader import Batch, ClipDataset
from audiocls.devices import autocast
from audiocls.metrics import accuracy, confusion_matrix, macro_f1


@dataclass(frozen=True)
class Evaluation:
    """The scores of one pass over a set of clips."""

    loss: float  # mean cross-entropy a clip, without label smoothing
    accuracy: float
    macro_f1: float
    num_samples: int  # clips
    probabilities: np.ndarray  # float32 [clips, labels]

    @property
    def scores(self) -> dict[str, Any]:
        """What is logged, and what the best may be chosen by."""
        return {name: getattr(self, name) for name in ("loss", "accuracy", "macro_f1", "num_samples")}


def is_better(scores: dict[str, float], best: float | None, metric: str) -> bool:
    """Strictly better, so that of equals the first stays; a model whose loss is no number never is."""
    score = scores[metric]
    if not np.isfinite(scores["loss"]):
        return False
    return best is None or (score < best if metric == "loss" else score > best)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], device: torch.device, precision: str) -> Evaluation:
    """Score `model` on every clip of `batches`; the model is left in the mode it came in."""
    was_training = model.training
    model.eval()
    all_logits, all_labels = [], []
    for batch in batches:
        batch = batch.to(device)
        with autocast(device, precision):
            logits = model(**batch.inputs)
        all_logits.append(logits.float())
        all_labels.append(batch.labels)
    model.train(was_training)

    logits, labels = torch.cat(all_logits).cpu(), torch.cat(all_labels).cpu()
    confusion = confusion_matrix(labels.numpy(), logits.argmax(-1).numpy(), logits.shape[-1])
    return Evaluation(
        loss=F.cross_entropy(logits.double(), labels).item(),
        accuracy=accuracy(confusion),
        macro_f1=macro_f1(confusion),
        num_samples=len(labels),
        probabilities=logits.softmax(-1).numpy(),
    )


def prediction_lines(split: str, clips: ClipDataset, evaluation: Evaluation) -> str:
    """predictions.jsonl: for each clip its path, its true label and every label's probability."""
    lines = [
        {
            "split": split,
            "path": clip.path,
            "label": clip.label,
            "probabilities": [round(p, 6) for p in probabilities],
        }
        for clip, probabilities in zip(clips.clips, evaluation.probabilities.tolist(), strict=True)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)
