"""The plain-torch Wav2Vec2: transformers' logits from transformers' files, or transformers itself."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

from audiocls.model.backbone import TINY, load_for_inference
from audiocls.model.padding import make_padding_invariant
from audiocls.model.wav2vec2 import Wav2Vec2, read_saved

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": (32,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 32,
}
LARGE_LIKE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
CONFIGS = {
    "base-like": SMALL,
    "large-like": SMALL | LARGE_LIKE,
    "weighted sum": SMALL | {"use_weighted_layer_sum": True},
    "large-like, weighted sum": SMALL | LARGE_LIKE | {"use_weighted_layer_sum": True},
    "odd positions": SMALL | {"num_conv_pos_embeddings": 15},
    "tiny": TINY,
}


def save(folder: Path, settings: dict[str, Any] = SMALL) -> Any:
    torch.manual_seed(0)
    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**settings, num_labels=5)).eval()
    for parameter in model.parameters():  # so that norms and biases count too
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return model


@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_are_those_of_transformers_padded_and_not(settings: dict[str, Any], tmp_path: Path) -> None:
    theirs: Any = save(tmp_path, settings)
    saved = read_saved(tmp_path)
    assert saved is not None
    ours, _ = saved
    make_padding_invariant(theirs)
    make_padding_invariant(ours)
    lengths = torch.tensor([5_000, 900, 8_000])
    mask = (torch.arange(8_000) < lengths[:, None]).long()
    input_values = torch.randn(3, 8_000) * mask
    with torch.inference_mode():
        assert theirs(input_values).logits.std() > 0.01
        torch.testing.assert_close(
            ours(input_values).logits, theirs(input_values).logits, rtol=0, atol=1e-6
        )  # float32 rounding
        padded = ours(input_values, attention_mask=mask).logits
        torch.testing.assert_close(
            padded, theirs(input_values, attention_mask=mask).logits, rtol=0, atol=1e-6
        )
        for row, length in enumerate(lengths):
            alone = ours(input_values[row : row + 1, :length]).logits[0]
            torch.testing.assert_close(padded[row], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_kept_in_half_precision_are_computed_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs: Any = save(tmp_path)
    theirs.to(dtype).save_pretrained(tmp_path)
    theirs.float()
    input_values = torch.randn(1, 8_000)
    with torch.inference_mode():
        ours = load_for_inference(str(tmp_path)).model(input_values).logits
        torch.testing.assert_close(ours, theirs(input_values).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["HubertForSequenceClassification"]},
        {"hidden_act": "gelu_new"},
        {"adapter_attn_dim": 8},
        {"conv_dim": [32] * 6},
        {"hidden_size": 32},
        {"id2label": None},
    ],
    ids=str,
)
def test_what_it_does_not_know_is_left_to_transformers(change: dict[str, Any], tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert read_saved(tmp_path) is None


def test_a_missing_or_broken_file_is_left_to_transformers(tmp_path: Path) -> None:
    assert read_saved(tmp_path / "nothing") is None
    save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    assert read_saved(tmp_path) is None


def test_a_saved_wav2vec2_is_classified_with_without_transformers(tmp_path: Path) -> None:
    save(tmp_path)
    assert isinstance(load_for_inference(str(tmp_path)).model, Wav2Vec2)
    program = (
        "import sys; from audiocls import Classifier; import numpy as np\n"
        f"classifier = Classifier.from_pretrained({str(tmp_path)!r}, device='cpu')\n"
        "print(classifier(np.random.randn(16_000).astype('float32'), sampling_rate=16_000)[0].label)\n"
        "print([name for name in ('transformers', 'datasets', 'torchaudio') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[1] == "[]"
