"""A spectrogram model whose window is cut is transformers' own of that size, with the first positions."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from architectures import CONFIGS, save_backbone
from data_helpers import noise, run_script
from safetensors.torch import load_file, save_file
from test_architectures import LABELS, spread_logits, waveforms
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
    pipeline,
)

from audiocls.data.augment import Augmentation
from audiocls.data.collators import Example
from audiocls.data.prepare import RunData
from audiocls.inference.classifier import Classifier
from audiocls.model.backbone import Backbone, LoadedModel
from audiocls.model.files import save_model
from audiocls.model.loading import check_config, load_for_inference, load_for_training, open_backbone
from audiocls.model.window import cut_window
from audiocls.training.rules import fit_window

AST = "audio-spectrogram-transformer"
SECONDS = {"whisper": 0.6, AST: 0.5}  # to which windows of 2 s and of 1.3 s are cut below
RATE = 16_000


@pytest.fixture(params=SECONDS)
def published(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """An architecture of a fixed window, and a folder with a backbone of it whose positions all differ."""
    torch.manual_seed(0)
    save_backbone(request.param, tmp_path / "published")
    weights = tmp_path / "published" / "model.safetensors"
    tensors = load_file(weights)
    for name, tensor in tensors.items():
        if "position" in name:
            tensor.normal_()
    save_file(tensors, weights, {"format": "pt"})
    return request.param, tmp_path / "published"


def cut(name: str, folder: Path) -> Backbone:
    return cut_window(open_backbone(str(folder)), SECONDS[name])


def positions_of(tensors: dict[str, torch.Tensor]) -> tuple[str, torch.Tensor]:
    """The one tensor of position embeddings of an encoder, with its name."""
    (name,) = (name for name in tensors if "position" in name and "decoder" not in name)
    return name, tensors[name]


@torch.no_grad()
def logits_of(loaded: LoadedModel) -> torch.Tensor:
    clips = [Example(waveform) for waveform in waveforms(8_000, 16_000, 5_000)]
    return loaded.model.eval()(**loaded.collator()(clips).inputs)


# What is cut


@pytest.mark.parametrize(
    ("seconds", "whole"),
    [(0.01, 1), (1, 1), (1.00001, 1), (1.001, 2), (2, 2), (28.5, 29), (29.1, 30), (60, 30)],
)
def test_a_whisper_takes_whole_seconds(seconds: float, whole: int) -> None:
    published = Backbone("x", None, WhisperConfig(), WhisperFeatureExtractor())
    backbone = cut_window(published, seconds)
    assert (backbone is published) == (whole == 30)
    assert backbone.config.max_source_positions == 50 * whole
    assert backbone.max_samples == whole * RATE
    made = backbone.feature_extractor(np.zeros(RATE, np.float32), sampling_rate=RATE)["input_features"]
    assert np.shape(made) == (1, 80, 100 * whole)
    assert backbone.feature_extractor.to_dict() == WhisperFeatureExtractor(chunk_length=whole).to_dict()
    check_config(backbone)
    assert published.config.max_source_positions == 1_500  # and not changed
    assert published.feature_extractor.n_samples == 30 * RATE


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [
        (0.001, 16),  # one patch of 16 frames
        (0.175, 16),  # which span 25 ms and 15 hops of 10 ms
        (0.176, 26),
        (1, 106),  # 99 frames, and up to the end of the tenth patch
        (10.175, 1_016),
        (10.18, 1_024),  # the published window
        (20, 1_024),
    ],
)
def test_an_ast_takes_whole_patches(seconds: float, frames: int) -> None:
    published = Backbone("x", None, ASTConfig(), ASTFeatureExtractor())
    backbone = cut_window(published, seconds)
    assert (backbone is published) == (frames == 1_024)
    assert backbone.config.max_length == backbone.feature_extractor.max_length == frames
    assert backbone.max_samples is not None
    if seconds < 10:
        assert backbone.max_samples >= seconds * RATE
    assert backbone.min_samples == 400
    check_config(backbone)
    assert published.config.max_length == published.feature_extractor.max_length == 1_024


@pytest.mark.parametrize(("patch", "stride"), [(16, 16), (8, 3), (4, 6), (1, 1)])
def test_patches_of_other_sizes_end_with_the_window_and_cover_the_clip(patch: int, stride: int) -> None:
    config = ASTConfig(patch_size=patch, time_stride=stride, max_length=200)
    published = Backbone("x", None, config, ASTFeatureExtractor(max_length=200))
    backbone = cut_window(published, 1)
    frames = backbone.config.max_length
    assert (frames - patch) % stride == 0
    assert 99 <= frames < 99 + stride


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_model_whose_window_is_no_longer_or_that_has_none_is_the_same_object(
    architecture: str, tmp_path: Path
) -> None:
    save_backbone(architecture, tmp_path)
    backbone = open_backbone(str(tmp_path))
    assert cut_window(backbone, 2) is backbone
    has_window = architecture in SECONDS
    assert (cut_window(backbone, 0.5) is backbone) != has_window
    again = cut_window(backbone, 0.5)
    assert cut_window(again, 0.5) is again


def test_a_hop_without_a_whole_number_of_positions_and_a_patch_that_is_no_number_are_left_alone() -> None:
    for hop, positions in ((320, 25), (100, 80), (640, None)):  # of 1 s: 50, 160 and 25 frames
        extractor = WhisperFeatureExtractor(hop_length=hop, chunk_length=2)
        config = WhisperConfig(max_source_positions=extractor.nb_max_frames // 2)
        published = Backbone("x", None, config, extractor)
        backbone = cut_window(published, 1)
        assert (backbone is published) == (positions is None)
        assert backbone.config.max_source_positions == positions or positions is None
        check_config(backbone)
    published = Backbone("x", None, ASTConfig(patch_size=[16, 16]), ASTFeatureExtractor())
    assert cut_window(published, 1) is published


# The weights


def test_hidden_states_are_those_of_transformers_model_of_that_size_with_the_first_positions(
    published: tuple[str, Path],
) -> None:
    name, folder = published
    loaded = load_for_training(cut(name, folder), LABELS, seed=0)
    spectrograms = loaded.collator()([Example(waveform) for waveform in waveforms(8_000, 5_000)]).inputs
    if name == "whisper":
        long = WhisperModel.from_pretrained(folder).encoder
        short = WhisperModel(WhisperConfig(**CONFIGS[name] | {"max_source_positions": 50})).encoder
        tensors = long.state_dict()
        tensors["embed_positions.weight"] = tensors["embed_positions.weight"][:50]
        short.load_state_dict(tensors)
        ours = loaded.model.model.encoder
    else:
        long = ASTModel.from_pretrained(folder)
        short = ASTModel(ASTConfig(**CONFIGS[name] | {"max_length": 56}))
        tensors = long.state_dict()
        # Of patches of 16 by 16 bins, 10 apart: 2 rows of frequencies, 12 in time, of which 5 are kept.
        old = tensors["embeddings.position_embeddings"]
        kept = [0, 1, *range(2, 2 + 5), *range(2 + 12, 2 + 12 + 5)]
        assert old.shape[1] == 2 + 2 * 12
        tensors["embeddings.position_embeddings"] = old[:, kept]
        short.load_state_dict(tensors)
        ours = loaded.model.model.audio_spectrogram_transformer
    with torch.no_grad():
        expected = short.eval()(**spectrograms).last_hidden_state
        assert torch.equal(ours.eval()(**spectrograms).last_hidden_state, expected)


@torch.no_grad()
def test_a_patch_of_an_ast_has_the_position_it_had_in_the_longer_window(tmp_path: Path) -> None:
    """transformers' embeddings of the longer window, without the patches of the frames beyond the shorter."""
    save_backbone(AST, tmp_path)
    long = AutoModelForAudioClassification.from_pretrained(tmp_path).audio_spectrogram_transformer.embeddings
    long.position_embeddings.normal_()
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[positions_of(tensors)[0]] = long.position_embeddings.clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    short = load_for_training(cut(AST, tmp_path), LABELS, seed=0).model.model
    spectrogram = torch.randn(1, 128, 32)
    whole = long(spectrogram)
    in_time = whole[:, 2:].unflatten(1, (2, 12))[:, :, :5].flatten(1, 2)
    expected = torch.cat((whole[:, :2], in_time), 1)
    found = short.audio_spectrogram_transformer.embeddings(spectrogram[:, :56])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # convolutions of other sizes round


