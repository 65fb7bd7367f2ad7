"""Exact evaluation: every clip once, sums and counts divided at the end."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from audiocls.data.collators import Batch
from audiocls.data.loader import ClipDataset
from audiocls.devices import autocast
from audiocls.distributed import ALONE, Ranks
from audiocls.metrics import all_scores
from audiocls.signals import StopSignal
from audiocls.storage import failing_as, write_text


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a set of clips found."""

    # What is logged, and the best may be chosen by: "loss", the mean cross-entropy of a clip without label
    # smoothing, each of SCORES, and "num_clips".
    scores: dict[str, Any]
    probabilities: np.ndarray  # float32 [clips, labels]


def is_better(scores: dict[str, float], best: float | None, metric: str) -> bool:
    """Strictly better, so that of equals the first stays; where loss or score is no number, never."""
    score = scores[metric]
    if not (np.isfinite(scores["loss"]) and np.isfinite(score)):
        return False
    return best is None or (score < best if metric == "loss" else score > best)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    precision: str,
    stop: StopSignal | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation | None:
    """Score `model` on every clip of the ranks' `batches`; the model is left in the mode it came in.

    Ranks take the batches in turns, and each gets the scores of all clips. None where `stop` was requested
    meanwhile on any of them, for which its `batches` end early.
    """
    was_training = model.training
    model.eval()
    outputs = []
    for batch in batches:
        batch = batch.to(device)
        with autocast(device, precision):
            logits = model(**batch.inputs)
        outputs.append((logits.float(), batch.labels))
    model.train(was_training)
    own = [(logits.cpu(), labels.cpu()) for logits, labels in outputs]
    stopped, of_ranks = zip(*ranks.gather((stop is not None and stop.requested, own)), strict=True)
    if any(stopped):
        return None

    in_order = [batch for turn in itertools.zip_longest(*of_ranks) for batch in turn if batch is not None]
    logits, labels = map(torch.cat, zip(*in_order, strict=True))
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
            "probabilities": [float(f"{p:.6g}") for p in probabilities],  # also small ones have six digits
        }
        for clip, probabilities in zip(clips.clips, evaluation.probabilities.tolist(), strict=True)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def keep_test_predictions(run_folder: Path, lines: str) -> None:
    """Put the test set's lines into predictions.jsonl, after the evaluation's, instead of older ones."""
    path = run_folder / "predictions.jsonl"
    with failing_as(path):
        before = path.read_text(encoding="utf-8").splitlines(keepends=True)
    write_text(path, "".join(line for line in before if json.loads(line)["split"] != "test") + lines)
