"""A model's config and feature extractor, built by name from the known fields of its two JSON files."""

import dataclasses
import inspect
import os
from pathlib import Path
from typing import Any

from audiocls.errors import UserError
from audiocls.hub import hub_file
from audiocls.model.trust import known_fields, labels_in, read_json

# Fields of every config that are not taken from a file: they change what forward returns, or are ours to say.
NOT_KEPT = set(
    "architectures chunk_size_feed_forward dtype id2label is_encoder_decoder label2id output_hidden_states "
    "problem_type return_dict transformers_version".split()
)
# What an architecture hears through, where that is not Wav2Vec2FeatureExtractor.
FEATURE_EXTRACTORS = {
    "audio-spectrogram-transformer": "ASTFeatureExtractor",
    "wav2vec2-bert": "SeamlessM4TFeatureExtractor",
    "whisper": "WhisperFeatureExtractor",
}


def model_file(name: str, revision: str | None, filename: str) -> Path | None:
    """A file of the model, from its folder or the Hub; None where it has none of that name."""
    folder = Path(name)
    if not os.path.isdir(folder):
        return hub_file(name, filename, revision)
    return folder / filename if os.path.lexists(folder / filename) else None


def missing(name: str, what: str) -> Exception:
    """What to raise where a model lacks a file: on the Hub that may mean that the Hub is out of reach."""
    lacks = f"{name} holds no {what}"
    return UserError(f"{lacks}.") if os.path.isdir(name) else FileNotFoundError(lacks)


def read_config(name: str, revision: str | None, *, with_labels: bool) -> Any:
    """A config of the class that config.json names, with the fields which that class has."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES

    path = model_file(name, revision, "config.json")
    if path is None:
        raise missing(name, "config.json")
    values = read_json(path)
    model_type = values.get("model_type")
    if model_type not in list(MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES):
        known = ", ".join(sorted(MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES))
        raise UserError(f"{name} is a {model_type}, not one that classifies audio. These do: {known}.")
    config_class = CONFIG_MAPPING[model_type]
    fields = {field.name for field in dataclasses.fields(config_class)} - NOT_KEPT
    kept = known_fields(values, sorted(fields), path)
    if with_labels:
        labels = labels_in(values, path)
        kept["id2label"] = dict(enumerate(labels))
        kept["label2id"] = {label: id for id, label in enumerate(labels)}
        kept["problem_type"] = values.get("problem_type")
    return config_class(**kept)


def read_feature_extractor(name: str, revision: str | None, config: Any) -> Any:
    """The feature extractor of the config's architecture, with the settings which its class has."""
    import transformers

    path = model_file(name, revision, "preprocessor_config.json")
    if path is None:
        raise missing(name, "preprocessor_config.json")
    values = read_json(path)
    expected = FEATURE_EXTRACTORS.get(config.model_type, "Wav2Vec2FeatureExtractor")
    kind = values.get("feature_extractor_type", expected)
    if kind != expected:
        raise UserError(f"{path}: a {config.model_type} hears through {expected}, not {kind!r}.")
    extractor_class = getattr(transformers, expected)
    defaults = {
        setting: parameter.default
        for setting, parameter in inspect.signature(extractor_class.__init__).parameters.items()
        if parameter.default is not parameter.empty
    }
    kept = known_fields(values, defaults, path)
    for setting, value in kept.items():
        kinds = (int, float) if type(defaults[setting]) is float else (type(defaults[setting]),)
        if type(value) not in kinds:
            raise UserError(f"{path}: {setting} is {value!r}, not like {defaults[setting]!r}.")
    return extractor_class(**kept)
