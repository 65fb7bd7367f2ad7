"""Training on from a trained model: what a label learned stays with it, whatever its place."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import CONFIGS, fine_tuned
from safetensors.torch import load_file, save_file
from test_architectures import waveforms
from transformers import AutoModelForAudioClassification

from audiocls.data.collators import Example
from audiocls.model.backbone import LoadedModel
from audiocls.model.files import save_model
from audiocls.model.head import head_for
from audiocls.model.loading import load_for_inference, load_for_training, open_backbone

LABELS = ("down", "left", "up")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(fine_tuned("wav2vec2", LABELS), tmp_path)
    return tmp_path


def train_on(folder: Path, *labels: str, stock: bool = False) -> LoadedModel:
    return load_for_training(open_backbone(str(folder), stock=stock), labels, seed=0)


def last_layer(loaded: LoadedModel) -> tuple[torch.Tensor, torch.Tensor]:
    weights = loaded.model.state_dict()
    layer = "classifier.dense" if "classifier.dense.weight" in weights else "classifier"
    return weights[f"{layer}.weight"], weights[f"{layer}.bias"]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@torch.no_grad()
def logits_of(loaded: LoadedModel) -> torch.Tensor:
    clips = [Example(waveform) for waveform in waveforms(16_000, 16_000)]
    return loaded.model.eval()(**loaded.collator()(clips).inputs)


@pytest.mark.parametrize("stock", [False, True], ids=["", "stock"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_labels_in_another_order_give_transformers_logits_in_that_order(
    architecture: str, stock: bool, tmp_path: Path
) -> None:
    save_model(fine_tuned(architecture, LABELS), tmp_path)
    loaded = train_on(tmp_path, "up", "down", "left", stock=stock)
    theirs = AutoModelForAudioClassification.from_pretrained(tmp_path).eval()
    clips = [Example(waveform) for waveform in waveforms(16_000, 16_000)]
    inputs = load_for_inference(str(tmp_path), stock=True).collator()(clips).inputs
    inputs.pop("lengths", None)  # both are of one length
    with torch.no_grad():
        expected = theirs(**inputs).logits[:, [2, 0, 1]]
    torch.testing.assert_close(logits_of(loaded), expected, rtol=0, atol=1e-6)  # float32 rounding
    before, after = last_layer(load_for_inference(str(tmp_path))), last_layer(loaded)
    assert all(torch.equal(new, old[[2, 0, 1]]) for new, old in zip(after, before, strict=True))
    assert loaded.notes == [f"{tmp_path}: labels whose row of its head is kept: 3; new: 0"]


@pytest.mark.parametrize("stock", [False, True], ids=["", "stock"])
@pytest.mark.parametrize("architecture", ["wav2vec2", "sew", "audio-spectrogram-transformer", "whisper"])
def test_rows_of_new_labels_are_drawn_as_transformers_draws_a_new_head(
    architecture: str, stock: bool, tmp_path: Path
) -> None:
    spread = "init_std" if architecture == "whisper" else "initializer_range"
    save_model(fine_tuned(architecture, LABELS, **{spread: 0.5}), tmp_path)
    trained = load_for_inference(str(tmp_path))
    weight, bias = last_layer(trained)
    bias += torch.tensor([1.0, 2.0, 3.0])  # which are 0 in a model that has not learned anything
    save_model(trained, tmp_path)

    many = [f"new {number}" for number in range(50)]
    new_weight, new_bias = last_layer(loaded := train_on(tmp_path, "up", *many, "down", stock=stock))
    assert torch.equal(new_weight[[0, -1]], weight[[2, 0]]) and new_bias[[0, -1]].tolist() == [3.0, 1.0]
    assert new_weight[1:-1].std() == pytest.approx(0.5, rel=0.1)  # of 1,200 values and more: 2% is usual
    assert not new_bias[1:-1].any()
    assert loaded.notes == [
        f"{tmp_path}: labels whose row of its head is kept: 2; new: 50 (new 0, new 1, new 2 and 47 more); "
        "of its own not trained: 1 (left)"
    ]
    again, _ = last_layer(train_on(tmp_path, "up", *many, "down", stock=stock))
    assert torch.equal(again, new_weight)  # by the seed


def as_shards(folder: Path, model: Any) -> None:
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1


def as_pickle(folder: Path, model: Any) -> None:
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def as_published(folder: Path, model: Any) -> None:
    """With the older names of the weight norm, which only transformers knows."""
    new, tensors = "parametrizations.weight.original", model.state_dict()
    for name in [name for name in tensors if new in name]:
        tensors[name.replace(f"{new}0", "weight_g").replace(f"{new}1", "weight_v")] = tensors.pop(name)
    torch.save(tensors, folder / "pytorch_model.bin")


@pytest.mark.parametrize("stock", [False, True], ids=["", "stock"])
@pytest.mark.parametrize("write", [as_shards, as_pickle, as_published])
def test_rows_are_kept_however_the_weights_are_stored(
    write: Callable[[Path, Any], None], stock: bool, saved: Path
) -> None:
    expected, _ = last_layer(load_for_inference(str(saved)))
    expected = expected.clone()
    model = AutoModelForAudioClassification.from_pretrained(saved)
    (saved / "model.safetensors").unlink()
    write(saved, model)
    weight, _ = last_layer(train_on(saved, "up", "new", "down", stock=stock))
    assert torch.equal(weight[[0, 2]], expected[[2, 0]])


def test_rows_in_half_precision_are_kept_as_they_are_in_float32(saved: Path) -> None:
    AutoModelForAudioClassification.from_pretrained(saved).half().save_pretrained(saved)
    stored = load_file(saved / "model.safetensors")["classifier.weight"]
    for stock in (False, True):
        weight, _ = last_layer(train_on(saved, "up", "new", stock=stock))
        assert weight.dtype == torch.float32 and torch.equal(weight[0], stored[2].float())


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_rows_of_other_problem_types_are_kept(problem_type: str, saved: Path) -> None:
    edit(saved / "config.json", problem_type=problem_type)
    before, after = last_layer(load_for_inference(str(saved))), last_layer(train_on(saved, *LABELS))
    assert all(torch.equal(new, old) for new, old in zip(after, before, strict=True))


def test_labels_are_the_same_in_every_unicode_form_and_with_white_space_around(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "né") for form in ("NFC", "NFD"))
    save_model(fine_tuned("wav2vec2", [f" {decomposed}", "b"]), tmp_path)
    loaded = train_on(tmp_path, "b ", composed)
    weight, _ = last_layer(load_for_inference(str(tmp_path)))
    assert torch.equal(last_layer(loaded)[0], weight[[1, 0]])
    assert loaded.backbone.labels == ("b ", composed)


# A head whose rows are nobody's


def without_head(folder: Path) -> Path:
    """The same model, as a published backbone."""
    headless = folder / "headless"
    headless.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (headless / name).write_bytes((folder / name).read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
    save_file(tensors, headless / "model.safetensors")
    return headless


UNNAMED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "absent": lambda config: config.pop("id2label"),
    "not named": lambda config: config.update(id2label={str(id): f"LABEL_{id}" for id in range(3)}),
    "twice": lambda config: config.update(id2label={"0": "up", "1": "up", "2": "down"}),
    "too few": lambda config: config.update(id2label={"0": "up", "1": "down"}),
    "null": lambda config: config.update(id2label=None),
}


@pytest.mark.parametrize("stock", [False, True], ids=["", "stock"])
@pytest.mark.parametrize("change", UNNAMED.values(), ids=UNNAMED.keys())
def test_without_names_for_its_rows_a_head_is_drawn_as_for_a_backbone_without_one(
    change: Callable[[dict[str, Any]], Any], stock: bool, saved: Path
) -> None:
    config = json.loads((saved / "config.json").read_text())
    change(config)
    (saved / "config.json").write_text(json.dumps(config))
    loaded = train_on(saved, *LABELS, stock=stock)
    assert loaded.notes == [f"{saved}: its head fits no labels that its config.json names: all 3 are new"]
    headless = train_on(without_head(saved), *LABELS, stock=stock)
    assert headless.notes == []
    expected = headless.model.state_dict()
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_the_head_of_another_kind_of_model_is_not_kept(saved: Path) -> None:
    """Of one that labels every frame: it takes the hidden states."""
    weights = load_file(saved / "model.safetensors")
    del weights["projector.weight"], weights["projector.bias"]
    weights["classifier.weight"] = torch.ones(3, 32)
    (saved / "model.safetensors").unlink()
    torch.save(weights, saved / "pytorch_model.bin")
    loaded = train_on(saved, *LABELS)
    assert "all 3 are new" in loaded.notes[0]
    assert last_layer(loaded)[0].shape == (3, 24)


def test_a_backbone_without_a_head_stays_as_it_is_and_nothing_is_said(saved: Path) -> None:
    tensors = {"wav2vec2.masked_spec_embed": torch.ones(2), "lm_head.weight": torch.ones(4, 2)}
    assert head_for(LABELS, LABELS, tensors, open_backbone(str(saved)).config) == (tensors, None)
    assert train_on(without_head(saved), *LABELS).notes == []
    assert load_for_training(open_backbone("tiny"), LABELS, seed=0).notes == []


def test_half_a_head_is_none(saved: Path) -> None:
    config, bias = open_backbone(str(saved)).config, {"classifier.bias": torch.ones(3)}
    tensors, note = head_for(LABELS, LABELS, bias, config)
    assert tensors == {} and note is not None
    for odd in (torch.ones(()), torch.ones(3), torch.ones(3, 24, 1), torch.ones(0, 24)):
        assert head_for(LABELS, LABELS, bias | {"classifier.weight": odd}, config)[0] == {}


def test_what_was_learned_is_there_from_the_first_step_on(saved: Path) -> None:
    """The same clips, the classes in another order: the loss is that of the model they were learned by."""
    before, after = load_for_inference(str(saved)), train_on(saved, "up", "left", "down")
    by_name = [dict(zip(one.backbone.labels, logits_of(one).T, strict=True)) for one in (before, after)]
    for label in LABELS:
        np.testing.assert_array_equal(*(logits[label].numpy() for logits in by_name))
