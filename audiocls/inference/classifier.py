"""Files or waveforms -> labels and scores, as the Hugging Face pipeline scores them."""

import io
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from audiocls.config import AGGREGATES, BACKBONES, channel_problems
from audiocls.data.audio import MAX_DECODE_SECONDS
from audiocls.data.batch_plan import in_batches
from audiocls.data.collators import Example
from audiocls.devices import Readback, autocast, pick_device, pick_precision
from audiocls.errors import UserError, out_of_memory_explained, shown
from audiocls.inference.forms import Recording
from audiocls.inference.memory import bytes_a_sample, free_bytes, samples_a_batch
from audiocls.inference.options import samples_of, some_seconds, whole_number, windows_of
from audiocls.inference.reading import Reader, in_lists, reading_threads
from audiocls.inference.recordings import Piece, Prediction, ReadOptions, pieces_of
from audiocls.model.backbone import Backbone, LoadedModel
from audiocls.model.loading import load_for_inference

POOL_BATCHES = 16  # batches' worth of pieces held at once, so that those of one length can meet
POOL_SAMPLES = 2**24  # and no more audio than this: a quarter of an hour, 64 MB
SMALLER_WORK = "--batch-size 1, --window 30 for long recordings, or --max-seconds"

# What a GPU takes at once. The largest tensors are those of the first convolution: Wav2Vec2's has 512
# channels at 3,200 frames/s, 6.5 MB a second in float32, and four such live while it is normalised: 3.4 GB
# for 128 s. XLS-R-300M adds 1.3 GB, with bf16 copies of its weights 1.9: 12 clips of 10 s fit into 8 GB.
GPU_SECONDS = 128  # padding included
GPU_PIECES = 128
GPU_WINDOWS = 16  # of AST and Whisper, 10 to 30 s whatever is in them, with far smaller tensors

Scored = tuple[Prediction, Tensor | None]  # a Piece's Prediction, and its scores: float [labels]


