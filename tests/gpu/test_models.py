"""A model on the GPU gives the CPU's scores, trains in every precision, and never makes the host wait."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from architectures import CONFIGS

from gpu.steps import LENGTHS, Stepper, backbone_to_train, classifier_of_spread_scores, examples, scores

pytestmark = pytest.mark.gpu

# In fp32 only the order of sums differs, and 1e-5 is thirty times what that does on a CPU. bf16 and fp16 move
# these scores by up to 0.006 and 0.001 there; tf32 has as many bits as fp16.
TOLERANCE = {"fp32": 1e-5, "tf32": 0.01, "fp16": 0.01, "bf16": 0.03}


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_the_cpus(name: str, device: torch.device, precision: str) -> None:
    loaded = classifier_of_spread_scores(name)
    expected = scores(loaded, torch.device("cpu"), "fp32")
    torch.testing.assert_close(scores(loaded, device, precision), expected, rtol=0, atol=TOLERANCE[precision])


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_trains(name: str, device: torch.device, precision: str) -> None:
    loaded = backbone_to_train(name)
    stepper, collate = Stepper(loaded, device, precision), loaded.training_collator(0)
    before = {key: p.detach().clone() for key, p in loaded.model.named_parameters()}
    # Data2Vec's biases begin at 0: the norms over its padding, five in a row, have gradients of 1e13.
    lengths = (16_000,) * 4 if name == "data2vec-audio" else LENGTHS
    for _ in range(3):
        loss, norm = stepper.step(collate(examples(lengths))).wait().tolist()
        assert 0 < loss < 10 and 0 < norm < 1e4
    changed = [key for key, p in loaded.model.named_parameters() if not torch.equal(p, before[key])]
    # LayerDrop may skip a layer, and Whisper's positions are fixed: most is enough to see it learn.
    assert len(changed) > 0.7 * len(before)


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("name", CONFIGS)
def test_the_host_waits_for_nothing_in_a_step(name: str, precision: str, cuda: torch.device) -> None:
    loaded = backbone_to_train(name)
    if loaded.backbone.forward_pass != "audiocls":
        pytest.skip("transformers' own model may wait")
    stepper, collate = Stepper(loaded, cuda, precision), loaded.training_collator(0)
    batches = [collate(examples()).pin_memory() for _ in range(3)]
    stepper.step(batches[0])  # the first one sets up libraries and the optimizer's state
    with waiting_is_an_error():
        for batch in batches[1:]:
            numbers = stepper.step(batch)
    assert all(map(math.isfinite, numbers.wait().tolist()))


@pytest.mark.parametrize("frames", [64, 192])
def test_padded_gradients_are_finite_where_cudnns_attention_gives_nan(
    frames: int, device: torch.device
) -> None:
    """In its backward pass, at frames % 128 == 64, under a mask, where a row's scores are all below -89."""
    changes = {"hidden_size": 128, "layerdrop": 0.0, "attention_dropout": 0.0}  # two heads of 64
    loaded = backbone_to_train("wav2vec2-layer-norm", **changes)
    for name, parameter in loaded.model.named_parameters():
        if name.endswith(("q_proj.bias", "k_proj.bias")):  # scores: -4 x 4 x 64 / sqrt(64) = -128
            torch.nn.init.constant_(parameter, 4.0 if "q_proj" in name else -4.0)
    longest = 400 + 320 * (frames - 1)
    batch = loaded.training_collator(0)(examples((longest, longest // 2, longest // 3)))
    assert loaded.backbone.frames_of_samples(longest) == frames
    stepper = Stepper(loaded, device, "bf16")
    for _ in range(3):
        assert all(map(math.isfinite, stepper.step(batch).wait().tolist()))
