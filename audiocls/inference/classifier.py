"""Files or waveforms -> labels and scores, as the Hugging Face pipeline scores them."""

import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from audiocls.config import AGGREGATES, BACKBONES
from audiocls.data.audio import MAX_DECODE_SECONDS
from audiocls.data.batch_plan import in_batches
from audiocls.data.collators import Example
from audiocls.devices import autocast, pick_device, pick_precision
from audiocls.errors import UserError, out_of_memory_explained, shown
from audiocls.inference.forms import Recording
from audiocls.inference.options import some_seconds, whole_number
from audiocls.inference.recordings import Piece, Prediction, ReadOptions, pieces_of
from audiocls.model.backbone import Backbone, LoadedModel
from audiocls.model.loading import load_for_inference

POOL_BATCHES = 16  # batches' worth of pieces held at once, so that those of one length can meet
POOL_SAMPLES = 2**24  # and no more audio than this: a quarter of an hour, 64 MB
SMALLER_WORK = "--batch-size 1, --window 30 for long recordings, or --max-seconds"

Scored = tuple[Prediction, Tensor | None]  # a Piece's Prediction, and its scores: float [labels]


class Classifier:
    """A fine-tuned model that takes files or arrays.

        classifier = Classifier.from_pretrained("runs/minds14-wav2vec2-base")
        classifier(["a.wav", "b.flac"])[0].label
        classifier([waveform], sampling_rate=8_000)   # float [samples] or [samples, channels]
        classifier({"array": waveform, "sampling_rate": 8_000})

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
        if backbone not in BACKBONES:
            raise UserError(f"backbone is {shown(backbone)}: give one of {', '.join(BACKBONES)}.")
        where = pick_device(str(device))
        loaded = load_for_inference(str(model), revision, stock=backbone == "transformers")
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
        top_k: int | None = 5,
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
                or [samples, channels], as NumPy array or tensor; float in [-1, 1], or int16 or int32. Or as
                `datasets` holds it: a dict with `array` (or `raw`) and `sampling_rate`, with `bytes`, or with
                `path`; or torchcodec's AudioDecoder.
            sampling_rate: of waveforms, in Hz. Files know theirs; so do dicts and decoders, which must agree.
            top_k: how many labels a Prediction holds, best first; None: all.
            batch_size: recordings or windows in a forward pass; None: 1 on a CPU, where padding costs more
                than batches save, else 8.
            max_seconds: use only the beginning.
            max_decode_seconds: refuse a file of which more would have to be decoded at once, without windows.
            window_seconds: classify windows of this length, each as if it were given alone, then the
                recording by them. Window k begins at k hops. One that the recording ends within is moved back
                to end with it; a recording shorter than a window is one window.
            hop_seconds: from one window's start to the next one's; None: window_seconds.
            aggregate: how a recording's scores come of its windows': their `mean`, their `max`, or by `vote`,
                the part of the windows whose best label it is.

        Yields a Prediction a recording; with windows, first one a window, with `start` and `end` in seconds.
        A recording that cannot be used is a Prediction with an `error`, an odd one (silent, say) has `notes`.
        Raises UserError for options that are wrong or do not fit the model, for what is no recording, and for
        a waveform without `sampling_rate`.
        """
        backbone = self.backbone
        if sampling_rate is not None:
            sampling_rate = whole_number("sampling_rate", sampling_rate, otherwise=", in Hz")
        if top_k is not None:
            top_k = whole_number("top_k", top_k, above=0, otherwise=", or None for all labels")
        if batch_size is None:
            batch_size = 1 if self.device.type == "cpu" else 8
        batch_size = whole_number("batch_size", batch_size, above=0, otherwise=", or None")
        max_decode_seconds = some_seconds("max_decode_seconds", max_decode_seconds)
        if not isinstance(aggregate, str) or aggregate not in AGGREGATES:
            raise UserError(f"aggregate is {shown(aggregate)}: give one of {', '.join(AGGREGATES)}.")
        windows = windows_of(backbone, window_seconds, hop_seconds)
        max_samples = samples_of(backbone, max_seconds)
        longest = None if windows else backbone.max_samples
        is_models_window = longest is not None and (max_samples is None or longest < max_samples)
        options = ReadOptions(
            backbone.sampling_rate,
            backbone.min_samples,
            longest if is_models_window else max_samples,
            sampling_rate,
            max_decode_seconds,
            windows,
            is_models_window,
        )
        is_one = isinstance(inputs, Recording | io.IOBase) or not isinstance(inputs, Iterable)
        recordings: Any = [inputs] if is_one else inputs
        pieces = (piece for recording in recordings for piece in pieces_of(recording, options))
        pooled = pools(pieces, 1 if batch_size == 1 else POOL_BATCHES * batch_size)
        scored = (one for pool in pooled for one in self.scored(pool, batch_size))
        for prediction, scores in combine_windows(scored, aggregate):
            if scores is None:
                yield prediction
            elif not scores.isfinite().all():
                yield replace(prediction, error="the model's scores are not finite")
            else:
                # topk orders equal scores, as votes often are, by how many of them it is asked for.
                values, ids = (best[:top_k].tolist() for best in scores.sort(descending=True, stable=True))
                labels = [backbone.labels[id] for id in ids]
                yield replace(prediction, scores=list(zip(labels, values, strict=True)))

    @torch.inference_mode()
    def scored(self, pool: list[Piece], batch_size: int) -> list[Scored]:
        """The pieces' Predictions in their order, with the scores of their waveforms; None without one."""
        waveforms = {index: waveform for index, (_, waveform) in enumerate(pool) if waveform is not None}
        by_length = sorted(waveforms, key=lambda index: len(waveforms[index]))
        # Where padding changes scores, only waveforms of one length share a batch.
        alike = itertools.groupby(by_length, lambda index: self.padding_invariant or len(waveforms[index]))
        logits: dict[int, Tensor] = {}  # on the device until all are there
        for _, group in alike:
            for indices in in_batches(list(group), batch_size):
                batch = self.collate([Example(waveforms[index]) for index in indices]).to(self.device)
                with out_of_memory_explained(SMALLER_WORK), autocast(self.device, self.precision):
                    output = self.model(**batch.inputs).float()
                logits |= zip(indices, output, strict=True)
        scores = self.as_scores(torch.stack(list(logits.values())).cpu()) if logits else ()
        scores_of = dict(zip(logits, scores, strict=True))
        return [(prediction, scores_of.get(index)) for index, (prediction, _) in enumerate(pool)]

    def as_scores(self, logits: Tensor) -> Tensor:
        """Logits [batch, labels] -> the scores that belong to the model's problem type."""
        match self.backbone.problem_type:
            case "multi_label_classification":
                return logits.sigmoid()
            case "regression":
                return logits
            case _:
                return logits.softmax(dim=-1)


