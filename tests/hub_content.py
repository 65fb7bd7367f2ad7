"""What the tests' loopback Hub holds: a small MInDS-14 and a tiny Wav2Vec2, shaped as the published ones."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
import yaml
from datasets import Audio, ClassLabel, Features, Value
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

INTENTS = [
    *("abroad", "address", "app_error", "atm_limit", "balance", "business_loan", "card_issues"),
    *("cash_deposit", "direct_debit", "freeze", "high_value_payment", "joint_account"),
    *("latest_transactions", "pay_bill"),
]
LANGUAGES = [
    *("cs-CZ", "de-DE", "en-AU", "en-GB", "en-US", "es-ES", "fr-FR"),
    *("it-IT", "ko-KR", "nl-NL", "pl-PL", "pt-PT", "ru-RU", "zh-CN"),
]
SAMPLING_RATE = 8000
MINDS14_FEATURES = Features(
    {
        "path": Value("string"),
        "audio": Audio(sampling_rate=SAMPLING_RATE),
        "transcription": Value("string"),
        "english_transcription": Value("string"),
        "intent_class": ClassLabel(names=INTENTS),
        "lang_id": ClassLabel(names=LANGUAGES),
    }
)

WAV2VEC2_CONFIG = {
    "architectures": ["Wav2Vec2ForPreTraining"],
    "model_type": "wav2vec2",
    # Tiny.
    "codevector_dim": 16,
    "conv_dim": [32] * 7,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_codevectors_per_group": 8,
    "num_hidden_layers": 2,
    "proj_codevector_dim": 16,
    # As published; the two that are no longer Wav2Vec2Config's fields stand last.
    "activation_dropout": 0.0,
    "apply_spec_augment": True,
    "attention_dropout": 0.1,
    "conv_bias": False,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "do_stable_layer_norm": False,
    "feat_extract_norm": "group",
    "feat_proj_dropout": 0.1,
    "final_dropout": 0.0,
    "hidden_dropout": 0.1,
    "layerdrop": 0.0,
    "mask_time_length": 10,
    "mask_time_prob": 0.05,
    "num_conv_pos_embedding_groups": 16,
    "num_conv_pos_embeddings": 128,
    "vocab_size": 32,
    "freeze_feat_extract_train": True,
    "gradient_checkpointing": True,
}
WAV2VEC2_PREPROCESSOR = {
    "do_normalize": True,
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
    "sampling_rate": 16000,
}


def write_minds14(root: Path, num_clips: Mapping[str, int] | None = None, revision: str = "main") -> Path:
    """The folder of PolyAI/minds14: for each language of `num_clips` a config with one parquet split, train.

    Intents take turns, each a tone of its own pitch in noise, so a few clips of each suffice to learn from.
    """
    num_clips = num_clips or {"en-US": 42, "de-DE": 14}
    repo = repo_folder(root / "datasets" / "PolyAI" / "minds14", revision)
    infos, configs = [], []
    for language, count in num_clips.items():
        table = minds14_table(language, count)
        parquet = repo / language / "train-00000-of-00001.parquet"
        parquet.parent.mkdir(exist_ok=True)
        pq.write_table(table, parquet)
        split = {"name": "train", "num_bytes": table.nbytes, "num_examples": count}
        sizes = {"download_size": parquet.stat().st_size, "dataset_size": table.nbytes}
        features = MINDS14_FEATURES._to_yaml_list()
        infos.append({"config_name": language, "features": features, "splits": [split], **sizes})
        files = [{"split": "train", "path": f"{language}/train-*"}]
        configs.append({"config_name": language, "data_files": files})
    card = yaml.safe_dump({"dataset_info": infos, "configs": configs})
    (repo / "README.md").write_text(f"---\n{card}---\n\n# MInDS-14\n")
    return repo


def minds14_table(language: str, num_clips: int) -> pa.Table:
    generator = np.random.default_rng(LANGUAGES.index(language))
    rows = []
    for index in range(num_clips):
        intent = index % len(INTENTS)
        seconds = np.arange(round(generator.uniform(0.5, 1.3) * SAMPLING_RATE)) / SAMPLING_RATE
        waveform = 0.3 * np.sin(2 * np.pi * (200 + 150 * intent) * seconds)
        waveform += 0.03 * generator.standard_normal(len(seconds))
        wav = io.BytesIO()
        soundfile.write(wav, waveform, SAMPLING_RATE, format="WAV", subtype="PCM_16")
        path = f"{language}~{INTENTS[intent].upper()}/{index:024x}.wav"
        row = {"path": path, "audio": {"bytes": wav.getvalue(), "path": path}, "intent_class": intent}
        row |= {"transcription": f"clip {index}", "english_transcription": f"clip {index}"}
        rows.append(row | {"lang_id": LANGUAGES.index(language)})
    return pa.Table.from_pylist(rows, schema=MINDS14_FEATURES.arrow_schema)


def write_tiny_wav2vec2(root: Path, revision: str = "main", seed: int = 0) -> Path:
    """The folder of facebook/wav2vec2-base: a tiny pretraining checkpoint with the names of 2021, .bin only.

    The positional convolution holds `weight_g` and `weight_v`; the quantizer is left over; no classifier.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state_dict = Wav2Vec2ForPreTraining(Wav2Vec2Config.from_dict(WAV2VEC2_CONFIG)).state_dict()
    conv = "wav2vec2.encoder.pos_conv_embed.conv"
    for index, name in enumerate(("weight_g", "weight_v")):
        state_dict[f"{conv}.{name}"] = state_dict.pop(f"{conv}.parametrizations.weight.original{index}")
    repo = repo_folder(root / "models" / "facebook" / "wav2vec2-base", revision)
    torch.save(state_dict, repo / "pytorch_model.bin")
    (repo / "config.json").write_text(json.dumps(WAV2VEC2_CONFIG, indent=2))
    (repo / "preprocessor_config.json").write_text(json.dumps(WAV2VEC2_PREPROCESSOR, indent=2))
    return repo


def repo_folder(main: Path, revision: str) -> Path:
    folder = main if revision == "main" else main.with_name(f"{main.name}@{revision}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
