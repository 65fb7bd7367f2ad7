"""What a device and a precision do to a run's scores.

    python benchmarks/gpu/scores.py RUN DEVICE FILE...           # how far they are from the CPU's
    python benchmarks/gpu/scores.py RUN DEVICE --labels FILE...  # how many labels change with the precision

The first ends with 1 where a score of fp32 is more than MOST away from the CPU's. The second classifies the
files, or where they are few some MOST_LABELS windows of them, on the device alone; each precision gives a
line. Whether one may be the default is read there: a label that changes matters where the two best scores of
fp32 were far apart.
"""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
import numpy as np
import soundfile
import torch

from audiocls.devices import pick_precision, synchronize
from audiocls.errors import UserError
from audiocls.inference.classifier import Classifier

MOST = 1e-3
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")  # those that are known here are tried
MOST_LABELS = 3_000
FEW = 1_000
WINDOW_SECONDS = 1.0


def main() -> int:
    run, device, *files = sys.argv[1:]
    if files[:1] == ["--labels"]:
        compare_labels(run, device, files[1:])
        return 0
    return compare_scores(run, device, files)


def compare_scores(run: str, device: str, files: list[str]) -> int:
    """Alone and in batches, in each precision; the reference is the CPU, alone, in float32."""
    reference = scores_of(classifier_of(run, "cpu", "fp32"), files, batch_size=1, max_seconds=10)
    worst = 0.0
    for precision in precisions(device):
        classifier = classifier_of(run, device, precision)
        for batch_size in (1, None):
            scores = scores_of(classifier, files, batch_size=batch_size, max_seconds=10)
            furthest = np.abs(scores - reference).max()
            same = (scores.argmax(1) == reference.argmax(1)).mean()
            how = "alone" if batch_size == 1 else "in batches"
            print(f"scores {device} {precision} {how}: {furthest:.2e} from the CPU's, same label {same:.3f}")
            worst = max(worst, furthest) if precision == "fp32" else worst
    return int(worst > MOST)


def compare_labels(run: str, device: str, files: list[str]) -> None:
    """How many get another label than in fp32 on the same device, and how near its two best scores were."""
    options: dict[str, float] = {}
    if len(files) < FEW:
        seconds = sum(max(0.0, soundfile.info(file).duration - WINDOW_SECONDS) for file in files)
        hop = max(0.001, seconds / MOST_LABELS)
        options = {"window_seconds": WINDOW_SECONDS, "hop_seconds": hop}
    reference = np.zeros(0)
    for precision in precisions(device):
        classifier = classifier_of(run, device, precision)
        scores_of(classifier, files[:1], max_seconds=WINDOW_SECONDS)  # what comes once
        synchronize(torch.device(device))
        began = time.perf_counter()
        scores = scores_of(classifier, files, **options)
        took = time.perf_counter() - began
        if precision == "fp32":
            reference = scores
            second, best = np.sort(scores, axis=1)[:, -2:].T
            margins = best - second
            quantiles = np.quantile(margins, (0.01, 0.1, 0.5))
            print(
                f"labels {device} fp32: {len(scores)} labels in {took:.1f} s, two best scores apart "
                "(1%, 10%, 50% of them) " + ", ".join(f"{margin:.4f}" for margin in quantiles)
            )
            continue
        changed = scores.argmax(1) != reference.argmax(1)
        line = f"{changed.sum()} of {len(scores)} labels change ({changed.mean():.2%})"
        if changed.any():
            median, most = np.median(margins[changed]), margins[changed].max()
            line += f", where fp32's two best scores were {median:.4f} apart (median), at most {most:.4f}"
        furthest = np.abs(scores - reference).max()
        print(f"labels {device} {precision}: {line}; furthest score {furthest:.4f}; {took:.1f} s", flush=True)


def precisions(device: str) -> list[str]:
    """fp32 comes first."""
    known = []
    for name in PRECISIONS:
        try:
            pick_precision(name, torch.device(device))
        except UserError:
            continue
        known.append(name)
    return known


def classifier_of(run: str, device: str, precision: str) -> Classifier:
    return Classifier.from_pretrained(run, device=device, precision=precision)


def scores_of(classifier: Classifier, files: list[str], **options: Any) -> np.ndarray:
    """[pieces, labels] of each window, or where there are none of each file, labels in the model's order."""
    rows = []
    for prediction in classifier.stream(files, top_k=None, **options):
        if prediction.error is not None:
            raise SystemExit(f"{prediction.path}: {prediction.error}")
        if prediction.num_windows is None:  # of windows put together: they have been seen
            scores = dict(prediction.scores)
            rows.append([scores[label] for label in classifier.labels])
    return np.array(rows)


if __name__ == "__main__":
    sys.exit(main())
