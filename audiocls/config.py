"""Every option of train.py and infer.py: its default, its help and its limits, in one place.

To add a setting, add one field to a dataclass below: the flag, its place in `--help`, the key in a config
file (see flags.py) and the entry in the saved `run.json` are derived from it.
Nothing heavier than NumPy is imported here, so that `--help` answers at once.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from typing import Any

from audiocls.metrics import SCORES
from audiocls.tables import FORMATS

GUIDE_DATASET = "PolyAI/minds14"
TRACKERS = ("tensorboard", "wandb")
AUGMENTATIONS = ("speed", "mask")  # functions of data/augment.py
GUIDE_CONFIGS = {GUIDE_DATASET: "en-US"}  # of a data set that has several, where none is named
BACKBONES = ("audiocls", "transformers")
USUAL_BATCH_SIZE = 32  # the guide's
# Settings that change nothing of what comes out of a run.
CHANGES_NOTHING = frozenset(
    "activation_checkpointing cache_dir checkpoint_every cuda_graphs device eval_batch_size log_every log_to"
    " num_workers output_dir overwrite profile push_dry_run push_to_hub recipe resume"
    " save_total_limit".split()
)
FREEZE = ("nothing", "feature-encoder", "encoder", "auto")
SPLIT_BY = ("random", "stratified", "group", "nothing")  # or a fold, as 2/5
AGGREGATES = ("mean", "max", "vote")
EXPORT_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


def option(
    default: Any,
    help: str,
    *,
    group: str = "",  # heading in --help of this option and of those after it, up to the next that has one
    choices: tuple[str, ...] = (),
    words: tuple[str, ...] = (),  # that stand for numbers; "auto": see training/rules.py
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    metavar: str = "",
    positional: bool = False,
) -> Any:
    """A dataclass field that also knows how to be a flag."""
    metadata = {key: value for key, value in locals().items() if key != "default"}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What `python train.py` does; the defaults are the Hugging Face audio-classification guide's."""

    recipe: str = option(
        "guide",
        "the set of settings to begin with; --recipe alone lists them all",
        group="recipe",
        choices=("guide", "standard", "frozen", "scratch", "demo"),
    )

    dataset: str = option(
        GUIDE_DATASET,
        f"Hub id, folder with a folder per class, table ({', '.join(FORMATS)}), or 'demo' (synthetic)",
        group="data",
    )
    dataset_config: str | None = option(
        None, f"configuration of a Hub data set (default for {GUIDE_DATASET}: {GUIDE_CONFIGS[GUIDE_DATASET]})"
    )
    dataset_revision: str | None = option(None, "branch, tag or commit of a Hub data set")
    train_split: str = option("train", "split to train on")
    eval_split: str | None = option(
        None, "split to evaluate on (default: validation, else test, else a fraction of train)"
    )
    eval_dataset: str | None = option(None, "evaluate on another data set, given like --dataset")
    eval_fraction: float = option(
        0.2, "fraction of train to hold out where there is no other split to evaluate on", above=0, most=0.9
    )
    test_split: str | None = option(
        None, "split to score once, at the end (default: test, unless it is evaluated on)"
    )
    test_dataset: str | None = option(None, "data set to score once, at the end, given like --dataset")
    split_by: str = option(
        "random",
        "how to hold out --eval-fraction: at random, alike from each class (stratified), or whole groups "
        "(speakers); or hold out a fold, as 2/5, by groups where there are some; or nothing. All but random "
        "do so also where there is another split",
        metavar="{" + ",".join(SPLIT_BY) + ",K/N}",
    )
    group_column: str | None = option(
        None, "column with each clip's group (speaker): says who is trained and evaluated on"
    )
    audio_column: str | None = option(None, "column with the audio (default: audio, or the only obvious one)")
    label_column: str | None = option(
        None, "column with the label (default: intent_class, or the only obvious one)"
    )
    split_column: str | None = option(
        None, "column that says which rows train, validate, test (default: split, or an obvious one)"
    )
    audio_folder: str | None = option(
        None, "folder of the audio that a table names (default: the table's own folder)"
    )
    segments: str = option(
        "auto",
        "whether a table's columns start and end, in seconds, cut clips out of longer recordings",
        choices=("auto", "no"),
    )
    max_seconds: float | None = option(
        1.0, "use only the first seconds of each clip; 'none' for all of it", above=0, most=86_400
    )
    channel: str = option(
        "mean",
        "which channel of several is used: their mean, left, right, or one by its number, from 1 on",
        metavar="{mean,left,right,N}",
    )
    trim_silence: bool = option(
        False, "drop the silence at both ends of each clip, what is 40 dB weaker than its loudest part"
    )
    augment: str | None = option(
        None, f"vary training clips, by names and commas: {', '.join(AUGMENTATIONS)}", metavar="NAMES"
    )
    max_decode_seconds: float = option(
        600.0, "refuse recordings of which more than this would have to be decoded", above=0, most=86_400
    )
    drop: str | None = option(
        None, "leave out the clips that a table names in its column 'path', as folds' doubted.csv does"
    )
    relabel: str | None = option(
        None, "give the clips that such a table names the label in its column 'suggested_label'"
    )
    max_bad_clips: float = option(
        0.05, "give up before training if a larger fraction of the clips is unusable", least=0, most=1
    )
    cache_dir: str | None = option(
        None, "where decoded audio is cached (default: audiocls/ in the user's cache folder)"
    )

    model: str = option(
        "facebook/wav2vec2-base",
        "Hub id, folder, run folder (its best model), or 'tiny' (a small Wav2Vec2 with random weights, no "
        "download)",
        group="model",
    )
    model_revision: str | None = option(None, "branch, tag or commit of a Hub model")
    freeze: str = option(
        "nothing",
        "what is not trained: feature-encoder, the convolutions (faster, less memory); encoder, all but the "
        "head, from features computed once; auto, the convolutions of a pretrained model",
        choices=FREEZE,
    )
    cache_features: bool = option(
        False,
        "with --freeze feature-encoder, and audiocls's forward pass: compute the convolutions' output once, "
        "before training",
    )
    head_first: bool = option(
        False, "train the head of a pretrained model first, on the frozen encoder's output"
    )
    cut_window: bool = option(
        False, "cut the window of a spectrogram model (Whisper, AST) to the length of nearly all clips"
    )
    backbone: str = option(
        "audiocls",
        "whose forward pass runs: audiocls's, or transformers' own, which pads as the guide does and always "
        "runs where audiocls has none",
        choices=BACKBONES,
    )

    learning_rate: float | str = option(
        3e-5,
        "peak learning rate of AdamW; 'auto' by the model's size",
        group="training",
        words=("auto",),
        above=0,
    )
    batch_size: int | str = option(
        "auto",
        f"clips in a micro-batch; auto: {USUAL_BATCH_SIZE}, or on a GPU as many of a step's clips as fit",
        words=("auto",),
        least=1,
    )
    gradient_accumulation_steps: int = option(
        4,
        f"micro-batches in a step; with --batch-size auto a step has {USUAL_BATCH_SIZE} clips for each",
        least=1,
    )
    global_batch_size: int | None = option(
        None, "clips in an optimizer step; overrides --gradient-accumulation-steps", least=1
    )
    max_batch_seconds: float | None = option(
        None, "bound a micro-batch by its seconds of audio, padding included", above=0
    )
    # On by default, so that --help shows --no-bucket alone: this is its text.
    bucket: bool = option(True, "mix clips of all lengths in a batch, as the guide does: more padding")
    balance_classes: str = option(
        "no",
        "draw all classes alike often; auto: where one has ten times as many clips as another",
        choices=("no", "yes", "auto"),
    )
    epochs: int | str = option(
        10, "passes over the training clips; 'auto' by their number", words=("auto",), least=1
    )
    max_steps: int | None = option(
        None, "stop after this many optimizer steps, whatever --epochs says", least=1
    )
    warmup_ratio: float = option(
        0.1, "fraction of the steps over which the learning rate rises from 0", least=0, most=1
    )
    lr_scheduler: str = option(
        "linear", "what the learning rate does after warm-up", choices=("linear", "cosine", "constant")
    )
    weight_decay: float = option(0.0, "weight decay of AdamW; biases and norms have none", least=0)
    max_grad_norm: float = option(1.0, "clip the gradient to this norm; 0 for no clipping", least=0)
    label_smoothing: float = option(0.0, "label smoothing of the training loss", least=0, most=0.9)

    eval_batch_size: int | None = option(
        None,
        "clips in an evaluation batch (default: as --batch-size)",
        group="evaluation and saving",
        least=1,
    )
    eval_every: int | str = option(
        "epoch",
        "evaluate and save every N optimizer steps, every 'epoch', at the 'end', or 'auto' for 20 times",
        words=("epoch", "end", "auto"),
        least=1,
    )
    checkpoint_every: int | str | None = option(
        None, "save in between, too: every N optimizer steps, or by the clock (10m, 1h)", least=1, metavar="N"
    )
    best_metric: str = option(
        "accuracy",
        "what the best checkpoint is chosen by; ties keep the earlier one",
        choices=(*SCORES, "loss"),
    )
    save_total_limit: int = option(2, "checkpoints to keep besides the best; at least 2", least=2)
    log_every: int = option(10, "write a train line every N optimizer steps", least=1)

    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps", group="machine")
    precision: str = option(
        "auto",
        "auto is bf16 on a GPU that has it in hardware, else fp32; fp32 is exact, tf32 faster on a GPU",
        choices=("auto", "fp32", "tf32", "bf16", "fp16"),
    )
    activation_checkpointing: bool = option(
        False, "compute activations again in the backward pass: less than half of the memory, half more time"
    )
    cuda_graphs: bool = option(
        False, "replay each micro-batch as a CUDA graph: faster where the GPU waits for the host"
    )
    compile: bool = option(False, "torch.compile the model: for long runs on a GPU")
    num_workers: int | None = option(
        None, "processes that prepare batches (default: 2 or 4 for a GPU, else 0)", least=0, most=256
    )

    output_dir: str | None = option(
        None, "run folder (default: runs/<data set>-<model>, then -2, -3, ...)", group="run"
    )
    overwrite: bool = option(
        False, "delete the run in --output-dir first (default: the newest of this data set and model)"
    )
    profile: bool = option(False, "trace a few steps into profile/ and print where their time goes")
    resume: bool = option(
        False, "continue the run in --output-dir (default: the newest of this data set and model)"
    )
    seed: int = option(42, "random seed", least=0, most=2**32 - 1)
    audit: bool = option(False, "only look at the data: print what is in it, write it as a page, and stop")
    log_to: str | None = option(
        None, f"also log to these, separated by commas: {', '.join(TRACKERS)}", metavar="NAMES"
    )
    push_to_hub: str | None = option(
        None, "upload the best model with its card to this Hub repository at the end"
    )
    push_dry_run: bool = option(False, "with --push-to-hub: only list what would be uploaded")

    @property
    def trackers(self) -> list[str]:
        return names_in(self.log_to)

    @property
    def augmentations(self) -> list[str]:
        return names_in(self.augment)

    @property
    def clips_per_step(self) -> int:
        """Clips in an optimizer step, in however many micro-batches."""
        return self.global_batch_size or self.micro_batch_size * self.gradient_accumulation_steps

    @property
    def micro_batch_size(self) -> int:
        """Clips in a micro-batch; of `auto`, which training/memory.py settles, the usual."""
        return USUAL_BATCH_SIZE if self.batch_size == "auto" else int(self.batch_size)

    def problems(self) -> Iterator[str]:
        """What does not fit together, a sentence each."""
        if self.split_by == "group" and self.group_column is None:
            yield "--split-by group divides by a column: name it with --group-column."
        if self.split_by not in SPLIT_BY and not fold_meant(self.split_by):
            yield f"--split-by is {self.split_by!r}: give one of {', '.join(SPLIT_BY)}, or a fold, as 2/5."
        if (self.split_by == "nothing" or fold_meant(self.split_by)) and (
            self.eval_fraction != TrainConfig.eval_fraction
        ):
            yield f"--split-by {self.split_by} says how much is held out: leave out --eval-fraction."
        if self.split_by != "random" and (self.eval_split or self.eval_dataset):
            yield (
                f"--split-by {self.split_by} holds out a part of train to evaluate on: leave it out, or "
                "--eval-split and --eval-dataset."
            )
        if self.cache_features and self.freeze in ("nothing", "auto"):
            yield "--cache-features keeps what frozen convolutions compute: add --freeze feature-encoder."
        if self.cache_features and self.freeze == "encoder":
            yield "--freeze encoder computes features once in any case: leave out --cache-features."
        if self.cache_features and self.backbone == "transformers":
            yield "--cache-features needs audiocls's forward pass: leave out --backbone transformers."
        if self.max_batch_seconds is not None and self.compile:
            yield "--max-batch-seconds makes many sizes of micro-batches to compile: leave out --compile."
        if self.max_batch_seconds is not None and not self.bucket:
            yield "--max-batch-seconds divides clips sorted by length: leave out --no-bucket."
        if self.drop and self.drop == self.relabel:
            yield "--drop and --relabel name the same table: give one of them."
        if self.cuda_graphs and self.activation_checkpointing:
            yield "--activation-checkpointing computes again, which --cuda-graphs cannot: give one of them."
        if self.resume and self.overwrite:
            yield "--resume continues a run and --overwrite replaces it: give one of them."
        if self.push_dry_run and not self.push_to_hub:
            yield "--push-dry-run says what --push-to-hub NAME would upload: give that too."
        for flag, names, known in (
            ("--log-to", self.trackers, TRACKERS),
            ("--augment", self.augmentations, AUGMENTATIONS),
        ):
            if unknown := [name for name in names if name not in known]:
                yield f"{flag} is {', '.join(unknown)!r}: give {' or '.join(known)}, or several by comma."
        if self.augment and (self.cache_features or self.freeze == "encoder"):
            what = "--cache-features" if self.cache_features else "--freeze encoder"
            yield f"--augment changes waveforms, and {what} computes from them once: give --augment none."
        if isinstance(every := self.checkpoint_every, str) and not seconds_of(every):
            yield f"--checkpoint-every is {every!r}: give a number of steps, or a time as 10m."
        if self.output_dir and os.path.realpath(self.output_dir) == os.path.realpath(self.dataset):
            yield "--output-dir is the data set's own folder: name another."
        for name in (self.dataset, self.eval_dataset, self.test_dataset, self.drop, self.relabel, self.model):
            if name and is_missing_path(name):
                yield f"There is no file or folder {name}."
        yield from device_problems(self.device)
        yield from channel_problems(self.channel)


