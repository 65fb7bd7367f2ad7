"""A name -> a speech encoder with a classification head: every AutoModelForAudioClassification.

There are two ways in. Where config.json is one that encoder.py computes, and the weights have its names and
shapes, as in what is saved here, they are taken as they are: without transformers, whose import takes longer
than all else that classifying one file needs. Everything else transformers loads, from what was read here:
other architectures, and published weights, which have older names or no head, and are then encoder.py's.
"""

import contextlib
import dataclasses
import inspect
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audiocls.commands import to_type
from audiocls.config import is_missing_path
from audiocls.data.collators import Example
from audiocls.errors import InputOutputFailed, UserError, named
from audiocls.hub import commit_of, loading
from audiocls.model.backbone import Backbone, LoadedModel
from audiocls.model.encoder import SpeechClassifier
from audiocls.model.files import (
    known_fields,
    labels_in,
    model_folder,
    named_labels,
    read_settings,
    read_weights,
)
from audiocls.model.head import head_for
from audiocls.model.settings import TINY, EncoderConfig, WaveformExtractor, is_like
from audiocls.model.stock import StockModel, import_transformers, load_stock, stock_config_class
from audiocls.model.window import cut_positions
from audiocls.streams import say

MOST_SECONDS_A_FRAME = 60

# What a pretrained backbone may lack, or have in another shape: it is learned here.
LEARNED_HERE = ("projector.", "classifier.", "layer_weights")  # and SpecAugment's `masked_spec_embed`

# The feature extractor of an architecture, where that is not Wav2Vec2FeatureExtractor.
FEATURE_EXTRACTORS = {
    "audio-spectrogram-transformer": "ASTFeatureExtractor",
    "wav2vec2-bert": "SeamlessM4TFeatureExtractor",
    "whisper": "WhisperFeatureExtractor",
}


def open_backbone(
    name: str, revision: str | None = None, *, with_labels: bool = False, stock: bool = False
) -> Backbone:
    """The config and the feature extractor of `name`: a Hub id, a folder, a run folder, or 'tiny'.

    `with_labels`: of a fine-tuned model, whose labels must be there. `stock`: to be computed by transformers'
    own model also where encoder.py could.

    Raises UserError where it is no model that classifies audio, InputOutputFailed where it cannot be read.
    """
    if name != "tiny" or with_labels:  # to be trained, tiny is always the one that is made here
        name = model_folder(name)
    is_local = os.path.isdir(name)
    if revision is not None and (is_local or name == "tiny"):
        raise UserError(
            f"{name} is not taken from the Hub, and has no revision {revision!r}: leave out --model-revision."
        )
    if name == "tiny":
        if with_labels:
            train = to_type("train", "--model", "tiny")
            raise UserError(f"tiny has random weights and no labels: train it first, with {train}.")
        config = import_transformers().Wav2Vec2Config(**TINY) if stock else EncoderConfig(**TINY)
        return Backbone(name, None, config, WaveformExtractor(return_attention_mask=True))
    if not is_local and is_missing_path(name):
        raise UserError(f"There is no folder {name}.")
    commit = None if is_local else commit_of("model", name, revision)
    with loading(f"The model {name}", is_local=is_local):
        path, values = read_settings(name, revision, "config.json")
        fields = [] if stock else EncoderConfig.names(values.get("model_type"))
        config = EncoderConfig.read(known_fields(values, fields, path)) or stock_config(name, path, values)
        labels = tuple(labels_in(values, path) if with_labels else named_labels(values, path))
        extractor = read_feature_extractor(name, revision, config.model_type)
    problem_type = values.get("problem_type") if with_labels else None
    backbone = Backbone(name, revision, config, extractor, commit, labels, problem_type)
    check_config(backbone)
    return backbone


def stock_config(name: str, path: Path, values: dict[str, Any]) -> Any:
    """A config of the class that config.json names, one of transformers', with the fields of that class."""
    config_class, fields = stock_config_class(name, values.get("model_type"))
    return config_class(**known_fields(values, fields, path))


