"""Run folders to report on: written by hand, so that every number in them is known, and without any model."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from audiocls.config import TrainConfig

# What a label or a path may hold: HTML, a quote's end, Markdown, YAML, mathtext, controls, bidi, a surrogate.
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "{{ 7 * 7 }}{% raw %}",
    "a: [b, *c] # | `d` --- $x^$ _e_ [f](javascript:alert(1))",
    "line\nbreak\x00\x07\x1b[31m",
    "\u202ereversed\u2066\ud800",
)


def write_run_folder(
    folder: Path,
    labels: list[str],
    *,
    num_clips: int = 60,
    split: str = "test",
    seed: int = 0,
    paths: list[str] | None = None,
    versions: dict[str, str] | None = None,
    **config: Any,
) -> Path:
    """A finished run of 30 steps whose model is right about two times in three."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    true = generator.integers(0, len(labels), num_clips)
    logits = generator.normal(size=(num_clips, len(labels)))
    logits[np.arange(num_clips), true] += np.where(generator.random(num_clips) < 2 / 3, 4, 0)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    paths = paths or [f"clips/{index:03d}.wav" for index in range(num_clips)]
    lines = [
        {"split": split, "path": path, "label": labels[label], "probabilities": row}
        for path, label, row in zip(paths, true, probabilities.round(6).tolist(), strict=True)
    ]
    as_lines(folder / "predictions.jsonl", lines)
    as_lines(folder / "metrics.jsonl", records(split, num_clips))
    run = {
        "config": vars(TrainConfig(dataset="clips.csv", model="tiny", **config)),
        "label2id": {label: id for id, label in enumerate(labels)},
        "split_fingerprint": "0123456789abcdef",
        "clips": {"train": 200, "evaluation": 50, "test": num_clips if split == "test" else 0},
        "evaluation_is": "validation",
        "hub_commits": {},
        "device": "a CPU",
        "precision": "fp32",
        "clips_per_step": 32,
        "versions": versions or {"audiocls": "0.1.0", "python": "3.12", "torch": "2.13"},
    }
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def records(split: str, num_clips: int) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for step in (10, 20, 30):
        speed = {"clips_per_second": 100.0, "audio_seconds_per_second": 80.0, "padding_share": 0.1}
        train = {"step": step, "epoch": step / 10, "loss": 2 / step, "learning_rate": 1e-3, "grad_norm": None}
        made.append({"kind": "train", **train, **speed, "data_wait_seconds": 0.5})
        scores = {"loss": 1 / step, "accuracy": 0.5, "macro_f1": 0.4, "num_clips": 50}
        made.append({"kind": "eval", "step": step, "epoch": step / 10, **scores, "is_best": step <= 20})
    if split == "test":
        scores = {"loss": 0.123456, "accuracy": 0.5, "macro_f1": 0.4, "num_clips": num_clips}
        made.append({"kind": "test", "step": 20, "epoch": 2.0, **scores})
    end = {"step": 30, "best_step": 20, "best_metric": "accuracy", "best_score": 0.5}
    return [*made, {"kind": "end", **end, "wall_seconds": 3723.0, "reason": "epochs"}]


def as_lines(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