def as_in_training(name: str, default: Any = None, **differences: Any) -> Any:
    """TrainConfig's option of that name, for InferConfig, which has groups of its own."""
    metadata = TrainConfig.__dataclass_fields__[name].metadata
    return dataclasses.field(default=default, metadata={**metadata, "group": "", **differences})


@dataclasses.dataclass(frozen=True)
class InferConfig:
    """What `python infer.py` does."""

    model: str = option("", "run folder, saved model or Hub id", positional=True)
    inputs: tuple[str, ...] = option(
        (), "audio files, folders of them, or - for a list of paths on standard input", positional=True
    )
    top_k: int = option(5, "labels to report for each file", least=1, most=100_000)
    batch_size: int | None = option(
        None,
        "files or windows classified at once (default: 1 on a CPU, else as many as are 128 s long)",
        least=1,
    )
    max_seconds: float | None = as_in_training(
        "max_seconds", help="use only the first seconds of each file, as training does (default: all of it)"
    )
    max_decode_seconds: float = as_in_training("max_decode_seconds", TrainConfig.max_decode_seconds)
    channel: str = as_in_training("channel", TrainConfig.channel)
    trim_silence: bool = as_in_training("trim_silence", TrainConfig.trim_silence)
    backbone: str = as_in_training(
        "backbone",
        TrainConfig.backbone,
        help="whose forward pass runs: audiocls's, or transformers' own (always where audiocls has none)",
    )
    device: str = as_in_training("device", TrainConfig.device)
    precision: str = as_in_training(
        "precision",
        "fp32",
        help="fp32 gives the pipeline's scores; auto is bf16 on a GPU that has it in hardware",
    )
    format: str = option("text", "output format", choices=("text", "jsonl", "csv"))
    output: str | None = option(None, "write the results to this file (default: standard output)")

    window: float | None = option(
        None,
        "classify windows of this many seconds, and each file by combining its windows",
        group="long recordings",
        above=0,
        most=600,
        metavar="SECONDS",
    )
    hop: float | None = option(
        None, "from one window's start to the next one's (default: --window)", least=0.01, metavar="SECONDS"
    )
    aggregate: str = option(
        "mean",
        "how windows are combined; vote is the fraction of the windows that a label wins",
        choices=AGGREGATES,
    )

    dataset: str | None = as_in_training(
        "dataset", help="classify and score a labelled data set, given as for train.py", group="data"
    )
    dataset_config: str | None = as_in_training("dataset_config")
    dataset_revision: str | None = as_in_training("dataset_revision")
    eval_split: str | None = as_in_training(
        "eval_split", help="split to classify and score (default: the only one, or else test)"
    )
    audio_column: str | None = as_in_training("audio_column")
    label_column: str | None = as_in_training("label_column")
    split_column: str | None = as_in_training("split_column")
    audio_folder: str | None = as_in_training("audio_folder")
    segments: str = as_in_training("segments", TrainConfig.segments)

    export: str | None = option(
        None,
        "write the model to --output instead, to be used without this package",
        group="export",
        choices=tuple(EXPORT_SUFFIXES),
    )

    def problems(self) -> Iterator[str]:
        """What does not fit together, a sentence each."""
        if is_missing_path(self.model):
            yield f"There is no folder {self.model}."
        if self.dataset is not None and is_missing_path(self.dataset):
            yield f"There is no file or folder {self.dataset}."
        if sum((bool(self.inputs), self.dataset is not None, self.export is not None)) != 1:
            yield "Give one of: files or folders (- for a list of them), --dataset, or --export."
        if self.inputs.count("-") > 1:
            yield "Standard input (-) can be read once."
        if self.export and not (self.output or "").endswith(EXPORT_SUFFIXES[self.export]):
            yield f"--export {self.export} needs a name: --output model{EXPORT_SUFFIXES[self.export]}."
        if self.hop is not None and self.window is None:
            yield "--hop says how far apart windows are: add --window SECONDS."
        if self.aggregate != InferConfig.aggregate and self.window is None:
            yield "--aggregate says how windows are combined: add --window SECONDS."
        if self.trim_silence and self.window is not None:
            yield "--trim-silence needs to hear a recording whole: leave out --window."
        yield from device_problems(self.device)
        yield from channel_problems(self.channel)


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """What `python -m audiocls.compare` does."""

    settings: tuple[str, ...] = option(
        (),
        'two or more: flags of train.py in quotes ("--recipe frozen"), settings files, or folders of runs',
        positional=True,
    )
    seeds: int | None = option(
        None,
        "runs of each, with seeds in a row (default: 3; of a run's folder, that one)",
        least=1,
        most=100,
    )
    output_dir: str | None = option(
        None, "folder of the runs and of what comes out (default: runs/compare-<data set>)"
    )

    def problems(self) -> Iterator[str]:
        """What does not fit together, a sentence each."""
        if not self.settings:
            yield "Give the settings to compare, or one to see how far it varies from seed to seed."
        if len(self.settings) > 26:
            yield "Give 26 settings at most: they are called A to Z."