def read_feature_extractor(name: str, revision: str | None, model_type: str) -> Any:
    """The feature extractor of an architecture, with the settings which its class has."""
    path, values = read_settings(name, revision, "preprocessor_config.json")
    expected = FEATURE_EXTRACTORS.get(model_type, "Wav2Vec2FeatureExtractor")
    kind = values.get("feature_extractor_type", expected)
    if kind != expected:
        raise UserError(f"{path}: a {model_type} needs a {expected}, not {kind!r}.")
    is_ours = expected == "Wav2Vec2FeatureExtractor"
    extractor_class = WaveformExtractor if is_ours else getattr(import_transformers(), expected)
    parameters = inspect.signature(extractor_class).parameters.values()
    defaults = {known.name: known.default for known in parameters if known.default is not known.empty}
    kept = known_fields(values, defaults, path)
    for setting, value in kept.items():
        if not is_like(value, defaults[setting]):
            raise UserError(f"{path}: {setting} is {value!r}, not like {defaults[setting]!r}.")
    return extractor_class(**kept)


def open_backbone_or_tiny(name: str, revision: str | None = None) -> Backbone:
    """`open_backbone`; where the model is out of reach, tiny, with a note: enough for its sampling rate."""
    try:
        return open_backbone(name, revision)
    except InputOutputFailed as error:
        backbone = open_backbone("tiny")
        say(f"note: {error} Clips are read at {backbone.sampling_rate / 1000:g} kHz.")
        return backbone


def check_config(backbone: Backbone) -> None:
    """Raises UserError where config and feature extractor do not fit, or the config cannot be a model's."""
    config, extractor = backbone.config, backbone.feature_extractor
    seconds = backbone.min_samples / backbone.sampling_rate
    if not 0 < seconds <= MOST_SECONDS_A_FRAME:
        raise UserError(f"{backbone.name} needs {seconds:g} s of audio for one frame: its config is wrong.")
    made: tuple = ()  # bins and frames of a spectrogram, where its length is fixed
    expected: tuple = ()
    match config.model_type:
        case "whisper":
            made = (extractor.feature_size, extractor.nb_max_frames)
            expected = (config.num_mel_bins, 2 * config.max_source_positions)  # a stride of 2 halves them
        case "audio-spectrogram-transformer":
            made = (extractor.num_mel_bins, extractor.max_length)
            expected = (config.num_mel_bins, config.max_length)
        case "wavlm" if not config.max_bucket_distance > config.num_buckets // 4 > 0:
            raise UserError(f"{backbone.name}: its num_buckets and max_bucket_distance do not fit.")
    if made != expected:
        raise UserError(f"{backbone.name}: preprocessor_config.json makes {made} and config.json {expected}.")


def load_for_training(backbone: Backbone, labels: Sequence[str], *, seed: int) -> LoadedModel:
    """The backbone's weights in float32, under a head for `labels`: `head_for`'s, or random.

    The positions of a window that `cut_window` cut are the first of the longer one.
    """
    torch.manual_seed(seed)
    kind, name, trained_labels = backbone.config.model_type, backbone.name, backbone.labels
    backbone = dataclasses.replace(backbone, labels=tuple(labels), problem_type="single_label_classification")
    notes = []
    with loading_weights(name):
        tensors = cut_positions(tensors_of(backbone), backbone.config)
        if name != "tiny":
            tensors, about_head = head_for(labels, trained_labels, tensors, backbone.config)
            notes += [f"{name}: {about_head}"] if about_head else []
        model, unfit, unused = build_model(backbone, tensors)
    unfit = [key for key in unfit if not (key.startswith(LEARNED_HERE) or key.endswith("masked_spec_embed"))]
    if unfit:
        raise UserError(f"{name} is no backbone for {kind}: {first_of(unfit)} do not fit.")
    notes += [f"{name}: {first_of(unused)} are not used"] if unused else []
    for parameter in model.parameters():  # mapped from a file, which may go while they are trained
        parameter.data = parameter.data.clone()
    return check_forward(LoadedModel(model, backbone, notes))


