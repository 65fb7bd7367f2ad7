"""Padding changes no result: for every architecture, in evaluation and in training, gradients included."""

from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import CONFIGS, save_backbone
from test_architectures import LABELS, spread_logits, waveforms
from torch.nn import functional as F

from audiocls.data.collators import Example
from audiocls.model.backbone import LoadedModel
from audiocls.model.loading import load_for_training, open_backbone
from audiocls.model.settings import ARCHITECTURES

OTHERS = ("wav2vec2-bert", "audio-spectrogram-transformer", "whisper")
NEUTRAL = [name for name in CONFIGS if CONFIGS[name].get("model_type", name) in {*ARCHITECTURES, *OTHERS}]
EXACT = {  # nothing random, under each architecture's name for it
    **dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"), 0.0),
    **dict.fromkeys(("dropout", "conformer_conv_dropout", "final_dropout", "hidden_dropout_prob"), 0.0),
    **dict.fromkeys(("attention_probs_dropout_prob", "layerdrop", "encoder_layerdrop"), 0.0),
    **dict.fromkeys(("mask_time_prob", "mask_feature_prob"), 0.0),
}
LENGTHS = (16_000, 1_000, 5_000, 11_111, 720)


@pytest.fixture
def load(tmp_path: Path) -> object:
    def make(name: str, exact: bool = False) -> LoadedModel:
        torch.manual_seed(0)
        save_backbone(name, tmp_path / name, EXACT if exact else {})
        loaded = load_for_training(open_backbone(str(tmp_path / name)), LABELS, seed=0)
        spread_logits(loaded)
        return loaded

    return make


def logits_of(loaded: LoadedModel, recordings: list[np.ndarray]) -> torch.Tensor:
    batch = loaded.collator()([Example(recording, index % 3) for index, recording in enumerate(recordings)])
    return loaded.model(**batch.inputs)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_clip_in_a_padded_batch_gives_what_it_gives_alone_where_it_is_said_to(name: str, load) -> None:
    loaded = load(name)
    recordings = waveforms(*LENGTHS)
    alone = torch.cat([logits_of(loaded, [recording]) for recording in recordings])
    padded = logits_of(loaded, recordings)
    difference = (alone - padded).abs().max().item()
    assert loaded.padding_invariant == (name in NEUTRAL)
    if name in NEUTRAL:
        assert difference < 2e-5  # the logits' spread is 1
    else:
        assert difference > 0.01  # if this fails, the architecture can be batched after all


@pytest.mark.parametrize("name", NEUTRAL)
def test_gradients_of_a_padded_batch_are_those_of_its_clips(name: str, load) -> None:
    loaded = load(name, exact=True)
    model = loaded.model.train()
    recordings = waveforms(*LENGTHS)
    labels = torch.arange(len(recordings)) % 3

    def gradients(batches: list[list[int]]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        for rows in batches:
            logits = logits_of(loaded, [recordings[row] for row in rows])
            F.cross_entropy(logits, labels[rows], reduction="sum").backward()
        return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    together, one_by_one = gradients([[0, 1, 2, 3, 4]]), gradients([[0], [1], [2], [3], [4]])
    assert together.keys() == one_by_one.keys()
    scale = max(gradient.abs().max().item() for gradient in one_by_one.values())
    for key, gradient in one_by_one.items():
        # Sums of float32 over thousands of frames, relative to the largest gradient.
        torch.testing.assert_close(together[key], gradient, atol=2e-5 * scale, rtol=0, msg=key)