@dataclasses.dataclass(frozen=True)
class FoldsConfig:
    """What `python -m audiocls.folds` does."""

    folds: str = option(
        "",
        "how many, or 'speakers': one for each group of --group-column",
        positional=True,
    )
    final: bool = option(False, "then train a model on all clips, whose card quotes the folds' scores")
    output_dir: str | None = option(
        None, "folder of the runs and of what comes out (default: runs/folds-<how many>-<data set>-<model>)"
    )

    @property
    def count(self) -> int | None:
        """How many; None: one for each group."""
        return int(self.folds) if self.folds != "speakers" else None

    def problems(self) -> Iterator[str]:
        """What does not fit together, a sentence each."""
        if self.folds != "speakers" and not fold_meant(f"1/{self.folds}"):
            yield f"{self.folds!r} is no number of folds: give 2 or more, or 'speakers'."


def names_in(text: str | None) -> list[str]:
    """The names between commas; none where nothing was given."""
    return [name.strip() for name in text.split(",")] if text else []


def is_missing_path(name: str) -> bool:
    """Whether a name can only be meant as a path, not as an OWNER/NAME on the Hub, and nothing is there."""
    looks_local = name.startswith((".", "/", "~")) or name.lower().endswith(("/", *FORMATS))
    return (looks_local or name.count("/") > 1) and not os.path.exists(os.path.expanduser(name))


def seconds_of(time: str) -> float:
    """The seconds in 30s, 10m or 1.5h; 0 where it is no such time."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", time.strip().lower())
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0


def fold_meant(split_by: str) -> tuple[int, int] | None:
    """(2, 5) of 2/5, the second of five folds; None where it is no such fold."""
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", split_by)
    fold = (int(match[1]), int(match[2])) if match else (0, 0)
    return fold if 1 <= fold[0] <= fold[1] and fold[1] > 1 else None


def channel_problems(channel: str) -> list[str]:
    if re.fullmatch("mean|left|right|[1-9][0-9]?", channel):
        return []
    return [f"--channel is {channel!r}: give mean, left, right, or a number from 1 on."]


def device_problems(device: str) -> list[str]:
    if device in ("auto", "cpu", "cuda", "mps") or re.fullmatch("cuda:[0-9]{1,3}", device):
        return []
    return [f"--device is {device!r}: give auto, cpu, cuda, cuda:N or mps."]
