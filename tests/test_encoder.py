"""The forward pass: transformers' logits and gradients from its weights, whatever is padded beside a clip."""

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import CONFIGS, WAVEFORM, save_backbone
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForAudioClassification, Wav2Vec2FeatureExtractor

from audiocls.data.collators import Example
from audiocls.errors import UserError
from audiocls.model import encoder, kernels
from audiocls.model.encoder import SpeechClassifier
from audiocls.model.files import save_model
from audiocls.model.freezing import check_can_freeze
from audiocls.model.loading import load_for_inference, load_for_training, open_backbone
from audiocls.model.settings import ARCHITECTURES, TINY, EncoderConfig
from audiocls.model.stock import padding_changes_nothing

LARGE_LIKE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "base-like": {},
    "large-like": LARGE_LIKE,
    "stable, group norm": {"do_stable_layer_norm": True},
    "weighted sum": {"use_weighted_layer_sum": True},
    "large-like, weighted sum": LARGE_LIKE | {"use_weighted_layer_sum": True},
}
CASES: dict[str, dict[str, Any]] = {
    f"{kind}, {name}": {"model_type": kind} | WAVEFORM | variant
    for kind in ARCHITECTURES
    for name, variant in VARIANTS.items()
} | {
    "wav2vec2, odd positions": WAVEFORM | {"model_type": "wav2vec2", "num_conv_pos_embeddings": 15},
    "wav2vec2, long positions": WAVEFORM | {"model_type": "wav2vec2", "num_conv_pos_embeddings": 128},
    "hubert, no norm before the projection": WAVEFORM
    | {"model_type": "hubert", "feat_proj_layer_norm": False},
    "wavlm, few buckets": WAVEFORM | {"model_type": "wavlm", "num_buckets": 8, "max_bucket_distance": 20},
    "tiny": {"model_type": "wav2vec2"} | TINY,
}
NO_DROPOUT = {f"{name}_dropout": 0.0 for name in ("hidden", "attention", "activation", "feat_proj", "final")}
EXACT = NO_DROPOUT | {"layerdrop": 0.0}
LENGTHS = (8_000, 900, 5_000)  # samples
LABELS = ["a", "b", "c", "d", "e"]
Computed = tuple[Tensor, Tensor]  # logits, gradients