@pytest.mark.parametrize("half", [False, True], ids=["", "float16"])
def test_all_other_weights_are_the_published_and_none_of_the_encoder_is_drawn(
    half: bool, published: tuple[str, Path]
) -> None:
    name, folder = published
    weights = folder / "model.safetensors"
    if half:
        save_file({key: t.half() for key, t in load_file(weights).items()}, weights, {"format": "pt"})
    loaded, other = (load_for_training(cut(name, folder), LABELS, seed=seed) for seed in (0, 1))
    whole = load_for_training(open_backbone(str(folder)), LABELS, seed=0)
    state, another, uncut = (one.model.state_dict() for one in (loaded, other, whole))
    (positions,) = (key for key in uncut if state[key].shape != uncut[key].shape)
    assert positions == positions_of(load_file(weights))[0]
    assert torch.equal(uncut[positions], load_file(weights)[positions].float())
    assert state[positions].dtype == torch.float32 and state[positions].is_contiguous()
    for key, tensor in uncut.items():
        is_head = key.startswith(("projector.", "classifier."))
        assert key == positions or is_head or torch.equal(state[key], tensor)
        assert is_head or torch.equal(state[key], another[key])  # not drawn
    assert state.keys() == uncut.keys()
    assert loaded.notes == []


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_whisper_that_was_published_with_its_decoder_is_cut_and_the_decoder_is_not(
    prefix: str, tmp_path: Path
) -> None:
    save_backbone("whisper", tmp_path)
    tensors = WhisperModel(WhisperConfig(**CONFIGS["whisper"])).state_dict()
    tensors = {f"{prefix}{key}": tensor.clone() for key, tensor in tensors.items()}
    tensors[f"{prefix}encoder.embed_positions.weight"].normal_()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = load_for_training(cut("whisper", tmp_path), LABELS, seed=0)
    found = loaded.model.state_dict()["encoder.embed_positions.weight"]
    assert torch.equal(found, tensors[f"{prefix}encoder.embed_positions.weight"][:50])
    assert len(loaded.notes) == 1 and "decoder" in loaded.notes[0]


