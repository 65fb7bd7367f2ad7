"""Every architecture of AutoModelForAudioClassification trains, is saved, and scores as the pipeline does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import CONFIGS, fine_tuned, save_backbone
from safetensors.torch import load_file, save_file
from transformers import pipeline

from audiocls.data.collators import Example
from audiocls.errors import UserError
from audiocls.inference.classifier import Classifier
from audiocls.model.backbone import LoadedModel
from audiocls.model.files import save_model
from audiocls.model.freezing import check_can_freeze, freeze
from audiocls.model.loading import load_for_inference, load_for_training, open_backbone
from audiocls.training.optim import seed_everything

LABELS = ["down", "left", "up"]
HAVE_NO_FEATURE_ENCODER = ("wav2vec2-bert", "audio-spectrogram-transformer", "whisper")


@pytest.fixture(scope="module", params=CONFIGS)
def architecture(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Its name, and a folder with a backbone that has no head."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    save_backbone(request.param, folder)
    return request.param, folder


def waveforms(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(length).astype(np.float32) for length in lengths]


def test_trains_on_clips_down_to_the_shortest_it_can_hear(architecture: tuple[str, Path]) -> None:
    _, folder = architecture
    loaded = load_for_training(open_backbone(str(folder)), LABELS, seed=0)
    model = loaded.model.train()
    collate = loaded.training_collator(0)
    shortest = loaded.backbone.min_samples
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for lengths in ((shortest,), (shortest, shortest + 1), (16_000, 5_000, 11_111)):
        batch = collate([Example(waveform) for waveform in waveforms(*lengths)])
        logits = model(**batch.inputs)
        assert logits.shape == (len(lengths), len(LABELS))
        assert torch.isfinite(logits).all()
        torch.nn.functional.cross_entropy(logits, batch.labels).backward()
    optimizer.step()
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    # Layer drop may skip a layer, and Whisper's positions are fixed: most is enough to see it learn.
    assert len(changed) > 0.7 * len(before)


def test_saved_model_scores_as_the_pipeline_whatever_shares_its_batch(
    architecture: tuple[str, Path], tmp_path: Path
) -> None:
    _, folder = architecture
    loaded = load_for_training(open_backbone(str(folder)), LABELS, seed=0)
    spread_logits(loaded)
    save_model(loaded, tmp_path)
    # So that what is saved can be taken back into the model: to go on, or to score the test set.
    assert set(load_file(tmp_path / "model.safetensors")) == set(loaded.model.state_dict())
    recordings = waveforms(16_000, loaded.backbone.min_samples, 5_000, 5_000, 16_000, 23_456)
    ours = Classifier(load_for_inference(str(tmp_path)), torch.device("cpu"))(
        recordings, sampling_rate=16_000, top_k=2, batch_size=3
    )
    theirs = pipeline("audio-classification", model=str(tmp_path))
    for recording, prediction in zip(recordings, ours, strict=True):
        expected = theirs({"raw": recording, "sampling_rate": 16_000}, top_k=2)
        assert [label for label, _ in prediction.scores] == [one["label"] for one in expected]
        # 1e-5: sums over a batch of another size round differently.
        scores = [score for _, score in prediction.scores]
        assert scores == pytest.approx([one["score"] for one in expected], abs=1e-5)


def test_activations_can_be_computed_again_with_the_same_gradients(architecture: tuple[str, Path]) -> None:
    _, folder = architecture
    loaded = load_for_training(open_backbone(str(folder)), LABELS, seed=0)
    model = loaded.model.train()
    examples = [Example(waveform, label) for label, waveform in enumerate(waveforms(16_000, 12_000))]
    batch = loaded.collator()(examples)
    found = []
    for recomputes in (False, True):
        if recomputes:
            model.recompute_activations()
        seed_everything(0, 0, 0, torch.device("cpu"))
        model(**batch.inputs).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        model.zero_grad()
    kept, again = found
    assert (again - kept).norm() <= 1e-5 * kept.norm() > 0


def test_freezing_the_feature_encoder_is_refused_where_there_is_none(architecture: tuple[str, Path]) -> None:
    name, folder = architecture
    loaded = load_for_training(open_backbone(str(folder)), LABELS, seed=0)
    if name in HAVE_NO_FEATURE_ENCODER:
        with pytest.raises(UserError, match="no convolutional encoder"):
            check_can_freeze(loaded.backbone, "feature-encoder")
    else:
        check_can_freeze(loaded.backbone, "feature-encoder")
        freeze(loaded, "feature-encoder")
        frozen = [key for key, p in loaded.model.named_parameters() if not p.requires_grad]
        assert any(".feature_extractor.conv_layers.0." in key for key in frozen)


def test_half_precision_weights_train_in_float32_and_checkpointing_is_taken_out(
    architecture: tuple[str, Path], tmp_path: Path
) -> None:
    _, folder = architecture
    save_model(load_for_training(open_backbone(str(folder)), LABELS, seed=0), tmp_path)
    weights = tmp_path / "model.safetensors"
    halved = {key: t.half() if t.is_floating_point() else t for key, t in load_file(weights).items()}
    save_file(halved, weights, {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"gradient_checkpointing": True}))

    again = load_for_training(open_backbone(str(tmp_path)), LABELS, seed=0)
    assert {p.dtype for p in again.model.parameters()} == {torch.float32}
    assert not any(getattr(module, "gradient_checkpointing", False) for module in again.model.modules())
    save_model(again, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "gradient_checkpointing" not in config
    assert config["dtype"] == "float32"
    saved = load_file(tmp_path / "out" / "model.safetensors").values()
    assert {tensor.dtype for tensor in saved if tensor.is_floating_point()} == {torch.float32}


def spread_logits(loaded: LoadedModel) -> None:
    """Scale the classifier until its logits differ by about 1: else any two outputs are alike."""
    model = loaded.model.eval()
    batch = loaded.collator()([Example(waveform) for waveform in waveforms(16_000, 16_000, 16_000, 16_000)])
    classifier = getattr(model, "model", model).classifier
    head = getattr(classifier, "dense", classifier)
    with torch.no_grad():
        logits = model(**batch.inputs)
        head.weight /= logits.std()
        head.bias /= logits.std()


def classifier_of(name: str) -> Classifier:
    """A Classifier of that architecture, of random weights, whose scores differ."""
    loaded = fine_tuned(name, LABELS)
    spread_logits(loaded)
    return Classifier(loaded, torch.device("cpu"))