def pair(settings: dict[str, Any], **changes: Any) -> tuple[SpeechClassifier, Any]:
    """Ours and transformers', of the same weights, in which norms and biases count too."""
    torch.manual_seed(0)
    values = settings | EXACT | changes
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    config = AutoConfig.for_model(**values, num_labels=len(LABELS))
    theirs = AutoModelForAudioClassification.from_config(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        theirs.classifier.weight *= 20  # logits of a spread that shows a difference
    known = EncoderConfig.read(values)
    assert known is not None
    ours = SpeechClassifier(known, len(LABELS))
    ours.load_state_dict(theirs.state_dict())  # strict: the same names and shapes
    return ours, theirs


def gradients(model: nn.Module, logits: Tensor) -> Tensor:
    model.zero_grad()
    logits.square().sum().backward(retain_graph=True)
    parts = [p.grad.flatten() for name, p in sorted(model.named_parameters()) if p.grad is not None]
    return torch.cat(parts)


def assert_same(ours: Computed, theirs: Computed, logits_within: float = 1e-6, within: float = 1e-5) -> None:
    """Logits within so much of their spread, gradients of their norm: by default float32 rounding."""
    (logits, gradient), (expected, expected_gradient) = ours, theirs
    assert (logits - expected).abs().max() <= logits_within * expected.std()
    assert torch.linalg.vector_norm(gradient - expected_gradient) <= within * expected_gradient.norm()


@pytest.mark.parametrize("is_masked", [False, True], ids=["", "SpecAugment"])
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_logits_and_gradients_are_those_of_transformers_clip_by_clip(
    settings: dict[str, Any], is_masked: bool
) -> None:
    assert_transformers(settings, is_masked, torch.float32, 2e-6)


def assert_transformers(settings: dict[str, Any], is_masked: bool, dtype: torch.dtype, within: float) -> None:
    ours, theirs = pair(settings, mask_time_prob=0.3 * is_masked, mask_feature_prob=0.0)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    assert len(gradients(ours.train(), ours(torch.randn(1, 4_000, dtype=dtype)))) > 0
    for length in LENGTHS:
        waveform = torch.randn(1, length, dtype=dtype)
        num_frames = int(ours.encoder.feature_extractor.num_frames(torch.tensor([length])))
        masked = torch.rand(1, num_frames) < 0.3 if is_masked else None
        kwargs = {} if masked is None else {"mask_time_indices": masked}
        our_logits = ours.train()(waveform, masked_frames=masked)
        their_logits = theirs.train()(waveform, **kwargs).logits
        our_gradients, their_gradients = gradients(ours, our_logits), gradients(theirs, their_logits)
        assert_same((our_logits, our_gradients), (their_logits, their_gradients), within, 10 * within)


# In double precision it is the same but for 1e-13; in float32 each of the two is within 1e-6 of that.
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 3e-6)], ids=str)
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_a_padded_batch_gives_what_its_clips_give_alone(
    settings: dict[str, Any], dtype: torch.dtype, within: float
) -> None:
    ours, theirs = pair(settings, mask_time_prob=0.3)
    ours, theirs = ours.train().to(dtype), theirs.train().to(dtype)
    lengths = torch.tensor(LENGTHS)
    real = torch.arange(max(LENGTHS)) < lengths[:, None]
    input_values = torch.randn(len(LENGTHS), max(LENGTHS), dtype=dtype) * real
    counts = ours.encoder.feature_extractor.num_frames(lengths)
    masked = torch.rand(len(LENGTHS), int(counts.max())) < 0.3
    masked &= torch.arange(int(counts.max())) < counts[:, None]
    padded = ours(input_values, lengths, masked)
    clips = [(input_values[i : i + 1, : LENGTHS[i]], masked[i : i + 1, : counts[i]]) for i in range(3)]
    alone = torch.cat([ours(clip, masked_frames=masked_frames) for clip, masked_frames in clips])
    assert_same((padded, gradients(ours, padded)), (alone, gradients(ours, alone)), within, 10 * within)
    # Only with a norm of each frame is transformers exact where it is told of padding.
    if ours.config.feat_extract_norm == "layer":
        expected = theirs(input_values, attention_mask=real.long(), mask_time_indices=masked).logits
        expected_gradients = gradients(theirs, expected)
        assert_same((padded, gradients(ours, padded)), (expected, expected_gradients), within, 10 * within)


AS_ON_A_GPU = (
    "wav2vec2, base-like",
    "wav2vec2, large-like",
    "wavlm, base-like",
    "wav2vec2, odd positions",
    "wav2vec2, long positions",
    "tiny",
)


