"""Exact evaluation: every clip once, sums and counts divided at the end."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from audiocls.data.collators import Batch
from audiocls.data.loader import ClipDataset
from audiocls.devices import autocast
from audiocls.metrics import all_scores
from audiocls.signals import StopSignal


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a set of clips found."""

    # What is logged, and the best may be chosen by: "loss", the mean cross-entropy of a clip without label
    # smoothing, each of SCORES, and "num_clips".
    scores: dict[str, Any]
    probabilities: np.ndarray  # float32 [clips, labels]


def is_better(scores: dict[str, float], best: float | None, metric: str) -> bool:
    """Strictly better, so that of equals the first stays; a model whose loss is no number never is."""
    score = scores[metric]
    if not np.isfinite(scores["loss"]):
        return False
    return best is None or (score < best if metric == "loss" else score > best)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    precision: str,
    stop: StopSignal | None = None,
) -> Evaluation | None:
    """Score `model` on every clip of `batches`; the model is left in the mode it came in.

    None where `stop` was requested meanwhile, for which `batches` end early.
    """
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
    if stop is not None and stop.requested:
        return None

    logits, labels = torch.cat(all_logits).cpu(), torch.cat(all_labels).cpu()
    loss, probabilities = F.cross_entropy(logits.double(), labels).item(), logits.softmax(-1).numpy()
    scores = {"loss": loss, **all_scores(labels.numpy(), probabilities), "num_clips": len(labels)}
    return Evaluation(scores, probabilities)


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
