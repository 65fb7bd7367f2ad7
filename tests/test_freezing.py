"""A frozen encoder: only the head learns, from features computed once, and what is saved is a whole model."""

import dataclasses
import shutil
from pathlib import Path

import architectures
import numpy as np
import pytest
import torch
from architectures import CONFIGS
from conftest import Lab, Run, save_backbone
from data_helpers import ROOT, run_script
from safetensors.torch import load_file
from torch import Tensor
from transformers import pipeline

from audiocls.config import TrainConfig
from audiocls.data.collators import Example
from audiocls.data.prepare import RunData
from audiocls.model.backbone import LoadedModel
from audiocls.model.freezing import freeze, with_layer_sum
from audiocls.model.loading import LEARNED_HERE, load_for_inference, load_for_training, open_backbone
from audiocls.training import rules
from audiocls.training.features import cache_features

CPU = torch.device("cpu")
SETTINGS = {"batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 6, "learning_rate": 1e-2}


def frozen(folder: Path, data: RunData, *, seed: int = 0, stock: bool = False) -> LoadedModel:
    """The model in `folder`, with all but its head frozen, as train.py loads it."""
    backbone = with_layer_sum(open_backbone(str(folder), stock=stock))
    loaded = load_for_training(backbone, data.labels, seed=seed)
    freeze(loaded, "encoder")
    return loaded


def trained(lab: Lab, loaded: LoadedModel, data: RunData, name: str = "run", **settings: object) -> Run:
    loaded, featured = cache_features(loaded, data, "pooled", lab.folder / "cache", CPU)
    return lab.train(name, loaded, featured, with_finish=True, **SETTINGS | settings)


def assert_scores_as_transformers(folder: Path, data: RunData) -> None:
    """The model saved in `folder` has the pipeline's logits, from clips and from their features."""
    theirs = pipeline("audio-classification", model=str(folder))
    loaded = load_for_inference(str(folder))
    expected, ours, from_features = [], [], []
    with torch.no_grad():
        for index in range(len(data.evaluation)):
            example = data.evaluation[index]
            sound = {"raw": example.values.copy(), "sampling_rate": loaded.backbone.sampling_rate}
            scores = theirs(sound, top_k=None, function_to_apply="none")
            expected.append(torch.tensor([[s["score"] for s in sorted(scores, key=lambda s: s["label"])]]))
            inputs = loaded.collator()([example]).inputs
            ours.append(loaded.model(**inputs))
            from_features.append(loaded.model(pooled=loaded.model.pooled_states(**inputs)))
    for logits in (torch.cat(ours), torch.cat(from_features)):
        assert (logits - torch.cat(expected)).abs().max() <= 1e-5 * torch.cat(expected).std()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_only_the_head_is_trained_and_the_saved_model_is_transformers_own(
    architecture: str, lab: Lab
) -> None:
    torch.manual_seed(0)
    architectures.save_backbone(architecture, lab.folder / "backbone")
    data = lab.data(9, samples=(800, 4_000))
    before = frozen(lab.folder / "backbone", data).model.state_dict()
    run = trained(lab, frozen(lab.folder / "backbone", data), data)
    after = run.weights
    head = {name for name in after if name.startswith(LEARNED_HERE)}
    assert {name for name in after if not torch.equal(after[name], before[name])} == head
    assert ("layer_weights" in head) == (architecture != "audio-spectrogram-transformer")
    assert_scores_as_transformers(run.folder / "best", data)


@pytest.mark.parametrize("stock", [False, True], ids=["audiocls", "transformers"])
@pytest.mark.parametrize("was_weighted", [False, True], ids=["plain before", "weighted before"])
def test_a_trained_model_goes_on_with_its_head(was_weighted: bool, stock: bool, lab: Lab) -> None:
    data = lab.data(9, samples=(800, 4_000))
    backbone = save_backbone(lab.folder / "backbone", use_weighted_layer_sum=was_weighted)
    first = load_for_training(open_backbone(str(backbone)), data.labels, seed=0)
    best = lab.train("first", first, data, **SETTINGS).folder / "best"
    before = load_file(best / "model.safetensors")
    loaded = frozen(best, data, stock=stock)
    there = loaded.model.state_dict()
    equal = torch.full_like(there["layer_weights"], 1 / 3)
    assert torch.equal(there["layer_weights"], before.get("layer_weights", equal))
    assert torch.equal(there["projector.weight"], before["projector.weight"])
    assert torch.equal(there["classifier.weight"], before["classifier.weight"])
    run = trained(lab, loaded, data)
    assert_scores_as_transformers(run.folder / "best", data)


def test_features_follow_from_the_clip_and_the_frozen_weights_alone(lab: Lab) -> None:
    data = lab.data(9, samples=(800, 4_000))
    folder = save_backbone(lab.folder / "backbone", hidden_dropout=0.5, mask_time_prob=0.5)
    loaded = frozen(folder, data)
    loaded.model.train()
    fewer = dataclasses.replace(data, train=dataclasses.replace(data.train, rows=data.train.rows[3:]))
    _, all_of_them = cache_features(loaded, data, "pooled", lab.folder / "cache", CPU)
    _, some = cache_features(loaded, fewer, "pooled", lab.folder / "other", CPU)
    for row in some.train.rows:
        pooled = some.train.waveforms[row]
        assert (pooled.dtype, pooled.shape) == (np.float32, (3, 32))
        np.testing.assert_array_equal(pooled, all_of_them.train.waveforms[row])
        inputs = loaded.collator()([Example(data.train.waveforms[row])]).inputs
        states: list[Tensor] = []
        with torch.no_grad():
            loaded.model.encoder(**inputs, states=states)
        # 1e-5: the mean of each state by itself rounds differently.
        np.testing.assert_allclose(pooled, [state[0].mean(0).numpy() for state in states], atol=1e-5)


def test_another_head_finds_the_features_and_other_weights_do_not(lab: Lab) -> None:
    data = lab.data(9)
    folder = save_backbone(lab.folder / "backbone")
    for seed, change in ((0, 0.0), (1, 0.0), (1, 0.1)):
        loaded = frozen(folder, data, seed=seed)
        with torch.no_grad():
            next(loaded.model.encoder.parameters()).add_(change)
        cache_features(loaded, data, "pooled", lab.folder / "cache", CPU)
    assert len(list((lab.folder / "cache" / "features").iterdir())) == 2


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    flags = "--demo --freeze encoder --device cpu --max-steps 6 --checkpoint-every 3 --eval-every 6".split()
    train = (str(ROOT / "train.py"), *flags, "--output-dir", "run")
    last = tmp_path / "run" / "checkpoints" / "step-00000006" / "model.safetensors"
    for more in ((), ("--resume",)):
        done = run_script(*train, *more, cwd=tmp_path, timeout=120)
        assert done.returncode == 0, done.stderr
        weights = load_file(last)
        if not more:
            whole = weights
            shutil.rmtree(last.parent)
    assert all(torch.equal(weights[name], whole[name]) for name in whole)


def test_auto_freezes_the_convolutions_of_a_pretrained_model_of_waveforms(lab: Lab, tmp_path: Path) -> None:
    data = lab.data(8)
    waveforms, spectrogram = tmp_path / "waveforms", tmp_path / "spectrogram"
    save_backbone(waveforms)
    architectures.save_backbone("whisper", spectrogram)
    for name, meant in ((waveforms, "feature-encoder"), (spectrogram, "nothing"), ("tiny", "nothing")):
        backbone = open_backbone(str(name))
        assert rules.freeze(TrainConfig(), data, backbone) == meant