@pytest.fixture
def gpu_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix products that convolutions are on a GPU, here on a CPU."""
    monkeypatch.setattr(kernels, "is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(encoder, "prefers_products", lambda tensor: True)


@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize("name", AS_ON_A_GPU)
def test_as_on_a_gpu_logits_and_gradients_are_those_of_transformers(name: str) -> None:
    assert_transformers(CASES[name], True, torch.float64, 1e-12)
    test_a_padded_batch_gives_what_its_clips_give_alone(CASES[name], torch.float64, 1e-12)


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm"])
def test_activations_that_are_computed_again_are_the_same(kind: str) -> None:
    """Dropout and LayerDrop included: the same logits and gradients, and far less is kept."""
    ours, _ = pair(CASES[f"{kind}, large-like"], mask_time_prob=0.3)
    config = dataclasses.replace(ours.config, hidden_dropout=0.1, attention_dropout=0.1, layerdrop=0.3)
    ours = SpeechClassifier(config, len(LABELS)).train()
    batch = batch_of(config, ours, torch.device("cpu"))
    found = []
    for recomputes in (False, True):
        kept: dict[int, int] = {}

        def count(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        if recomputes:
            ours.recompute_activations()
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            logits = ours(**batch)
        found.append((logits, gradients(ours, logits), sum(kept.values())))
    (logits, gradient, kept_bytes), (again, gradient_again, kept_again) = found
    assert torch.equal(logits, again) and torch.equal(gradient, gradient_again)
    assert kept_again < 0.5 * kept_bytes


def test_layers_are_dropped_as_transformers_drops_them() -> None:
    for kind in ("wav2vec2", "wavlm"):
        changes = {"layerdrop": 0.5, "num_hidden_layers": 6, "mask_time_prob": 0.0}
        ours, theirs = pair(CASES[f"{kind}, base-like"], **changes)
        waveform = torch.randn(2, 8_000)
        for seed in range(5):
            logits = []
            for model in (ours.train(), theirs.train()):
                torch.manual_seed(seed)
                logits.append(getattr(out := model(waveform), "logits", out))
            torch.testing.assert_close(*logits, rtol=0, atol=1e-6 * logits[1].std().item())


def test_masked_channels_are_zero_between_the_projection_and_the_transformer() -> None:
    ours, _ = pair(CASES["wav2vec2, base-like"], mask_feature_prob=0.1)
    waveform, none, every = torch.randn(2, 8_000), torch.zeros(2, 32, dtype=torch.bool), torch.ones(2, 32) > 0
    with torch.no_grad():
        expected = ours(waveform)
        assert torch.equal(ours(waveform, masked_channels=none), expected)
        silenced = ours(waveform, masked_channels=every)
    assert not torch.equal(silenced, expected)
    torch.testing.assert_close(silenced[0], silenced[1])  # nothing of the sound is left


def test_features_stand_for_the_waveforms_they_were_made_of() -> None:
    ours, _ = pair(CASES["wav2vec2, base-like"])
    lengths = torch.tensor([8_000, 5_000])
    input_values = torch.randn(2, 8_000)
    with torch.no_grad():
        features = ours.encoder.feature_extractor(input_values, lengths)
        assert torch.equal(ours(lengths=lengths, features=features), ours(input_values, lengths))


def test_hidden_states_are_transformers() -> None:
    for name in ("wav2vec2, base-like", "hubert, large-like", "wavlm, base-like"):
        ours, theirs = pair(CASES[name])
        waveform = torch.randn(1, 8_000)
        with torch.no_grad():
            states: list[Tensor] = []
            last_hidden_state, _ = ours.eval().encoder(waveform, states=states)
            base = theirs.eval().base_model(waveform, output_hidden_states=True)
        torch.testing.assert_close(last_hidden_state, base.last_hidden_state, rtol=0, atol=1e-5)
        for one, other in zip(states, base.hidden_states, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_fields_and_defaults_are_those_of_transformers_configs() -> None:
    ours = EncoderConfig()
    for kind in ARCHITECTURES:
        theirs = AutoConfig.for_model(kind)
        for name in EncoderConfig.__dataclass_fields__.keys() - {"model_type"}:
            if hasattr(theirs, name):
                value = getattr(theirs, name)
                assert (tuple(value) if isinstance(value, list) else value) == getattr(ours, name), name


# On a device, compiled, profiled


class NoIndexedCopies(TorchDispatchMode):
    """No number is assigned by index: it would first be copied to the device, and waited for.

    To a mask it may be: that fills, with the number as an argument.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "index_put" in func.__name__:
            assert all(index.dtype == torch.bool for index in args[1] if index is not None)
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_nothing_in_a_micro_batch_waits_for_the_device(settings: dict[str, Any], tmp_path: Path) -> None:
    """On the meta device there is nothing that could be read back: whatever tries raises."""
    config = EncoderConfig.read(settings | {"mask_time_prob": 0.3, "mask_feature_prob": 0.1})
    assert config is not None
    model = SpeechClassifier(config, 2).to("meta").train()
    batch = batch_of(config, model, torch.device("meta"))
    with NoIndexedCopies():
        labels = torch.zeros(3, dtype=torch.long, device="meta")
        nn.functional.cross_entropy(model(**batch), labels).backward()


def batch_of(config: EncoderConfig, model: SpeechClassifier, device: torch.device) -> dict[str, Tensor]:
    lengths = torch.tensor(LENGTHS)
    num_frames = int(model.encoder.feature_extractor.num_frames(lengths).max())
    batch = {
        "input_values": torch.randn(3, max(LENGTHS)),
        "lengths": lengths,
        "masked_frames": torch.rand(3, num_frames) < 0.3,
        "masked_channels": torch.rand(3, config.hidden_size) < 0.1,
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # dynamo's
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_its_pieces_compile_without_breaks_forward_and_backward(kind: str) -> None:
    """As on a GPU, as far as tracing and differentiating goes: what is made of the graphs is torch's."""
    settings = CASES[f"{kind}, base-like"] | {"mask_time_prob": 0.3, "mask_feature_prob": 0.1}
    ours, _ = pair(settings)
    ours.train()
    batch = batch_of(ours.config, ours, torch.device("cpu"))
    torch._dynamo.reset()
    for is_cast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_cast):
            expected = ours(**batch)
        expected_gradients = gradients(ours, expected)
        compiled = copy.deepcopy(ours)
        for piece in compiled.pieces():
            piece.compile(fullgraph=True, dynamic=False, backend="aot_eager")
        with torch.autocast("cpu", torch.bfloat16, enabled=is_cast):
            logits = compiled(**batch)
            with torch.no_grad():
                alone = compiled.eval()(batch["input_values"]), ours.eval()(batch["input_values"])
        within = (0.02, 0.05) if is_cast else (1e-6, 1e-5)
        assert_same((logits, gradients(compiled, logits)), (expected, expected_gradients), *within)
        torch.testing.assert_close(*alone, rtol=0, atol=within[0] * alone[0].std().item())
        ours.train()


