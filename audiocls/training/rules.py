"""What "auto" means, once the data and the model are known; and to what length a model's window is cut.

Each rule is a pure function of what was typed, the clips and the model: a run that goes on finds the same.
`--batch-size auto` is counted, or found by trying, in memory.py.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from audiocls.config import TrainConfig
from audiocls.data.prepare import RunData
from audiocls.model.backbone import Backbone
from audiocls.model.window import cut_window

PASSES, PASSES_FROM_RANDOM = 5, 20
FEWEST_STEPS, MOST_STEPS = 1_000, 6_000
EVALUATIONS = 20
FROZEN_EVALUATIONS = 5  # a whole model is saved at each, and the steps between are milliseconds
HEAD_LEARNING_RATE = 1e-2  # of a head alone, above a frozen encoder
UNEVEN = 10  # times as many clips in the largest class as in the smallest
LARGE = 1_024  # the hidden size of published models that are called large


def freeze(config: TrainConfig, data: RunData, backbone: Backbone) -> str:
    """The convolutions of a pretrained model that has some; nothing of others."""
    has_trained_ones = backbone.takes_waveforms and backbone.name != "tiny"
    return "feature-encoder" if has_trained_ones else "nothing"


def epochs(config: TrainConfig, data: RunData, backbone: Backbone) -> int:
    """Whole passes: 5, or as many as give 1,000 steps; of large sets fewer, to stay below 6,000.

    Random weights have more to learn: 20.
    """
    an_epoch = steps_per_epoch(config, data)
    passes = max(
        PASSES_FROM_RANDOM if backbone.name == "tiny" else PASSES, math.ceil(FEWEST_STEPS / an_epoch)
    )
    return min(passes, max(1, MOST_STEPS // an_epoch))


def eval_every(config: TrainConfig, data: RunData, backbone: Backbone) -> int:
    """The steps between 20 evaluations; 5 above a frozen encoder."""
    steps = config.max_steps or int(config.epochs) * steps_per_epoch(config, data)
    return math.ceil(steps / (FROZEN_EVALUATIONS if config.freeze == "encoder" else EVALUATIONS))


def learning_rate(config: TrainConfig, data: RunData, backbone: Backbone) -> float:
    """By what is trained: a head alone, random weights, or a pretrained encoder.

    Pretrained encoders that are large, or of spectrograms (Whisper, AST), take less than a base one of
    waveforms.
    """
    if config.freeze == "encoder":
        return HEAD_LEARNING_RATE
    if backbone.name == "tiny":
        return 3e-3
    is_base = backbone.takes_waveforms and backbone.config.hidden_size < LARGE
    return 1e-4 if is_base else 3e-5


def balance_classes(config: TrainConfig, data: RunData, backbone: Backbone) -> str:
    """Says yes where the largest class has ten times as many clips to train on as the smallest."""
    sizes = np.unique(data.train.labels, return_counts=True)[1]
    return "yes" if sizes.max() >= UNEVEN * sizes.min() else "no"


# In this order: those below look at what those above gave.
RULES: dict[str, Callable[[TrainConfig, RunData, Backbone], Any]] = {
    "freeze": freeze,
    "epochs": epochs,
    "eval_every": eval_every,
    "learning_rate": learning_rate,
    "balance_classes": balance_classes,
}


def settle(config: TrainConfig, data: RunData, backbone: Backbone) -> TrainConfig:
    """The config with a value for every "auto" of RULES.

    No head is trained first on random weights, nor where it is all that is trained.
    """
    for name, rule in RULES.items():
        if getattr(config, name) == "auto":
            config = dataclasses.replace(config, **{name: rule(config, data, backbone)})
    if backbone.name == "tiny" or config.freeze == "encoder":
        config = dataclasses.replace(config, head_first=False)
    return config


def steps_per_epoch(config: TrainConfig, data: RunData) -> int:
    return math.ceil(len(data.train) / config.clips_per_step)


def fit_window(backbone: Backbone, data: RunData) -> tuple[Backbone, RunData]:
    """A spectrogram model with its window cut to the length of 99% of the clips, and a note of that.

    Clips are as long as augmentation can make them.
    """
    lengths = np.concatenate([clips.num_samples for clips in data.parts.values()])
    samples = np.quantile(lengths, 0.99, method="higher")
    fitted = cut_window(backbone, samples / backbone.sampling_rate)
    before, after = backbone.max_samples, fitted.max_samples
    if not (before and after and after < before):
        return backbone, data
    longer = np.count_nonzero(lengths > after)
    note = f"the model's window is cut from {before / backbone.sampling_rate:g} to "
    note += f"{after / backbone.sampling_rate:g} s, the length of 99% of the clips"
    note += f"; the ends of {longer} of {len(lengths)} clips are not used" if longer else ""
    return fitted, dataclasses.replace(data, notes=[*data.notes, note])
