"""A name -> a speech encoder with a classification head: every AutoModelForAudioClassification."""

import contextlib
import copy
import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from audiocls.config import is_missing_path
from audiocls.data.loader import Example
from audiocls.errors import UserError, named
from audiocls.hub import commit_of, loading, quiet_transformers
from audiocls.lean_torch import complete_torch
from audiocls.model.encoder import SpeechClassifier
from audiocls.model.files import (
    missing,
    model_file,
    read_config,
    read_feature_extractor,
    read_saved,
    set_labels,
)
from audiocls.model.loaded import Backbone, LoadedModel
from audiocls.model.settings import EncoderConfig, WaveformExtractor
from audiocls.model.stock import StockModel
from audiocls.model.trust import WEIGHTS, read_tensors, weight_files
from audiocls.torchaudio_guard import import_torchaudio

# `--model tiny`: a Wav2Vec2 that learns from random weights within minutes on a CPU. It hears in frames of
# 10 ms through three wide convolutions instead of seven, has one transformer layer, and rectifiers, whose
# backward pass is cheaper than GELU's. 0.44M parameters; plain config fields, so it loads in transformers.
TINY: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "conv_dim": (128, 128, 128),
    "conv_kernel": (64, 8, 4),
    "conv_stride": (16, 5, 2),
    "feat_extract_activation": "relu",
    "hidden_act": "relu",
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
    "classifier_proj_size": 128,
}
TINY_FEATURE_EXTRACTOR: dict[str, Any] = {
    "sampling_rate": 16_000,
    "do_normalize": True,
    "return_attention_mask": True,
}

MOST_NEW_VALUES = 50_000_000  # that a model may have beside those in its files: a head of its own
MOST_SECONDS_A_FRAME = 60

# What a pretrained backbone may lack, or have in another shape: it is learned here.
LEARNED_HERE = ("projector.", "classifier.", "layer_weights")  # and SpecAugment's `masked_spec_embed`


def open_backbone(
    name: str, revision: str | None = None, *, with_labels: bool = False, stock: bool = False
) -> Backbone:
    """The config and the feature extractor of `name`: a Hub id, a folder, or 'tiny'.

    `with_labels`: of a fine-tuned model, whose labels are then checked and kept. `stock`: to be computed by
    transformers' own model also where encoder.py could.

    Raises UserError where it is no model that classifies audio, InputOutputFailed where it cannot be read.
    """
    name = os.path.expanduser(name)
    backbone = None
    if name == "tiny" and not stock:
        backbone = Backbone(name, None, EncoderConfig.read(TINY), WaveformExtractor(**TINY_FEATURE_EXTRACTOR))
    elif not stock:
        backbone = read_saved(Path(name))
    backbone = backbone or open_by_transformers(name, revision, with_labels=with_labels, stock=stock)
    check_config(backbone)
    return backbone


def open_by_transformers(name: str, revision: str | None, *, with_labels: bool, stock: bool) -> Backbone:
    """The same by transformers' config and feature extractor."""
    complete_torch()
    # transformers imports torchaudio for AST's filter banks: where it is broken, ours must be there first.
    with contextlib.suppress(ModuleNotFoundError):
        import_torchaudio()
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor

    quiet_transformers()
    if name == "tiny":
        config, extractor = Wav2Vec2Config(**TINY), Wav2Vec2FeatureExtractor(**TINY_FEATURE_EXTRACTOR)
        return Backbone(name, None, config, extractor, transformers_config=config)
    commit = None
    if not os.path.isdir(name):
        if is_missing_path(name):
            raise UserError(f"There is no folder {name}.")
        commit = commit_of("model", name, revision)
    with loading(f"The model {name}", is_local=os.path.isdir(name)):
        config = read_config(name, revision, with_labels=with_labels)
        extractor = read_feature_extractor(name, revision, config)
    labels = tuple(config.id2label[id] for id in range(len(config.id2label)))
    backbone = Backbone(
        name,
        revision,
        config,
        extractor,
        commit,
        labels=labels,
        problem_type=config.problem_type,
        transformers_config=config,
    )
    ours = None if stock else EncoderConfig.read(config.to_dict())
    settings = WaveformExtractor.read(extractor.to_dict())
    if ours is None or settings is None:
        return backbone
    return dataclasses.replace(backbone, config=ours, feature_extractor=settings)


def check_config(backbone: Backbone) -> None:
    """Raises UserError where config and feature extractor do not fit, or the config cannot be a model's."""
    config, extractor = backbone.config, backbone.feature_extractor
    seconds = backbone.min_samples / backbone.sampling_rate
    if seconds > MOST_SECONDS_A_FRAME:
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
    """The backbone's weights in float32, under a head for `labels`: random where the weights have none."""
    torch.manual_seed(seed)
    backbone = dataclasses.replace(backbone, labels=tuple(labels), problem_type="single_label_classification")
    if backbone.transformers_config is None:
        model: nn.Module = copy.deepcopy(
            build_model(backbone)
        )  # training changes its weights, not the backbone's
        return tried(LoadedModel(model, dataclasses.replace(backbone, tensors=None)))
    model, unfit, unused = load_by_transformers(backbone)
    kind, name, notes = backbone.config.model_type, backbone.name, []
    unfit = [key for key in unfit if not (key.startswith(LEARNED_HERE) or key.endswith("masked_spec_embed"))]
    if unfit:
        raise UserError(f"{name} is no backbone for {kind}: {first_of(unfit)} do not fit.")
    if unused:
        notes.append(f"{name}: {first_of(unused)} are not used")
    return tried(LoadedModel(model, backbone, notes))