# The warning is of SEW-D's softmax, when it is traced.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_compiled_parts_are_in_every_architecture_and_change_no_logits(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    compile_it = nn.Module.compile

    def trace(module: nn.Module, **options: Any) -> None:
        compiled.append(module)
        compile_it(module, backend="eager", **options)

    monkeypatch.setattr(nn.Module, "compile", trace)
    save_backbone(architecture, tmp_path)
    loaded = load_for_training(open_backbone(str(tmp_path)), ["a", "b"], seed=0)
    model = loaded.model.eval()
    clips = [Example(np.random.default_rng(n).standard_normal(n).astype(np.float32)) for n in (16_000, 9_000)]
    inputs = loaded.collator()(clips).inputs
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=8):  # put back afterwards
        expected = model(**inputs)
        loaded.compile()
        torch.testing.assert_close(model(**inputs), expected)
    assert len(compiled) >= loaded.backbone.config.num_hidden_layers


def test_its_parts_are_ranges_in_a_trace() -> None:
    ours, _ = pair(CASES["wav2vec2, base-like"])
    with torch.profiler.profile(acc_events=True) as profile:  # torch 2.11 warns without
        ours(torch.randn(1, 8_000))
    names = {event.name for event in profile.events()}
    assert names >= {"convolutions", "projection", "positional convolution", "layer 0", "layer 1", "head"}


# Files


