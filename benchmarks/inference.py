"""Classifying a folder of files of different lengths: `Classifier` against the Hugging Face pipeline.

Each side uses the batch size at which it was fastest in a first round.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import (
    BASE,
    LABELS,
    SMALL,
    Row,
    clip_lengths,
    interleaved,
    parser,
    report,
    save_backbone,
    scratch_folder,
    write_clips,
)

BATCH_SIZES = (1, 4, 8)

Scores = list[dict[str, float]]  # for each file the score of every label


def main() -> None:
    args = parser(__doc__).parse_args()
    num_files, rounds = (12, 3) if args.quick else (12, 5)
    with scratch_folder() as folder:
        clips = write_clips(folder / "clips", clip_lengths(num_files, 1, 10), [16_000, 8_000])
        files = sorted((clips / "train").rglob("*.wav"))
        model = save_backbone(folder / "model", SMALL if args.quick else BASE, is_classifier=True)
        sides = {"ours": ours(model), "theirs": theirs(model)}
        spread_scores(model, files[:8], sides["ours"])
        sides = {"ours": ours(model), "theirs": theirs(model)}

        seconds, differences = {}, {}
        for name, side in sides.items():
            side(files[:2], 1)
            alone: Scores = []
            for batch_size in BATCH_SIZES:
                began = time.perf_counter()
                scores = side(files[: max(BATCH_SIZES)], batch_size)
                seconds[name, batch_size] = time.perf_counter() - began
                alone = alone or scores  # the first batch size is 1
                differences[name, batch_size] = largest_difference(scores, alone)
        best = {name: min((seconds[name, size], size) for size in BATCH_SIZES)[1] for name in sides}
        results = interleaved(
            {
                "ours": lambda: len(files) / timed(sides["ours"], files, best["ours"]),
                "theirs": lambda: len(files) / timed(sides["theirs"], files, best["theirs"]),
            },
            rounds=rounds,
            warm_up=0,
        )
    settings = {
        "model": "Wav2Vec2, 3 layers of 256, convolutions of 128" if args.quick else "wav2vec2-base",
        "weights": "random, logits of standard deviation 1",
        "files": f"{num_files} of 1-10 s, half of them 8 kHz",
        "batch sizes": f"ours {best['ours']}, theirs {best['theirs']}, the best of {BATCH_SIZES}",
        "rounds": rounds,
        "not counted": "a pass over 8 files for each batch size",
    }
    rows = [Row("1-10 s files", "files/s", results["ours"], results["theirs"], higher_is_better=True)]
    raw = {f"{name}, batches of {size}": figure for (name, size), figure in seconds.items()}
    moved = {f"{name}, batches of {size}": figure for (name, size), figure in differences.items()}
    report(args, settings, rows, first_round_seconds=raw, largest_score_difference=moved)
    print("\nlargest difference of a score from that of the file alone, same side:")
    num_tried = len(files[: max(BATCH_SIZES)])
    for name, difference in moved.items():
        print(f"  {name}: {difference:.1e}  ({num_tried / raw[name]:.3g} files/s in the first round)")


def ours(model: Path) -> Callable[[list[Path], int], Scores]:
    from audiocls import Classifier

    classifier = Classifier.from_pretrained(model, device="cpu")

    def classify(files: list[Path], batch_size: int) -> Scores:
        predictions = classifier(files, batch_size=batch_size, top_k=len(LABELS))
        return [dict(prediction.scores) for prediction in predictions]

    return classify


def theirs(model: Path) -> Callable[[list[Path], int], Scores]:
    """The pipeline, given arrays: of a file's name it needs ffmpeg."""
    from audiocls.torchaudio_guard import import_torchaudio

    import_torchaudio()
    import soundfile
    from transformers import pipeline

    pipe: Any = pipeline("audio-classification", model=str(model), device="cpu")

    def classify(files: list[Path], batch_size: int) -> Scores:
        def decoded() -> Iterator[dict[str, Any]]:
            for file in files:
                samples, rate = soundfile.read(file, dtype="float32")
                yield {"array": samples, "sampling_rate": rate}

        results = pipe(decoded(), batch_size=batch_size, top_k=None)
        return [{one["label"]: one["score"] for one in result} for result in results]

    return classify


def timed(side: Callable[[list[Path], int], Scores], files: list[Path], batch_size: int) -> float:
    began = time.perf_counter()
    side(files, batch_size)
    return time.perf_counter() - began


def largest_difference(scores: Scores, others: Scores) -> float:
    return max(
        abs(score - other[label])
        for one, other in zip(scores, others, strict=True)
        for label, score in one.items()
    )


def spread_scores(folder: Path, files: list[Path], classify: Callable[[list[Path], int], Scores]) -> None:
    """Scale the saved head until the logits' standard deviation over files is 1.

    A random model tells clips hardly apart: what batching does to its scores would not show.
    """
    import torch
    from safetensors.torch import load_file, save_file

    logits = torch.tensor([[one[label] for label in LABELS] for one in classify(files, 1)]).log()
    factor = 1 / (logits - logits.mean(dim=0)).std()
    tensors = load_file(folder / "model.safetensors")
    mean = logits.mean(dim=0)  # up to one number for all labels, which softmax does not see
    tensors["classifier.weight"] *= factor
    tensors["classifier.bias"] = (tensors["classifier.bias"] - mean) * factor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