def pools(pieces: Iterable[Piece], most: int) -> Iterator[list[Piece]]:
    """The pieces in lists of `most`, fewer where they are long."""
    pool: list[Piece] = []
    num_samples = 0
    for prediction, waveform in pieces:
        pool.append((prediction, waveform))
        num_samples += 0 if waveform is None else len(waveform)
        if len(pool) >= most or num_samples >= POOL_SAMPLES:
            yield pool
            pool, num_samples = [], 0
    if pool:
        yield pool


def combine_windows(scored: Iterable[Scored], aggregate: str) -> Iterator[Scored]:
    """What comes in; a recording that was read in windows now with their number, and their scores combined.

    `aggregate` is `Classifier.stream`'s. The windows' scores are not kept, only their sum or maximum.
    """
    nothing = torch.tensor(-np.inf if aggregate == "max" else 0.0, dtype=torch.float64)
    total, num_windows = nothing, 0
    for prediction, scores in scored:
        if prediction.start is None:  # a whole recording
            if num_windows and prediction.error is None:
                scores = total if aggregate == "max" else total / num_windows
                prediction = replace(prediction, num_windows=num_windows)
            total, num_windows = nothing, 0
        elif scores is not None:  # a window of it
            is_vote = aggregate == "vote" and scores.isfinite().all()
            counted = F.one_hot(scores.argmax(), len(scores)) if is_vote else scores.double()
            total = torch.maximum(total, counted) if aggregate == "max" else total + counted
            num_windows += 1
        yield prediction, scores


def samples_of(backbone: Backbone, max_seconds: float | None) -> int | None:
    """How many samples `max_seconds` are; None: all. Raises UserError where they are fewer than it needs."""
    if max_seconds is None:
        return None
    rate, shortest = backbone.sampling_rate, backbone.min_samples
    max_samples = round(some_seconds("max_seconds", max_seconds, otherwise=", or None for all") * rate)
    if max_samples < shortest:
        raise UserError(f"max_seconds is {max_seconds:g}: the model needs {shortest / rate:.3g} s.")
    return max_samples


def windows_of(
    backbone: Backbone, window_seconds: float | None, hop_seconds: float | None
) -> tuple[float, float] | None:
    """The length of the windows and the hop between their starts, which by default is as long, in seconds.

    None where no windows are asked for. Raises UserError for those that the model does not take.
    """
    rate, shortest, longest = backbone.sampling_rate, backbone.min_samples, backbone.max_samples
    if window_seconds is None:
        if hop_seconds is not None:
            raise UserError("A hop says how far apart windows are: give the window's seconds too.")
        return None
    seconds = some_seconds("window_seconds", window_seconds, otherwise=", or None for no windows")
    if not shortest <= round(seconds * rate) <= (longest or np.inf):
        most = f"to {longest / rate:g} s" if longest else "or more"
        raise UserError(f"The window is {seconds:g} s: the model takes {shortest / rate:.3g} s {most}.")
    if hop_seconds is None:
        return seconds, seconds
    hop_seconds = some_seconds("hop_seconds", hop_seconds, otherwise=", or None for window_seconds")
    if round(hop_seconds * rate) < 1:
        raise UserError(f"The hop is {hop_seconds:g} s: give a sample ({1 / rate:g} s) at least.")
    return seconds, hop_seconds
