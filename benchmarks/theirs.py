"""The Hugging Face audio-classification guide as a script, made to wait for its turn after every step.

https://huggingface.co/docs/transformers/tasks/audio_classification, with `evaluate` and the Hub left out.
Its `Audio` decoding needs torchcodec and a system ffmpeg, which need not be there: soundfile decodes and
torchaudio resamples in the map function instead.
"""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

from common import LABELS, Turns

from audiocls.torchaudio_guard import import_torchaudio

turns = Turns() if __name__ == "__main__" and "--evaluate" not in sys.argv else None
torchaudio = import_torchaudio()  # before transformers does, for where its compiled extension does not load

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--max-seconds", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--gradient-accumulation-steps", type=int, default=4)
    parser.add_argument("--freeze", choices=("nothing", "feature-encoder"), default="nothing")
    parser.add_argument(
        "--no-checkpointing", action="store_true", help="although the model's config asks for it"
    )
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile-model", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--epochs", type=int, default=10_000, help="until it is stopped, if not given")
    parser.add_argument("--evaluate", action="store_true", help="at the end")
    args = parser.parse_args()

    feature_extractor = AutoFeatureExtractor.from_pretrained(args.model)
    clips = load_clips(args.dataset)
    labels = clips["train"].features["label"].names
    encoded = encode(clips, feature_extractor, args.max_seconds)

    config = AutoConfig.from_pretrained(
        args.model,
        num_labels=len(labels),
        label2id={label: id for id, label in enumerate(labels)},
        id2label=dict(enumerate(labels)),
    )
    if args.no_checkpointing and getattr(config, "gradient_checkpointing", False):
        del config.gradient_checkpointing
    model = AutoModelForAudioClassification.from_pretrained(args.model, config=config, dtype=torch.float32)
    if args.freeze == "feature-encoder":
        model.freeze_feature_encoder()
    trainer = make_trainer(
        model,
        feature_extractor,
        encoded,
        output_dir=args.output_dir,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        bf16=args.bf16,
        torch_compile=args.compile_model,
        use_cpu=args.cpu,
        num_train_epochs=args.epochs,
    )
    trainer.train()
    if args.evaluate:
        print("accuracy", trainer.evaluate()["eval_accuracy"])


def load_clips(folder: str | Path) -> Any:
    """The guide's `load_dataset`, of parquet files as MInDS-14 has them on the Hub; not decoded."""
    names = Path(f"{folder}-parquet", "labels.json")
    labels = json.loads(names.read_text()) if names.exists() else list(LABELS)
    features = datasets.Features(
        {"audio": datasets.Audio(decode=False), "label": datasets.ClassLabel(names=labels)}
    )
    files = {split: str(Path(f"{folder}-parquet", f"{split}.parquet")) for split in ("train", "validation")}
    return datasets.load_dataset("parquet", data_files=files, features=features)


def encode(clips: Any, feature_extractor: Any, max_seconds: float, **settings: Any) -> Any:
    """The guide's `preprocess_function` and `map`."""
    sampling_rate = feature_extractor.sampling_rate

    def preprocess(examples: dict[str, Any]) -> Any:
        arrays = []
        for audio in examples["audio"]:
            source = audio["path"] if audio["bytes"] is None else io.BytesIO(audio["bytes"])
            samples, rate = soundfile.read(source, dtype="float32")
            resampled = torchaudio.functional.resample(torch.from_numpy(samples), rate, sampling_rate)
            arrays.append(resampled.numpy())
        most = round(max_seconds * sampling_rate)
        if feature_extractor.model_input_names[0] == "input_features":  # Whisper pads to its window, always
            return feature_extractor([array[:most] for array in arrays], sampling_rate=sampling_rate)
        return feature_extractor(arrays, sampling_rate=sampling_rate, max_length=most, truncation=True)

    return clips.map(preprocess, remove_columns="audio", batched=True, **settings)


def make_trainer(model: Any, feature_extractor: Any, encoded: Any, **settings: Any) -> Trainer:
    """The guide's Trainer; it trains on, and neither evaluates nor saves, until it is stopped."""
    args = TrainingArguments(
        eval_strategy="no",
        save_strategy="no",
        learning_rate=3e-5,
        per_device_eval_batch_size=32,
        warmup_steps=0.1,
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
        **settings,
    )
    return Trainer(
        model=model,
        args=args,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=feature_extractor,
        compute_metrics=accuracy,
        callbacks=[EndOfStep()],
    )


def accuracy(predictions: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(predictions.predictions.argmax(axis=1) == predictions.label_ids))}


class EndOfStep(TrainerCallback):
    def on_step_end(self, args: TrainingArguments, *others: Any, **kwargs: Any) -> None:
        if turns is not None:
            turns.end()


if __name__ == "__main__":
    main()
