"""Files or waveforms -> labels and scores, as the Hugging Face pipeline scores them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiocls.data.audio import (
    MAX_DECODE_SECONDS,
    BadAudio,
    Waveform,
    check_format,
    check_length,
    decode,
    mono,
    resample,
)
from audiocls.data.batch_plan import in_batches
from audiocls.devices import autocast, pick_device, pick_precision
from audiocls.errors import InputOutputFailed, UserError
from audiocls.model.backbone import LoadedModel, load_for_inference
from audiocls.storage import MANIFEST, damage, finish_swap

POOL_BATCHES = 16  # batches' worth of recordings held at once, so that those of one length can meet


Recording = str | Path | np.ndarray | Tensor


@dataclass(frozen=True)
class Prediction:
    """What a recording was taken for, or why it could not be used."""

    path: str | None  # as given; None for a waveform
    scores: list[tuple[str, float]]  # (label, score), best first; empty where refused
    error: str | None = None

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
    through (see `audiocls.model.padding`), only recordings of one length share a batch.
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
        cls, model: str | Path, *, revision: str | None = None, device: str = "auto", precision: str = "fp32"
    ) -> "Classifier":
        """The best model of a run folder, a saved model, or one on the Hub.

        Raises UserError where it is no fine-tuned classifier, InputOutputFailed where it cannot be read.
        """
        where = pick_device(device)
        loaded = load_for_inference(model_folder(str(model)), revision)
        return cls(loaded, where, pick_precision(precision, where))

    @property
    def labels(self) -> list[str]:
        """The labels in the order of the model's outputs."""
        id2label = self.model.config.id2label
        return [id2label[id] for id in range(len(id2label))]

    def __call__(self, inputs: Recording | Iterable[Recording], **options: Any) -> list[Prediction]:
        """One Prediction for each input, in their order; the options are those of `stream`."""
        return list(self.stream(inputs, **options))

    def stream(
        self,
        inputs: Recording | Iterable[Recording],
        *,
        sampling_rate: int | None = None,
        top_k: int = 5,
        batch_size: int = 8,
        max_seconds: float | None = None,
        max_decode_seconds: float = MAX_DECODE_SECONDS,
    ) -> Iterator[Prediction]:
        """Predictions as they are made, in the inputs' order.

        Args:
            inputs: paths of recordings, or waveforms, float [samples] or [samples, channels]; or only one.
            sampling_rate: of the waveforms, in Hz; files know their own.
            top_k: how many labels a Prediction holds, best first.
            batch_size: recordings in a forward pass.
            max_seconds: hear only the beginning.
            max_decode_seconds: refuse a file of which more would have to be decoded.

        A recording that cannot be used is a Prediction with an `error`. Raises UserError for a waveform
        without `sampling_rate`.
        """
        if top_k < 1 or batch_size < 1 or (max_seconds is not None and max_seconds <= 0):
            raise UserError("top_k, batch_size and max_seconds must be above 0.")
        rate = self.backbone.sampling_rate
        max_samples = self.backbone.max_samples if max_seconds is None else round(max_seconds * rate)
        remaining = iter([inputs] if isinstance(inputs, Recording) else inputs)
        while pool := list(islice(remaining, POOL_BATCHES * batch_size)):
            heard = [
                self.hear(recording, sampling_rate, max_samples, max_decode_seconds) for recording in pool
            ]
            scores = self.scores([one for one in heard if isinstance(one, np.ndarray)], batch_size)
            for recording, one in zip(pool, heard, strict=True):
                path = str(recording) if isinstance(recording, str | Path) else None
                if isinstance(one, str):
                    yield Prediction(path, [], one)
                elif (its_scores := next(scores)).isfinite().all():
                    yield Prediction(path, self.best(its_scores, top_k))
                else:
                    yield Prediction(path, [], "makes the model give scores that are not finite")

    def hear(
        self,
        recording: Recording,
        sampling_rate: int | None,
        max_samples: int | None,
        max_decode_seconds: float = MAX_DECODE_SECONDS,
    ) -> Waveform | str:
        """The recording as the model takes it, or why it cannot."""
        rate, shortest = self.backbone.sampling_rate, self.backbone.min_samples
        try:
            if isinstance(recording, str | Path):
                waveform = decode(Path(recording), rate, max_samples, max_decode_seconds).waveform
            else:
                if sampling_rate is None:
                    raise UserError("A waveform does not know its rate: give sampling_rate=, in Hz.")
                samples = np.asarray(recording, np.float32)
                check_format(sampling_rate, 1 if samples.ndim == 1 else samples.shape[1], rate)
                waveform = resample(mono(samples), sampling_rate, rate)[:max_samples]
            check_length(len(waveform), shortest, rate)
        except BadAudio as error:
            return str(error)
        return waveform

    @torch.inference_mode()
    def scores(self, waveforms: list[Waveform], batch_size: int) -> Iterator[Tensor]:
        """For each waveform float32 [labels]: what the model's problem type is scored by."""
        alike: dict[int, list[int]] = {}
        for index in sorted(range(len(waveforms)), key=lambda index: len(waveforms[index])):
            alike.setdefault(0 if self.padding_invariant else len(waveforms[index]), []).append(index)
        logits: dict[int, Tensor] = {}
        for indices in alike.values():
            for batch_indices in in_batches(indices, batch_size):
                batch = self.collate([(waveforms[index], 0) for index in batch_indices]).to(self.device)
                with autocast(self.device, self.precision):
                    output = self.model(**batch.inputs).logits.float().cpu()
                logits |= zip(batch_indices, output, strict=True)
        return (self.as_scores(logits[index]) for index in range(len(waveforms)))

    def as_scores(self, logits: Tensor) -> Tensor:
        match self.model.config.problem_type:
            case "multi_label_classification":
                return logits.sigmoid()
            case "regression":
                return logits
            case _:
                return logits.softmax(dim=-1)

    def best(self, scores: Tensor, top_k: int) -> list[tuple[str, float]]:
        values, ids = scores.topk(min(top_k, len(scores)))
        return [(self.labels[id], value) for id, value in zip(ids.tolist(), values.tolist(), strict=True)]


def model_folder(name: str) -> str:
    """The folder that holds the model: `best/` of a run folder, verified; anything else as it is."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
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
