"""Files or waveforms -> labels and scores, as the Hugging Face pipeline scores them."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiocls.config import AGGREGATES
from audiocls.data.audio import MAX_DECODE_SECONDS
from audiocls.data.batch_plan import in_batches
from audiocls.data.loader import Example
from audiocls.data.resampling import Waveform
from audiocls.devices import autocast, pick_device, pick_precision
from audiocls.errors import InputOutputFailed, UserError, out_of_memory_explained
from audiocls.inference.recordings import Hearing, Piece, Recording, pieces_of
from audiocls.inference.windows import WindowScores
from audiocls.model.backbone import load_for_inference
from audiocls.model.loaded import LoadedModel
from audiocls.storage import MANIFEST, damage, finish_swap

POOL_BATCHES = 16  # batches' worth of pieces held at once, so that those of one length can meet
POOL_SAMPLES = 2**24  # and no more audio than this: a quarter of an hour, 64 MB
SMALLER_WORK = "--batch-size 1, --window 30 for long recordings, or --max-seconds"


@dataclass(frozen=True)
class Prediction:
    """What a recording, or a window of it, was taken for; or why it could not be used."""

    path: str | None  # as given; None for a waveform or bytes
    scores: list[tuple[str, float]]  # (label, score), best first; empty where refused
    error: str | None = None
    start: float | None = None  # of a window, in seconds; None: this is about the whole recording
    end: float | None = None
    num_windows: int | None = None  # whose scores were put together
    true_label: str | None = None  # of a data set's clip

    @property
    def label(self) -> str | None:
        return self.scores[0][0] if self.scores else None

    @property
    def score(self) -> float | None:
        return self.scores[0][1] if self.scores else None


class Classifier:
    """A fine-tuned model that hears files or arrays.

        classifier = Classifier.from_pretrained("runs/minds14-wav2vec2-base")
        classifier(["a.wav", "b.flac"])[0].label
        classifier([waveform], sampling_rate=8_000)   # float [samples] or [samples, channels]

    A recording's scores do not depend on what else is classified with it. Where the architecture lets padding
    through (see `audiocls.model.stock`), only recordings of one length share a batch.
    """

    def __init__(self, loaded: LoadedModel, device: torch.device, precision: str = "fp32") -> None:
        self.model = loaded.model.to(device).eval()
        self.backbone = loaded.backbone
        self.device = device
        self.precision = precision
        self.padding_invariant = loaded.padding_invariant
        self.collate = loaded.collator()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        device: str = "auto",
        precision: str = "fp32",
        backbone: str = "audiocls",
    ) -> "Classifier":
        """The best model of a run folder, a saved model, or one on the Hub.

        With `backbone="transformers"` its logits are computed by transformers' own model.

        Raises UserError where it is no fine-tuned classifier, InputOutputFailed where it cannot be read.
        """
        where = pick_device(device)
        loaded = load_for_inference(model_folder(str(model)), revision, stock=backbone == "transformers")
        return cls(loaded, where, pick_precision(precision, where))

    @property
    def labels(self) -> list[str]:
        """The labels in the order of the model's outputs."""
        return list(self.backbone.labels)

    def __call__(self, inputs: Recording | Iterable[Recording], **options: Any) -> list[Prediction]:
        """What `stream` yields, in a list: without windows one Prediction for each input, in their order."""
        return list(self.stream(inputs, **options))

    def stream(
        self,
        inputs: Recording | Iterable[Recording],
        *,
        sampling_rate: int | None = None,
        top_k: int = 5,
        batch_size: int | None = None,
        max_seconds: float | None = None,
        max_decode_seconds: float = MAX_DECODE_SECONDS,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
        aggregate: str = "mean",
    ) -> Iterator[Prediction]:
        """Predictions as they are made, in the inputs' order.

        Args:
            inputs: recordings, or only one: each the path of a file, a file's bytes, or a waveform, [samples]
                or [samples, channels], as NumPy array or tensor; float in [-1, 1], or int16 or int32.
            sampling_rate: of the waveforms, in Hz; files know their own.
            top_k: how many labels a Prediction holds, best first.
            batch_size: recordings or windows in a forward pass; None: 1 on a CPU, where padding costs more
                than batches save, else 8.
            max_seconds: hear only the beginning.
            max_decode_seconds: refuse a file of which more would have to be decoded at once, without windows.
            window_seconds: classify windows of this length, each as if it were given alone, then the
                recording by them. Window k begins at k hops. One that the recording ends within is moved back
                to end with it; a recording shorter than a window is one window.
            hop_seconds: from one window's start to the next one's; None: window_seconds.
            aggregate: how a recording's scores come of its windows': their `mean`, their `max`, or by `vote`,
                the part of the windows whose best label it is.

        Yields a Prediction a recording; with windows, first one a window, with `start` and `end` in seconds.
        A recording that cannot be used is a Prediction with an `error`. Raises UserError for options that do
        not fit the model, and for a waveform without `sampling_rate`.
        """
        hearing = self.hearing(sampling_rate, max_seconds, max_decode_seconds, window_seconds, hop_seconds)
        batch_size = (1 if self.device.type == "cpu" else 8) if batch_size is None else batch_size
        if top_k < 1 or batch_size < 1:
            raise UserError("top_k and batch_size must be above 0.")
        if aggregate not in AGGREGATES:
            raise UserError(f"aggregate is {aggregate!r}: give one of {', '.join(AGGREGATES)}.")
        recordings = [inputs] if isinstance(inputs, Recording) else inputs
        pieces = (piece for recording in recordings for piece in pieces_of(recording, hearing))
        window_scores = WindowScores(aggregate)
        for pool in pools(pieces, 1 if batch_size == 1 else POOL_BATCHES * batch_size):
            waveforms = [piece.waveform for piece in pool if piece.waveform is not None]
            scored = self.scores(waveforms, batch_size)
            for piece in pool:
                yield self.prediction(piece, scored, window_scores, top_k)

    def hearing(
        self,
        sampling_rate: int | None,
        max_seconds: float | None,
        max_decode_seconds: float,
        window_seconds: float | None,
        hop_seconds: float | None,
    ) -> Hearing:
        """What the options of `stream` make of this model's hearing. Raises UserError."""
        rate, shortest = self.backbone.sampling_rate, self.backbone.min_samples
        longest = self.backbone.max_samples
        max_samples = None if max_seconds is None else round(max_seconds * rate)
        if max_samples is not None and max_samples < 1:
            raise UserError("max_seconds must be above 0.")
        if window_seconds is None:
            if hop_seconds is not None:
                raise UserError("A hop says how far apart windows are: give the window's seconds too.")
            limits = [limit for limit in (max_samples, longest) if limit is not None]
            return Hearing(rate, shortest, min(limits, default=None), sampling_rate, max_decode_seconds)
        if not shortest <= round(window_seconds * rate) <= (longest or np.inf):
            most = f"to {longest / rate:g} s" if longest else "or more"
            raise UserError(
                f"The window is {window_seconds:g} s: the model hears {shortest / rate:.3g} s {most}."
            )
        hop_seconds = window_seconds if hop_seconds is None else hop_seconds
        if round(hop_seconds * rate) < 1:
            raise UserError(f"The hop is {hop_seconds:g} s: give a sample ({1 / rate:g} s) at least.")
        return Hearing(
            rate, shortest, max_samples, sampling_rate, max_decode_seconds, window_seconds, hop_seconds
        )

    def prediction(
        self, piece: Piece, scored: Iterator[Tensor], window_scores: WindowScores, top_k: int
    ) -> Prediction:
        """What comes of one piece, which takes the next of `scored` where it has a waveform."""
        scores, error, num_windows = None, piece.error, None
        if piece.waveform is not None:
            scores = next(scored)
        elif error is None:  # the end of a recording in windows
            scores, num_windows = window_scores.scores(), window_scores.num_windows
        if piece.start is None:
            window_scores.clear()
        elif scores is not None:
            window_scores.add(scores)
        if scores is not None and not scores.isfinite().all():
            error = "the model's scores are not finite"
        best = [] if scores is None or error is not None else self.best(scores, top_k)
        return Prediction(piece.path, best, error, piece.start, piece.end, num_windows, piece.true_label)

    @torch.inference_mode()
    def scores(self, waveforms: list[Waveform], batch_size: int) -> Iterator[Tensor]:
        """For each waveform float32 [labels]: what the model's problem type is scored by."""
        alike: dict[int, list[int]] = {}
        for index in sorted(range(len(waveforms)), key=lambda index: len(waveforms[index])):
            alike.setdefault(0 if self.padding_invariant else len(waveforms[index]), []).append(index)
        logits: dict[int, Tensor] = {}  # on the device until all are there
        for indices in alike.values():
            for batch_indices in in_batches(indices, batch_size):
                batch = self.collate([Example(waveforms[index]) for index in batch_indices]).to(self.device)
                with out_of_memory_explained(SMALLER_WORK), autocast(self.device, self.precision):
                    output = self.model(**batch.inputs).float()
                logits |= zip(batch_indices, output, strict=True)
        in_order = [logits[index] for index in range(len(waveforms))]
        return iter(self.as_scores(torch.stack(in_order).cpu()) if in_order else ())

    def as_scores(self, logits: Tensor) -> Tensor:
        match self.backbone.problem_type:
            case "multi_label_classification":
                return logits.sigmoid()
            case "regression":
                return logits
            case _:
                return logits.softmax(dim=-1)

    def best(self, scores: Tensor, top_k: int) -> list[tuple[str, float]]:
        values, ids = scores.topk(min(top_k, len(scores)))
        return [
            (self.backbone.labels[id], value) for id, value in zip(ids.tolist(), values.tolist(), strict=True)
        ]


def pools(pieces: Iterable[Piece], most: int) -> Iterator[list[Piece]]:
    """The pieces in lists of `most`, fewer where they are long."""
    pool: list[Piece] = []
    num_samples = 0
    for piece in pieces:
        pool.append(piece)
        num_samples += 0 if piece.waveform is None else len(piece.waveform)
        if len(pool) >= most or num_samples >= POOL_SAMPLES:
            yield pool
            pool, num_samples = [], 0
    if pool:
        yield pool


def model_folder(name: str) -> str:
    """The folder that holds the model: `best/` of a run folder, verified; anything else as it is."""
    folder = Path(os.path.expanduser(name))
    if not os.path.isdir(folder):
        return name
    finish_swap(folder / "best")
    if (folder / "best").is_dir():
        folder = folder / "best"
    elif not (folder / "config.json").exists():
        raise UserError(
            f"{name} holds no model: give a run folder with best/ in it, or one with a config.json."
        )
    if (folder / MANIFEST).exists() and (why := damage(folder)):
        raise InputOutputFailed(f"{folder} is damaged: {why}.")
    return str(folder)