def load_for_inference(name: str, revision: str | None = None, *, stock: bool = False) -> LoadedModel:
    """A fine-tuned model, of which nothing may be missing: a Hub id or a folder that holds one.

    Raises UserError where a tensor is missing, left over or of another shape.
    """
    backbone = open_backbone(name, revision, with_labels=True, stock=stock)
    if backbone.transformers_config is None:
        built = build_model(backbone).eval().requires_grad_(False)
        return tried(LoadedModel(built, dataclasses.replace(backbone, tensors=None)))
    model, unfit, unused = load_by_transformers(backbone)
    if wrong := sorted([*unfit, *unused]):
        raise UserError(
            f"{name} is not a fine-tuned classifier: {first_of(wrong)} are missing or do not fit."
        )
    return tried(LoadedModel(model.eval(), backbone))


def tried(loaded: LoadedModel) -> LoadedModel:
    """The model, after a forward pass of the shortest clip: some bad configs only fail there.

    A model of a fixed window, for which that would take long, was checked by `check_config`.
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


def build_model(backbone: Backbone) -> SpeechClassifier:
    """The backbone's tensors under a head for its labels; where it has none, random weights."""
    config, num_labels = backbone.config, len(backbone.labels)
    if backbone.tensors is None:
        return SpeechClassifier(config, num_labels)
    tensors = {name: tensor.float() for name, tensor in backbone.tensors.items()}
    if len(tensors["classifier.bias"]) != num_labels:
        head = nn.utils.skip_init(nn.Linear, config.classifier_proj_size, num_labels)
        nn.init.normal_(head.weight, std=config.initializer_range)  # what transformers draws for a new one
        nn.init.zeros_(head.bias)
        tensors |= {"classifier.weight": head.weight, "classifier.bias": head.bias}
    with torch.device("meta"):
        model = SpeechClassifier(config, num_labels)
    model.load_state_dict(tensors, assign=True)
    return model


def load_by_transformers(backbone: Backbone) -> tuple[nn.Module, list[str], list[str]]:
    """The model in float32, whatever it is stored in, and two lists of names of weights.

    The first are missing in its files, or of another shape there; the second are left over there. Raises
    UserError where the weights are not plain finite tensors, or far fewer than the config describes.
    """
    from transformers import AutoModelForAudioClassification

    name, config = backbone.name, backbone.transformers_config
    set_labels(config, backbone.labels)
    config.problem_type = backbone.problem_type
    model_class = AutoModelForAudioClassification._model_mapping[type(config)]
    if name == "tiny":
        weights = SpeechClassifier(EncoderConfig(**TINY), len(backbone.labels)).state_dict()
        theirs = model_class(config)
        theirs.load_state_dict(weights)
        return StockModel(theirs), [], []
    with loading(f"The model {name}", is_local=Path(name).is_dir()):
        files = weight_files(name, partial(model_file, name, backbone.revision))
        if not files:
            raise missing(name, " or ".join(WEIGHTS))
        tensors = read_tensors(files)
        with torch.device("meta"):
            described = sum(tensor.numel() for tensor in model_class(config).state_dict().values())
        if described > (there := sum(tensor.numel() for tensor in tensors.values())) + MOST_NEW_VALUES:
            raise UserError(f"{name}: its config describes {described:,} weights, its files hold {there:,}.")
        theirs, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported, and judged by our callers
            output_loading_info=True,
        )
    unfit = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    unused = sorted(report["unexpected_keys"])
    if backbone.is_stock:
        return StockModel(theirs), unfit, unused
    with torch.device("meta"):
        ours = SpeechClassifier(backbone.config, len(backbone.labels))
    ours.load_state_dict(theirs.state_dict(), assign=True)  # strict: the names and shapes are transformers'
    return ours, unfit, unused


def first_of(names: Sequence[str]) -> str:
    return named(names, 3) + (" tensors" if len(names) > 3 else "")


def check_can_freeze(backbone: Backbone, *, cache_features: bool) -> None:
    """Raises UserError where the model has no convolutional encoder, or none whose output can be cached."""
    if not backbone.takes_waveforms:
        name = backbone.name
        raise UserError(
            f"{name} has no convolutional encoder of waveforms: leave out --freeze-feature-encoder."
        )
    if cache_features and backbone.is_stock:
        kind = backbone.config.model_type
        raise UserError(
            f"--cache-features needs audiocls's forward pass; transformers' own {kind} runs: leave it out."
        )


def freeze_feature_encoder(loaded: LoadedModel) -> None:
    """Leave the convolutional encoder out of training."""
    if isinstance(loaded.model, SpeechClassifier):
        loaded.model.encoder.feature_extractor.requires_grad_(False)
    else:
        loaded.model.model.freeze_feature_encoder()
