"""Tiny random models of every architecture that classifies audio, each with its feature extractor."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiocls.torchaudio_guard import import_torchaudio

import_torchaudio()  # before transformers does, which fails where its compiled extension does not load

import torch  # noqa: E402
from transformers import (  # noqa: E402
    ASTFeatureExtractor,
    AutoConfig,
    AutoModelForAudioClassification,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from audiocls.model.backbone import LoadedModel  # noqa: E402
from audiocls.model.loading import load_for_inference  # noqa: E402

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "classifier_proj_size": 24,
}
WAVEFORM = SMALL | {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
SEW = SMALL | {"squeeze_factor": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
SEW_CONV = {
    "conv_dim": (16,) * 13,
    "conv_stride": (5, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1),
    "conv_kernel": (10, 3, 1, 3, 1, 3, 1, 3, 1, 2, 1, 2, 1),
}
DATA2VEC = SMALL | {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}
BERT = SMALL | {"feature_projection_input_dim": 160, "position_embeddings_type": "relative_key"}
AST = {key: SMALL[key] for key in list(SMALL)[:4]} | {"max_length": 128, "num_mel_bins": 32}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 48,
    "num_mel_bins": 16,
    "max_source_positions": 100,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "classifier_proj_size": 24,
}

LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}

CONFIGS: dict[str, dict[str, Any]] = {  # name: what differs from the defaults of the model type
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat"), WAVEFORM),
    "wav2vec2-layer-norm": WAVEFORM | LAYER_NORM | {"model_type": "wav2vec2"},
    "data2vec-audio": DATA2VEC,
    "wav2vec2-conformer": WAVEFORM,
    **dict.fromkeys(("sew", "sew-d"), SEW | SEW_CONV),
    "wav2vec2-bert": BERT,
    "audio-spectrogram-transformer": AST,
    "whisper": WHISPER,
}


def config_of(name: str, changes: dict[str, Any]) -> Any:
    config = AutoConfig.for_model(**{"model_type": name} | CONFIGS[name])
    for key, value in changes.items():
        setattr(config, key, value)
    return config


def feature_extractor_for(name: str) -> Any:
    match name:
        case "wav2vec2-bert":
            return SeamlessM4TFeatureExtractor()
        case "audio-spectrogram-transformer":
            return ASTFeatureExtractor(num_mel_bins=32, max_length=128)
        case "whisper":
            return WhisperFeatureExtractor(feature_size=16, chunk_length=2)
        case _:
            return Wav2Vec2FeatureExtractor(return_attention_mask=name in ("wav2vec2-layer-norm", "wavlm"))


def save_backbone(name: str, folder: Path, changes: dict[str, Any] | None = None) -> None:
    """A pretrained backbone as it is published: without a classification head."""
    model = AutoModelForAudioClassification.from_config(config_of(name, changes or {}))
    head = ("projector.", "classifier.")
    headless = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(head)}
    model.save_pretrained(folder, state_dict=headless)
    feature_extractor_for(name).save_pretrained(folder)


def fine_tuned(name: str, labels: Sequence[str], **changes: Any) -> LoadedModel:
    """A classifier of random weights, through a folder."""
    torch.manual_seed(0)
    settings = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = config_of(name, settings | changes)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForAudioClassification.from_config(config).save_pretrained(folder)
        feature_extractor_for(name).save_pretrained(folder)
        return load_for_inference(folder)