def save(folder: Path, settings: dict[str, Any] = CASES["wav2vec2, base-like"], **changes: Any) -> Any:
    _, theirs = pair(settings, **changes)
    theirs.config.id2label = dict(enumerate(LABELS))
    theirs.config.label2id = {label: id for id, label in enumerate(LABELS)}
    theirs.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_transformers_saves_is_read_and_what_we_save_is_read_by_transformers(
    kind: str, tmp_path: Path
) -> None:
    theirs = save(tmp_path / "theirs", CASES[f"{kind}, large-like"])
    with pytest.MonkeyPatch.context() as without:
        without.setattr("audiocls.model.loading.load_stock", None)
        without.setattr("audiocls.model.loading.stock_config_class", None)
        loaded = load_for_inference(str(tmp_path / "theirs"))
    assert loaded.backbone.labels == tuple(LABELS)
    save_model(loaded, tmp_path / "ours")
    again = AutoModelForAudioClassification.from_pretrained(tmp_path / "ours").eval()
    assert set(load_file(tmp_path / "ours" / "model.safetensors")) == set(again.state_dict())
    assert again.config.id2label == dict(enumerate(LABELS))
    waveform = torch.randn(1, 8_000)
    with torch.no_grad():
        expected = theirs.eval()(waveform).logits
        torch.testing.assert_close(again(waveform).logits, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(loaded.model(waveform), expected, rtol=0, atol=1e-6)


def test_a_saved_config_keeps_what_decides_the_model(tmp_path: Path) -> None:
    settings = CASES["wavlm, few buckets"] | {"layerdrop": 0.25, "hidden_dropout": 0.2}
    save(tmp_path / "one", settings, layerdrop=0.25)
    save_model(load_for_training(open_backbone(str(tmp_path / "one")), ["x", "y"], seed=0), tmp_path / "two")
    before, after = (AutoConfig.from_pretrained(tmp_path / name) for name in ("one", "two"))
    for name in EncoderConfig.__dataclass_fields__:
        if hasattr(before, name):
            assert getattr(after, name) == getattr(before, name), name
    assert after.id2label == {0: "x", 1: "y"}


def test_old_names_of_the_weight_norm_and_pickled_weights_are_taken_over(tmp_path: Path) -> None:
    """`weight_g` and `weight_v`, in a pytorch_model.bin: as facebook/wav2vec2-base is published."""
    theirs = save(tmp_path)
    new, tensors = "parametrizations.weight.original", theirs.state_dict()
    for name in [name for name in tensors if new in name]:
        tensors[name.replace(f"{new}0", "weight_g").replace(f"{new}1", "weight_v")] = tensors.pop(name)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    loaded = load_for_inference(str(tmp_path))
    assert isinstance(loaded.model, SpeechClassifier)
    waveform = torch.randn(1, 8_000)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(waveform), theirs.eval()(waveform).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_kept_in_half_precision_are_computed_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs: Any = save(tmp_path)
    theirs.to(dtype).save_pretrained(tmp_path)
    theirs.float().eval()
    input_values = torch.randn(1, 8_000)
    with torch.inference_mode():
        ours = load_for_inference(str(tmp_path)).model(input_values)
        torch.testing.assert_close(ours, theirs(input_values).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "gelu_new"},
        {"conv_pos_batch_norm": True, "model_type": "hubert"},
        {"adapter_attn_dim": 8, "do_stable_layer_norm": True},
    ],
    ids=str,
)
def test_a_config_outside_what_it_knows_runs_transformers_own_model(
    change: dict[str, Any], tmp_path: Path
) -> None:
    values = CASES["wav2vec2, base-like"] | change
    config = AutoConfig.for_model(**values)
    AutoModelForAudioClassification.from_config(config).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    loaded = load_for_training(open_backbone(str(tmp_path)), LABELS, seed=0)
    assert loaded.backbone.forward_pass == "transformers" and not loaded.padding_invariant
    assert loaded.model(torch.randn(1, 8_000)).shape == (1, 5)


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"architectures": ["HubertForSequenceClassification"]}, "audiocls"),
        ({"architectures": "Wav2Vec2ForSequenceClassification"}, "audiocls"),
        ({"hidden_act": "gelu_new"}, "transformers"),
        ({"hidden_dropout": "0.1"}, "hidden_dropout"),
        ({"num_attention_heads": 0}, "could not be loaded"),
        ({"adapter_attn_dim": 0}, "transformers"),
        ({"problem_type": "guess"}, "audiocls"),
        ({"conv_dim": [16] * 6}, "could not be loaded"),
        ({"conv_dim": [0] * 7}, "could not be loaded"),
        ({"conv_dim": 16}, "conv_dim"),
        ({"hidden_size": 64}, "do not fit"),
        ({"id2label": None}, "id2label"),
        ({"model_type": None}, "is a None, not one that classifies audio"),
        ({"feat_proj_layer_norm": False}, "audiocls"),  # a field of HuBERT's config
        ({"num_buckets": -1}, "audiocls"),  # and one of WavLM's
    ],
    ids=str,
)
def test_what_it_does_not_know_is_left_to_transformers(
    change: dict[str, Any], outcome: str, tmp_path: Path
) -> None:
    """Whose forward pass then runs, or what transformers, or the comparison with the files, says."""
    theirs = save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if outcome not in ("audiocls", "transformers"):
        with pytest.raises(UserError, match=outcome):
            load_for_inference(str(tmp_path))
        return
    loaded = load_for_inference(str(tmp_path))
    assert loaded.backbone.forward_pass == outcome
    assert loaded.backbone.labels == tuple(LABELS)
    if outcome == "audiocls":
        waveform = torch.randn(1, 8_000)
        with torch.no_grad():
            expected = theirs.eval()(waveform).logits
            torch.testing.assert_close(loaded.model(waveform), expected, rtol=0, atol=1e-6)


def test_a_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        load_for_inference(str(tmp_path / "nothing"))
    save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="does not hold tensors alone"):
        load_for_inference(str(tmp_path))