# Saved


def test_saved_it_has_identical_logits_scores_as_the_pipeline_and_is_transformers_model(
    published: tuple[str, Path], tmp_path: Path
) -> None:
    name, folder = published
    loaded = load_for_training(cut(name, folder), LABELS, seed=0)
    spread_logits(loaded)
    save_model(loaded, tmp_path / "saved")
    again = load_for_inference(str(tmp_path / "saved"))
    extractors = [one.backbone.feature_extractor.to_dict() for one in (loaded, again)]
    assert extractors[0] == extractors[1]
    assert again.backbone.max_samples == loaded.backbone.max_samples
    logits = logits_of(again)
    assert torch.equal(logits, logits_of(loaded))

    theirs = AutoModelForAudioClassification.from_pretrained(tmp_path / "saved").eval()
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "saved")
    inputs = extractor(waveforms(8_000, 16_000, 5_000), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(theirs(**inputs).logits, logits, rtol=0, atol=1e-6)

    recordings = waveforms(16_000, again.backbone.min_samples, 5_000, 40_000)
    ours = Classifier(again, torch.device("cpu"))(recordings, sampling_rate=RATE, batch_size=3)
    transformers_own = pipeline("audio-classification", model=str(tmp_path / "saved"))
    for recording, prediction in zip(recordings, ours, strict=True):
        expected = transformers_own({"raw": recording, "sampling_rate": RATE}, top_k=3)
        assert [label for label, _ in prediction.scores] == [one["label"] for one in expected]
        # 1e-5: sums over a batch of another size round differently.
        scores = [score for _, score in prediction.scores]
        assert scores == pytest.approx([one["score"] for one in expected], abs=1e-5)


def test_it_is_cut_again_and_keeps_its_head(published: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = published
    first = load_for_training(cut_window(open_backbone(str(folder)), 1), LABELS, seed=0)
    save_model(first, tmp_path / "saved")
    backbone = open_backbone(str(tmp_path / "saved"))
    assert cut_window(backbone, 1) is backbone
    same = load_for_training(backbone, LABELS, seed=1)
    assert torch.equal(logits_of(same), logits_of(first))
    if name == AST:  # Whisper's is 1 s already
        twice = load_for_training(cut_window(backbone, 0.5), LABELS, seed=1)
        once = load_for_training(cut_window(open_backbone(str(folder)), 0.5), LABELS, seed=0)
        _, expected = positions_of(once.model.state_dict())
        assert torch.equal(positions_of(twice.model.state_dict())[1], expected)
        assert "labels whose row of its head is kept: 3" in twice.notes[0]


def test_infer_says_what_the_shorter_window_leaves_out(published: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = published
    save_model(load_for_training(cut(name, folder), LABELS, seed=0), tmp_path / "saved")
    path = tmp_path / "long.wav"
    soundfile.write(path, noise(2 * RATE), RATE)
    done = run_script("infer.py", str(tmp_path / "saved"), str(path), "--device", "cpu")
    window = "1" if name == "whisper" else "0.6"
    assert done.returncode == 0
    assert f"longer than the model's window: only the first {window} s of 2 s are used" in done.stderr


def test_training_needs_only_the_shorter_spectrograms(published: tuple[str, Path]) -> None:
    name, folder = published
    loaded = load_for_training(cut(name, folder), LABELS, seed=0)
    batch = loaded.training_collator(0)([Example(waveform) for waveform in waveforms(400, 40_000)])
    (spectrograms,) = batch.inputs.values()
    assert spectrograms.shape == ((2, 16, 100) if name == "whisper" else (2, 56, 32))
    torch.nn.functional.cross_entropy(loaded.model.train()(**batch.inputs), batch.labels).backward()
    assert all(parameter.grad is not None for parameter in loaded.model.parameters())


def test_the_rule_cuts_the_window_to_what_nearly_all_clips_need_and_says_so(
    run_data: Callable[..., RunData], tmp_path: Path
) -> None:
    data = run_data(12)
    lengths = np.full(len(data.train.decoded.clips), 9_600)  # 0.6 s
    lengths[data.train.rows[0]] = 30_000
    decoded = dataclasses.replace(data.train.decoded, num_samples=lengths)
    many = np.repeat(data.train.rows, 100)[99:]  # one long clip in 1,101
    train = dataclasses.replace(data.train, waveforms=decoded, rows=many, labels=np.zeros(len(many), int))
    data = dataclasses.replace(data, train=train, notes=[])
    save_backbone("whisper", tmp_path)
    fitted, noted = fit_window(open_backbone(str(tmp_path)), data)
    assert fitted.max_samples == 16_000
    (note,) = noted.notes
    assert "from 2 to 1 s, the length of 99% of the clips; the ends of 1 of " in note
    assert fit_window(fitted, noted) == (fitted, noted)
    # As long as augmentation can make them: 1.05 s becomes 1.17 s.
    slower = Augmentation(("speed",), 0, 16_000, 400)
    lengths[:] = 15_000
    train = dataclasses.replace(train, augment=slower)
    longer = dataclasses.replace(data, train=train)
    assert fit_window(open_backbone(str(tmp_path)), longer)[0].max_samples == 32_000
