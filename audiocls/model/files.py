"""A model folder, read as data and written as transformers reads it.

What was saved here, or in the same form, is read without transformers, whose import takes longer than all
else that classifying one file needs. Everything else becomes transformers' own objects, of known fields.
"""

import dataclasses
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from audiocls.errors import UserError
from audiocls.hub import hub_file
from audiocls.model.encoder import SpeechClassifier
from audiocls.model.loaded import Backbone, LoadedModel
from audiocls.model.settings import EncoderConfig, WaveformExtractor
from audiocls.model.stock import StockModel
from audiocls.model.trust import known_fields, labels_in, read_json, read_tensors
from audiocls.storage import write_json

# Fields of every config that are not taken from a file: they change what forward returns, or are ours to say.
NOT_KEPT = set(
    "architectures chunk_size_feed_forward dtype id2label is_encoder_decoder label2id output_hidden_states "
    "problem_type return_dict transformers_version".split()
)
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
# The feature extractor of an architecture, where that is not Wav2Vec2FeatureExtractor.
FEATURE_EXTRACTORS = {
    "audio-spectrogram-transformer": "ASTFeatureExtractor",
    "wav2vec2-bert": "SeamlessM4TFeatureExtractor",
    "whisper": "WhisperFeatureExtractor",
}


def read_saved(folder: Path) -> Backbone | None:
    """The model in `folder` with its tensors, if encoder.py computes it and it lies there as saved here.

    None where anything is otherwise: then transformers loads it, or says what is wrong.
    """
    try:
        values, config = read_settings(folder / "config.json", EncoderConfig)
        _, extractor = read_settings(folder / "preprocessor_config.json", WaveformExtractor)
        if config is None or extractor is None or values.get("architectures") != [config.architecture]:
            return None
        if (problem_type := values.get("problem_type")) not in (None, *PROBLEM_TYPES):
            return None
        labels = tuple(labels_in(values, folder / "config.json"))
        with torch.device("meta"):
            expected = SpeechClassifier(config, len(labels)).state_dict()
        tensors = read_tensors([folder / "model.safetensors"])
    except (UserError, ValueError, TypeError, RuntimeError):
        return None
    if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in expected.items()}:
        return None
    name = str(folder)
    return Backbone(name, None, config, extractor, labels=labels, problem_type=problem_type, tensors=tensors)


def read_settings(path: Path, kind: Any) -> tuple[dict[str, Any], Any]:
    """All that is in a JSON file, and `kind.read` of its known fields."""
    values = read_json(path)
    return values, kind.read(known_fields(values, kind.__dataclass_fields__, path))


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """config.json, model.safetensors and preprocessor_config.json, as transformers' `pipeline` reads them."""
    config, extractor = loaded.backbone.config, loaded.backbone.feature_extractor
    if isinstance(loaded.model, StockModel):
        loaded.model.model.save_pretrained(folder)
        extractor.save_pretrained(folder)
        return
    about = {
        "architectures": [config.architecture],
        "dtype": "float32",
        "id2label": dict(enumerate(loaded.backbone.labels)),
        "label2id": {label: id for id, label in enumerate(loaded.backbone.labels)},
        "problem_type": loaded.backbone.problem_type,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config.to_json() | about)
    write_json(folder / "preprocessor_config.json", dataclasses.asdict(extractor))
    tensors = {name: tensor.contiguous() for name, tensor in loaded.model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


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


def set_labels(config: Any, labels: Sequence[str]) -> None:
    """Give a transformers config its labels, in the order of the outputs."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: id for id, label in enumerate(labels)}


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
    config = config_class(**kept)
    if with_labels:
        set_labels(config, labels_in(values, path))
        config.problem_type = values.get("problem_type")
    return config


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
        raise UserError(f"{path}: a {config.model_type} needs a {expected}, not {kind!r}.")
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
