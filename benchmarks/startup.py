"""Waiting for a program: whole processes, from the command to what was asked for.

Files and caches are warm on both sides: each command has run once before it is timed.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import (
    BASE,
    HERE,
    SMALL,
    Row,
    Side,
    clip_lengths,
    interleaved,
    parser,
    report,
    save_backbone,
    scratch_folder,
    write_clips,
)

IMPORT = "from audiocls.torchaudio_guard import import_torchaudio; import_torchaudio()\n"
# As transformers' own run_audio_classification.py answers --help: its flags are those of TrainingArguments.
THEIR_HELP = (
    IMPORT
    + """
import datasets, numpy, transformers
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, HfArgumentParser, Trainer
HfArgumentParser(transformers.TrainingArguments).parse_args_into_dataclasses(["--help"])
"""
)
THEIR_PIPELINE = (
    IMPORT
    + """
import sys, soundfile
from transformers import pipeline
samples, rate = soundfile.read(sys.argv[2], dtype="float32")
print(pipeline("audio-classification", model=sys.argv[1])({"array": samples, "sampling_rate": rate}))
"""
)


def main() -> None:
    args = parser(__doc__).parse_args()
    rounds = 2 if args.quick else 7
    num_clips = 100 if args.quick else 400
    with scratch_folder() as folder:
        clips = write_clips(folder / "clips", clip_lengths(num_clips, 0.3, 1.0), [16_000])
        classifier = save_backbone(folder / "classifier", SMALL if args.quick else BASE, is_classifier=True)
        file = next(clips.rglob("*.wav"))

        first_step = interleaved(sides_to_first_step(folder, clips), rounds=rounds)
        answers = interleaved(
            {
                "our help": lambda: seconds_of(HERE.parent / "train.py", "--help"),
                "their help": lambda: seconds_of("-c", THEIR_HELP),
                "our scores": lambda: seconds_of(HERE.parent / "infer.py", classifier, file),
                "their scores": lambda: seconds_of("-c", THEIR_PIPELINE, classifier, file),
            },
            rounds=rounds,
        )
    rows = [
        Row("a  to the first optimizer step", "s", first_step["ours"], first_step["theirs"]),
        Row("b  --help", "s", answers["our help"], answers["their help"]),
        Row("c  one file classified", "s", answers["our scores"], answers["their scores"]),
    ]
    settings = {
        "a": f"--model tiny, {num_clips} clips of 0.3-1 s, a step of 4 x 32",
        "c": f"{'a small Wav2Vec2' if args.quick else 'wav2vec2-base'} of random weights",
        "rounds": rounds,
        "not counted": "one round",
    }
    report(args, settings, rows)


def sides_to_first_step(folder: Path, clips: Path) -> dict:
    """Both train the same tiny model with the guide's recipe: ours made by name, theirs from a folder."""
    from audiocls.model.settings import TINY
    from audiocls.torchaudio_guard import import_torchaudio

    import_torchaudio()
    from transformers import Wav2Vec2FeatureExtractor

    model = save_backbone(folder / "tiny", TINY)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(model)
    shared = ("--dataset", clips, "--output-dir", folder / "run")

    def to_first_step(program: str, *flags: str) -> float:
        shutil.rmtree(folder / "run", ignore_errors=True)
        with Side(program, *shared, *flags) as side:
            return side.seconds_to_first_step

    return {
        "ours": lambda: to_first_step("ours.py", "--model", "tiny", "--device", "cpu"),
        "theirs": lambda: to_first_step("theirs.py", "--model", str(model), "--cpu"),
    }


def seconds_of(*command: object) -> float:
    """Wall time of a whole Python process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
