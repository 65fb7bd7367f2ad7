"""A model made fast: its own results, and nothing in it that waits for the device."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import CONFIGS, save_backbone
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from audiocls.data.loader import Example
from audiocls.model.backbone import load_for_training, open_backbone
from audiocls.model.fast import compile_parts, make_fast

CPU = torch.device("cpu")


def wav2vec2(attention_dropout: float) -> Wav2Vec2ForSequenceClassification:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=64,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=16,
        attention_dropout=attention_dropout,
        activation_dropout=0.0,
        final_dropout=0.0,
        hidden_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
    )
    return Wav2Vec2ForSequenceClassification(config)


@pytest.mark.parametrize("device", ["cpu", "cuda"])  # as prepared for either: both compute on a CPU
def test_a_model_gives_its_own_logits_and_gradients(device: str) -> None:
    theirs = wav2vec2(1e-9)  # dropout is asked for, and falls on no value
    ours = copy.deepcopy(theirs)
    make_fast(ours, torch.device(device))
    inputs = {
        "input_values": torch.randn(4, 20_000),
        "attention_mask": (torch.arange(20_000) < torch.tensor([[20_000], [9_000], [20_000], [600]])).long(),
        "mask_time_indices": torch.rand(4, 62) < 0.2,
    }
    logits = []
    for model in (ours, theirs):
        logits.append(model.train()(**inputs).logits)
        logits[-1].square().sum().backward()
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-6)
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-6, msg=name)


def test_attentions_dropout_follows_the_seed_and_stops_in_evaluation(tmp_path: Path) -> None:
    theirs = wav2vec2(0.5)
    ours = copy.deepcopy(theirs)
    make_fast(ours, CPU)
    waveforms, none_masked = torch.randn(2, 20_000), torch.zeros(2, 62, dtype=torch.bool)
    with torch.no_grad():
        logits = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            logits.append(ours.train()(waveforms, mask_time_indices=none_masked).logits)
        assert torch.equal(logits[0], logits[1])
        assert not torch.equal(logits[0], logits[2])
        torch.testing.assert_close(ours.eval()(waveforms), theirs.eval()(waveforms), rtol=1e-5, atol=1e-6)
    ours.save_pretrained(tmp_path)
    assert "audiocls" not in (tmp_path / "config.json").read_text()


class NoIndexedCopies(TorchDispatchMode):
    """No number is assigned by index: it would first be copied to the device, and waited for.

    To a mask it may be: that fills, with the number as an argument.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "index_put" in func.__name__:
            assert all(index.dtype == torch.bool for index in args[1] if index is not None)
        return func(*args, **(kwargs or {}))


# SEW-D's softmax fills with a tensor that lies on the CPU, which a GPU takes and the meta device does not.
@pytest.mark.parametrize("architecture", sorted(CONFIGS.keys() - {"sew-d"}))
def test_nothing_in_a_micro_batch_waits_for_the_device(architecture: str, tmp_path: Path) -> None:
    """On the meta device there is nothing that could be read back: whatever tries raises."""
    save_backbone(architecture, tmp_path)
    backbone = open_backbone(str(tmp_path))
    if hasattr(backbone.config, "mask_time_prob"):
        backbone.config.mask_time_prob = 0.3
    loaded = load_for_training(backbone, ["a", "b"], seed=0)
    make_fast(loaded.model, torch.device("cuda"))
    model = loaded.model.to("meta").train()
    generator = np.random.default_rng(0)
    clips = [Example(generator.standard_normal(n).astype(np.float32)) for n in (16_000, 5_000)]
    batch = loaded.training_collator(0)(clips).to(torch.device("meta"))
    with NoIndexedCopies():
        logits = model(**batch.inputs).logits
        nn.functional.cross_entropy(logits.float(), batch.labels, reduction="sum").backward()


# The warning is of SEW-D's softmax, when it is traced.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_compiled_parts_are_in_every_architecture_and_change_no_logits(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as tracing goes: what a compiler makes of the graphs is torch's."""
    compiled: list[nn.Module] = []
    compile_it = nn.Module.compile

    def trace(module: nn.Module) -> None:
        compiled.append(module)
        compile_it(module, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", trace)
    save_backbone(architecture, tmp_path)
    loaded = load_for_training(open_backbone(str(tmp_path)), ["a", "b"], seed=0)
    model = loaded.model.eval()
    clips = [Example(np.random.default_rng(n).standard_normal(n).astype(np.float32)) for n in (16_000, 9_000)]
    inputs = loaded.collator()(clips).inputs
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=8):  # put back afterwards
        expected = model(**inputs).logits
        compile_parts(model)
        torch.testing.assert_close(model(**inputs).logits, expected)
    assert len(compiled) >= loaded.backbone.config.num_hidden_layers