class BatchLimits(NamedTuple):
    """What a forward pass takes at most."""

    pieces: int
    samples: int | None = None  # padding included; a longer piece is alone


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
        # Whether the device computes on while the next recordings are read.
        self.is_gpu = device.type != "cpu"
        # Asked once, beside the weights: what later recordings took is kept for the next. A GPU says itself
        # that it has no more; on a CPU the system kills who asks for it.
        self.free_bytes = math.inf if self.is_gpu else free_bytes()

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
        where = pick_device(str(device), precision)
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
        channel: str = "mean",
        trim_silence: bool = False,
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
                than batches save, else as many as are 128 s long, padding included. On a CPU they are fewer
                where memory has no room for so many. With 1 each is answered before the next is taken from
                `inputs`.
            max_seconds: use only the beginning.
            max_decode_seconds: refuse a file of which more would have to be decoded at once, without windows.
            channel: which of several: their `mean`, `left`, `right`, or one by its number, from "1" on.
            trim_silence: drop the silence at both ends, as training with --trim-silence does.
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
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size, above=0, otherwise=", or None")
        limits = batch_limits(backbone, batch_size, self.is_gpu, self.free_bytes)
        max_decode_seconds = some_seconds("max_decode_seconds", max_decode_seconds)
        if not isinstance(aggregate, str) or aggregate not in AGGREGATES:
            raise UserError(f"aggregate is {shown(aggregate)}: give one of {', '.join(AGGREGATES)}.")
        channel = str(channel)
        if wrong := channel_problems(channel):
            raise UserError(wrong[0].removeprefix("--"))
        windows = windows_of(backbone, window_seconds, hop_seconds)
        if windows and trim_silence:
            raise UserError("trim_silence needs to hear a recording whole: leave out window_seconds.")
        max_samples = samples_of(backbone, max_seconds)
        longest = None if windows else backbone.max_samples
        is_models_window = longest is not None and (max_samples is None or longest < max_samples)
        options = ReadOptions(
            backbone.sampling_rate,
            backbone.min_samples,
            longest if is_models_window else max_samples,
            sampling_rate,
            max_decode_seconds,
            channel,
            trim_silence,
            windows,
            is_models_window,
            bytes_a_sample(backbone),
            self.free_bytes,
        )
        is_one = isinstance(inputs, Recording | io.IOBase) or not isinstance(inputs, Iterable)
        recordings: Any = [inputs] if is_one else inputs
        looks_ahead = self.is_gpu and limits.pieces > 1
        num_threads = reading_threads() if looks_ahead else 0
        with Reader(recordings, lambda recording: pieces_of(recording, options), num_threads) as reader:
            most = 1 if limits.pieces == 1 else POOL_BATCHES * limits.pieces
            pools = in_lists(reader, most, POOL_SAMPLES)
            scored = self.scored(pools, limits, int(looks_ahead), before_yielding=reader.rest)
            for prediction, scores in combine_windows(scored, aggregate):
                yield prediction if scores is None else self.labelled(prediction, scores, top_k)

    def scored(
        self,
        pools: Iterable[list[Piece]],
        limits: BatchLimits,
        pools_ahead: int,
        before_yielding: Callable[[], None],
    ) -> Iterator[Scored]:
        """The pieces' Predictions in their order, with the scores of their waveforms; None without one.

        A pool's scores are waited for once the device has `pools_ahead` more to compute. An error is raised
        after the scores of the pools before it.
        """
        launched: deque[Callable[[], list[Scored]]] = deque()
        failed: Exception | None = None
        try:
            for pool in pools:
                launched.append(self.launch(pool, limits))
                if len(launched) > pools_ahead:
                    before_yielding()
                    yield from launched.popleft()()
        except Exception as error:
            failed = error
        before_yielding()
        for results in launched:
            yield from results()
        if failed is not None:
            raise failed

    @torch.inference_mode()
    def launch(self, pool: list[Piece], limits: BatchLimits) -> Callable[[], list[Scored]]:
        """Have the pool computed. What is returned waits for that, where the device is a GPU."""
        waveforms = {index: waveform for index, (_, waveform) in enumerate(pool) if waveform is not None}
        lengths = [0 if waveform is None else len(waveform) for _, waveform in pool]
        by_length = sorted(waveforms, key=lengths.__getitem__)
        # Where padding changes scores, only waveforms of one length share a batch.
        alike = itertools.groupby(by_length, lambda index: self.padding_invariant or lengths[index])
        computed: list[Tensor] = []  # logits in the order of `by_length`, on the device
        for _, group in alike:
            for indices in in_batches(list(group), limits.pieces, lengths, limits.samples):
                batch = self.collate([Example(waveforms[index]) for index in indices])
                if self.device.type == "cuda":
                    batch = batch.pin_memory()
                with out_of_memory_explained(SMALLER_WORK), autocast(self.device, self.precision):
                    computed.append(self.model(**batch.to(self.device).inputs).float())
        logits = Readback(torch.cat(computed)) if computed else None
        predictions = [prediction for prediction, _ in pool]  # without the waveforms

        def results() -> list[Scored]:
            with torch.inference_mode():
                scores = () if logits is None else self.as_scores(logits.wait())
            scores_of = dict(zip(by_length, scores, strict=True))
            return [(prediction, scores_of.get(index)) for index, prediction in enumerate(predictions)]

        return results

    def labelled(self, prediction: Prediction, scores: Tensor, top_k: int | None) -> Prediction:
        """`prediction` with the `top_k` best of its scores, float [labels], or what is wrong with them."""
        if not scores.isfinite().all():
            return replace(prediction, error="the model's scores are not finite")
        # topk orders equal scores, as votes often are, by how many of them it is asked for.
        values, ids = (best[:top_k].tolist() for best in scores.sort(descending=True, stable=True))
        labels = [self.backbone.labels[id] for id in ids]
        return replace(prediction, scores=list(zip(labels, values, strict=True)))

    def as_scores(self, logits: Tensor) -> Tensor:
        """Logits [batch, labels] -> the scores that belong to the model's problem type."""
        match self.backbone.problem_type:
            case "multi_label_classification":
                return logits.sigmoid()
            case "regression":
                return logits
            case _:
                return logits.softmax(dim=-1)


def batch_limits(
    backbone: Backbone, batch_size: int | None, is_gpu: bool, free: float = math.inf
) -> BatchLimits:
    """`batch_size` pieces; by default one on a CPU, and on a GPU as much audio as it has room for.

    On a CPU they are fewer where more would not fit into the `free` bytes of memory.
    """
    if batch_size is not None or not is_gpu:
        return BatchLimits(batch_size or 1, samples_a_batch(backbone, free))
    if backbone.max_samples is not None:
        return BatchLimits(GPU_WINDOWS)
    return BatchLimits(GPU_PIECES, GPU_SECONDS * backbone.sampling_rate)


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
