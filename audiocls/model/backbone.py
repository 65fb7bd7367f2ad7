"""Load a speech encoder with a classification head, and save it: every AutoModelForAudioClassification."""

import contextlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiocls.config import is_missing_path
from audiocls.data.loader import Example
from audiocls.errors import UserError, named
from audiocls.hub import commit_of, loading, quiet_transformers
from audiocls.lean_torch import complete_torch
from audiocls.model.loaded import Backbone, LoadedModel
from audiocls.model.padding import make_padding_invariant
from audiocls.model.settings import missing, model_file, read_config, read_feature_extractor
from audiocls.model.trust import WEIGHTS, read_tensors, weight_files
from audiocls.model.wav2vec2 import read_saved
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
TINY_FEATURE_EXTRACTOR = {"sampling_rate": 16_000, "do_normalize": True, "return_attention_mask": True}

MOST_NEW_VALUES = 50_000_000  # that a model may have beside those in its files: a head of its own
MOST_SECONDS_A_FRAME = 60

# What a pretrained backbone may lack, or have in another shape: it is learned here.
HEAD = ("projector.", "classifier.", "layer_weights")


def open_backbone(name: str, revision: str | None = None, *, with_labels: bool = False) -> Backbone:
    """The config and the feature extractor of `name`: a Hub id, a folder, or 'tiny'.

    `with_labels`: of a fine-tuned model, whose labels are then checked and kept.

    Raises UserError where it is no model that classifies audio, InputOutputFailed where it cannot be read.
    """
    complete_torch()
    # transformers imports torchaudio for AST's filter banks: where it is broken, ours must be there first.
    with contextlib.suppress(ModuleNotFoundError):
        import_torchaudio()
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor

    quiet_transformers()
    if name == "tiny":
        return Backbone(
            name, None, Wav2Vec2Config(**TINY), Wav2Vec2FeatureExtractor(**TINY_FEATURE_EXTRACTOR)
        )
    commit = None
    name = os.path.expanduser(name)
    if not os.path.isdir(name):
        if is_missing_path(name):
            raise UserError(f"There is no folder {name}.")
        commit = commit_of("model", name, revision)
    with loading(f"The model {name}", is_local=os.path.isdir(name)):
        config = read_config(name, revision, with_labels=with_labels)
        feature_extractor = read_feature_extractor(name, revision, config)
    backbone = Backbone(name, revision, config, feature_extractor, commit)
    check_window(backbone)
    return backbone


def check_window(backbone: Backbone) -> None:
    """Raises UserError where config and feature extractor do not fit, or one frame hears absurdly much."""
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
    if made != expected:
        raise UserError(f"{backbone.name}: preprocessor_config.json makes {made} and config.json {expected}.")


def load_for_training(
    backbone: Backbone, labels: Sequence[str], *, seed: int, padding_invariant: bool = True
) -> LoadedModel:
    """The backbone's weights in float32, under a head for `labels`: random where the weights have none."""
    from transformers import Wav2Vec2ForSequenceClassification

    config = backbone.config
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: id for id, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    torch.manual_seed(seed)
    name = backbone.name
    if name == "tiny":
        model = Wav2Vec2ForSequenceClassification(config)
        report: dict[str, Any] = {"missing_keys": (), "unexpected_keys": (), "mismatched_keys": ()}
    else:
        model, report = load_weights(backbone)
    lacking = [
        key for key in report["missing_keys"] if not key.startswith(HEAD) and "masked_spec_embed" not in key
    ]
    misshapen = [key for key, *_ in report["mismatched_keys"] if not key.startswith(HEAD)]
    if lacking or misshapen:
        raise UserError(
            f"{name} is no backbone for {config.model_type}: {first_of(lacking + misshapen)} do not fit."
        )
    for module in model.modules():
        # For gradient checkpointing, which is off, the encoder asks for its input's gradient: the first
        # convolution's backward pass then costs twice as much.
        if hasattr(module, "_requires_grad"):
            module._requires_grad = False
    notes = []
    if report["unexpected_keys"]:
        notes.append(f"{name}: {first_of(sorted(report['unexpected_keys']))} are not used")
    return tried(LoadedModel(model, backbone, padding_invariant and make_padding_invariant(model), notes))


def load_for_inference(name: str, revision: str | None = None) -> LoadedModel:
    """A fine-tuned model, of which nothing may be missing: a Hub id or a folder that holds one.

    Raises UserError where a tensor is missing, left over or of another shape.
    """
    if saved := read_saved(Path(name)):
        model, feature_extractor = saved
        backbone = Backbone(name, revision, model.config, feature_extractor)
        check_window(backbone)
        return tried(LoadedModel(model, backbone, make_padding_invariant(model)))
    backbone = open_backbone(name, revision, with_labels=True)
    model, report = load_weights(backbone)
    wrong = [
        *report["missing_keys"],
        *report["unexpected_keys"],
        *(key for key, *_ in report["mismatched_keys"]),
    ]
    if wrong:
        raise UserError(
            f"{name} is not a fine-tuned classifier: {first_of(sorted(wrong))} are missing or do not fit."
        )
    return tried(LoadedModel(model.eval(), backbone, make_padding_invariant(model)))


def tried(loaded: LoadedModel) -> LoadedModel:
    """The model, after it has heard the shortest clip: a config can ask for what only a forward pass shows.

    A model of a fixed window, for which that would take long, was checked by `check_window`.
    """
    model, backbone, was_training = loaded.model, loaded.backbone, loaded.model.training
    if backbone.max_samples is None:
        waveform = np.linspace(-1, 1, backbone.min_samples, dtype=np.float32)
        with (
            loading(f"The model {backbone.name}", is_local=True),
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
        ):
            logits = model.eval()(**loaded.collator()([Example(waveform)]).inputs).logits
            if not logits.isfinite().all():
                raise UserError(f"{backbone.name} gives scores that are not finite: its config is wrong.")
        model.train(was_training)
    return loaded


def load_weights(backbone: Backbone) -> tuple[Any, dict[str, Any]]:
    """The model in float32, whatever it is stored in, and transformers' report on what fitted.

    Raises UserError where the weights are not plain finite tensors, or far fewer than the config describes.
    """
    from transformers import AutoModelForAudioClassification

    name, config = backbone.name, backbone.config
    with loading(f"The model {name}", is_local=Path(name).is_dir()):
        files = weight_files(name, partial(model_file, name, backbone.revision))
        if not files:
            raise missing(name, " or ".join(WEIGHTS))
        tensors = read_tensors(files)
        model_class = AutoModelForAudioClassification._model_mapping[type(config)]
        with torch.device("meta"):
            described = sum(tensor.numel() for tensor in model_class(config).state_dict().values())
        if described > (there := sum(tensor.numel() for tensor in tensors.values())) + MOST_NEW_VALUES:
            raise UserError(f"{name}: its config describes {described:,} weights, its files hold {there:,}.")
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported, and judged by our callers
            output_loading_info=True,
        )
    return model, report


def first_of(names: Sequence[str]) -> str:
    return named(names, 3) + (" tensors" if len(names) > 3 else "")


def freeze_feature_encoder(model: Any, name: str) -> None:
    """Leave the convolutional encoder out of training. Raises UserError where the model has none."""
    if not hasattr(model, "freeze_feature_encoder"):
        raise UserError(
            f"{name} has no convolutional encoder of waveforms: leave out --freeze-feature-encoder."
        )
    model.freeze_feature_encoder()


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """config.json, model.safetensors and preprocessor_config.json, as `pipeline` reads them."""
    loaded.model.save_pretrained(folder)
    loaded.backbone.feature_extractor.save_pretrained(folder)