def test_the_weights_of_a_sum_of_layers_are_even_where_the_files_have_none(tmp_path: Path) -> None:
    """transformers leaves them uninitialised."""
    save(tmp_path, CASES["wav2vec2, weighted sum"])
    weights = load_file(tmp_path / "model.safetensors")
    del weights["layer_weights"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    for stock in (False, True):
        loaded = load_for_training(open_backbone(str(tmp_path), stock=stock), LABELS, seed=0)
        weights = loaded.model.state_dict()
        torch.testing.assert_close(weights["layer_weights"], torch.full((3,), 1 / 3))


def test_another_head_is_put_on_a_saved_model_of_other_labels(tmp_path: Path) -> None:
    save(tmp_path)
    loaded = load_for_training(open_backbone(str(tmp_path)), ["x", "y"], seed=0)
    weights, saved = loaded.model.state_dict(), load_file(tmp_path / "model.safetensors")
    assert weights["classifier.weight"].shape == (2, 24)
    assert 0.01 < weights["classifier.weight"].std() < 0.03  # transformers' initializer_range is 0.02
    assert not weights["classifier.bias"].any()
    unchanged = [name for name in weights if not name.startswith("classifier.")]
    assert all(torch.equal(weights[name], saved[name]) for name in unchanged)
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_models_of_one_backbone_share_no_weights(tmp_path: Path) -> None:
    save(tmp_path)
    backbone = open_backbone(str(tmp_path))
    one, other = (load_for_training(backbone, LABELS, seed=0).model for _ in range(2))
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in other.state_dict().items())


def test_weights_that_lie_in_another_order_are_saved(tmp_path: Path) -> None:
    theirs = save(tmp_path)
    tensors = theirs.state_dict()
    tensors |= {name: tensor.mT.contiguous().mT for name, tensor in tensors.items() if tensor.ndim > 1}
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    save_model(load_for_inference(str(tmp_path)), tmp_path / "again")
    saved = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in theirs.state_dict().items())


def test_buckets_that_no_distance_fits_are_refused(tmp_path: Path) -> None:
    save(tmp_path, CASES["wavlm, few buckets"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_bucket_distance": 2}))
    with pytest.raises(UserError, match="do not fit"):
        open_backbone(str(tmp_path))


def test_stock_models_are_only_batched_with_padding_that_they_mask() -> None:
    masked, unmasked = (Wav2Vec2FeatureExtractor(return_attention_mask=told) for told in (True, False))
    layer = AutoConfig.for_model("hubert", feat_extract_norm="layer")
    assert padding_changes_nothing(layer, masked) and not padding_changes_nothing(layer, unmasked)
    assert not padding_changes_nothing(AutoConfig.for_model("hubert"), masked)
    batch_norm = AutoConfig.for_model("hubert", feat_extract_norm="layer", conv_pos_batch_norm=True)
    assert not padding_changes_nothing(batch_norm, masked)


def test_features_are_cached_only_for_our_own_forward_pass() -> None:
    check_can_freeze(open_backbone("tiny"), "feature-encoder", cache_features=True)
    check_can_freeze(open_backbone("tiny", stock=True), "feature-encoder", cache_features=False)
    with pytest.raises(UserError, match="--cache-features needs"):
        check_can_freeze(open_backbone("tiny", stock=True), "feature-encoder", cache_features=True)


def test_tiny_has_the_same_weights_in_either_forward_pass() -> None:
    ours, stock = (load_for_training(open_backbone("tiny", stock=s), LABELS, seed=3) for s in (False, True))
    waveform = torch.randn(1, 8_000)
    with torch.no_grad():
        logits = [loaded.model.eval()(waveform) for loaded in (ours, stock)]
        torch.testing.assert_close(*logits, rtol=0, atol=1e-6)


TRAINING = (
    "from audiocls.model.loading import load_for_training, open_backbone\n"
    "print(load_for_training(open_backbone({name!r}), ['a', 'b'], seed=0).backbone.labels)\n"
)
PROGRAMS = {
    "classifying": (
        "from audiocls import Classifier; import numpy as np\n"
        "classifier = Classifier.from_pretrained({folder!r}, device='cpu')\n"
        "print(classifier(np.random.randn(16_000).astype('float32'), sampling_rate=16_000)[0].label)\n"
    ),
    "training tiny": TRAINING.replace("{name!r}", "'tiny'"),
    "training on": TRAINING.replace("name", "folder"),
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_tiny_and_saved_models_need_no_transformers(program: str, tmp_path: Path) -> None:
    save(tmp_path)
    unwanted = "print([name for name in ('transformers', 'datasets', 'torchaudio') if name in sys.modules])"
    code = "import sys\n" + program.format(folder=str(tmp_path)) + unwanted
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[1] == "[]"