def load_for_inference(name: str, revision: str | None = None, *, stock: bool = False) -> LoadedModel:
    """A fine-tuned model, of which nothing may be missing: a Hub id, a folder or a run folder.

    Raises UserError where a tensor is missing, left over or of another shape.
    """
    backbone = open_backbone(name, revision, with_labels=True, stock=stock)
    with loading_weights(backbone.name):
        model, unfit, unused = build_model(backbone, tensors_of(backbone))
    if wrong := sorted([*unfit, *unused]):
        raise UserError(
            f"{name} is not a fine-tuned classifier: {first_of(wrong)} are missing or do not fit."
        )
    return check_forward(LoadedModel(model.eval().requires_grad_(False), backbone))


@contextlib.contextmanager
def loading_weights(name: str) -> Iterator[None]:
    """`loading`, and torch does not warn of sizes of 0: they fail next."""
    is_local = name == "tiny" or os.path.isdir(name)
    with loading(f"The model {name}", is_local=is_local), warnings.catch_warnings(action="ignore"):
        yield


def tensors_of(backbone: Backbone) -> dict[str, Tensor]:
    """The tensors by name that its files hold; tiny's are random, the same whatever computes."""
    if backbone.name == "tiny":
        config = EncoderConfig(**TINY) if backbone.is_stock else backbone.config
        return SpeechClassifier(config, len(backbone.labels)).state_dict()
    return read_weights(backbone.name, backbone.revision)


def build_model(backbone: Backbone, tensors: dict[str, Tensor]) -> tuple[nn.Module, list[str], list[str]]:
    """The model in float32, whatever the tensors are, and two lists of names of weights.

    The first are missing in `tensors`, or of another shape there: they are random now. The second are left
    over there. Raises UserError where the weights are far fewer than the config describes.
    """
    name, config, labels = backbone.name, backbone.config, backbone.labels
    if not backbone.is_stock:
        with torch.device("meta"):
            model = SpeechClassifier(config, len(labels))
        if take_over(model, tensors):
            return model, [], []
        path, values = read_settings(name, backbone.revision, "config.json")
        weighted = {"use_weighted_layer_sum": config.use_weighted_layer_sum}  # which a frozen encoder gets
        config = stock_config(name, path, values | weighted)
    theirs, unfit, unused = load_stock(name, config, labels, backbone.problem_type, tensors)
    if backbone.is_stock:
        return StockModel(theirs), unfit, unused
    model.load_state_dict(theirs.state_dict(), assign=True)  # strict: transformers' names and shapes
    return model, unfit, unused


def take_over(model: SpeechClassifier, tensors: dict[str, Tensor]) -> bool:
    """Put the tensors into the model, in float32, if their names and shapes are the model's own.

    False, and the model stays empty, where they are not.
    """
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        return False
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return True


def check_forward(loaded: LoadedModel) -> LoadedModel:
    """The model, after one forward pass of the shortest allowed clip: some bad configs only fail in one.

    A model of a fixed window, for which that would take long, was checked by `check_config`. Raises
    UserError.
    """
    model, backbone, was_training = loaded.model, loaded.backbone, loaded.model.training
    if backbone.max_samples is None:
        waveform = np.linspace(-1, 1, backbone.min_samples, dtype=np.float32)
        with (
            loading(f"The model {backbone.name}", is_local=True),
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
        ):
            logits = model.eval()(**loaded.collator()([Example(waveform)]).inputs)
            if not logits.isfinite().all():
                raise UserError(f"{backbone.name} gives scores that are not finite: its config is wrong.")
        model.train(was_training)
    return loaded


def first_of(names: Sequence[str]) -> str:
    return named(names, 3) + (" tensors" if len(names) > 3 else "")
