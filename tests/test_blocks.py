"""Long audio in blocks: the numbers of the whole, in a fraction of the memory."""

from collections import Counter
from typing import Any

import pytest
import torch
from architectures import WAVEFORM
from test_encoder import CASES, pair
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from audiocls.model import blocks, encoder
from audiocls.model.blocks import is_long, norm_before_convolving
from audiocls.model.encoder import Convolution, FeedForward, SpeechClassifier
from audiocls.model.kernels import BLOCKS_AT_ONCE, overlap_save

LONG = 20  # frames: 6,480 samples of a model whose frames are 320 apart
BLOCK = 7
CONVOLVED = ("wav2vec2, base-like", "wav2vec2, large-like", "wavlm, base-like", "tiny")
EXACT = 1e-12  # of the spread, in float64: rounding; in float32 it is 1e-5, other sums in other orders


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is long is as short as a test likes it: at least two blocks of what is larger than LONG."""
    monkeypatch.setattr(blocks, "LONG_FRAMES", LONG)
    monkeypatch.setattr(blocks, "BLOCK_FRAMES", BLOCK)
    monkeypatch.setattr(encoder, "BIAS_FRAMES", 3)


def whole_and_in_blocks(model: nn.Module, *args: Any) -> tuple[Tensor, Tensor]:
    """The same with a gradient, never in blocks, and without: there each part is called for several."""
    in_parts = [
        module
        for name, module in model.named_modules()
        if isinstance(module, Convolution | FeedForward) or name.endswith("gru_rel_pos_linear")
    ]
    assert in_parts
    calls: Counter[nn.Module] = Counter()
    hooks = [module.register_forward_hook(lambda module, *_: calls.update([module])) for module in in_parts]
    with torch.enable_grad():
        whole = model(*args)
    assert all(calls[module] == 1 for module in in_parts)
    calls.clear()
    with torch.no_grad():
        in_blocks = model(*args)
    assert all(calls[module] >= 2 for module in in_parts)
    for hook in hooks:
        hook.remove()
    if isinstance(whole, tuple):  # an Encoder's, of which the first is the hidden state
        whole, in_blocks = whole[0], in_blocks[0]
    return whole.detach(), in_blocks


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, EXACT), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("name", CONVOLVED)
def test_in_blocks_features_and_logits_are_those_of_the_whole(
    name: str, dtype: torch.dtype, within: float
) -> None:
    """Around an edge of blocks, with a last block of one frame, and samples beyond the last frame."""
    ours, _ = pair(CASES[name])
    ours = ours.to(dtype).eval()
    convolutions = ours.encoder.feature_extractor
    hop = blocks.samples_of_frames(ours.config, 2) - blocks.samples_of_frames(ours.config, 1)
    for num_frames in (LONG + 1, 3 * BLOCK + 1, 4 * BLOCK - 1, 4 * BLOCK):
        for spare in (0, hop - 1):
            samples = blocks.samples_of_frames(ours.config, num_frames) + spare
            waveform = torch.randn(1, samples, dtype=dtype) + 0.5  # an offset, too
            for model in (convolutions, ours):
                whole, in_blocks = whole_and_in_blocks(model, waveform)
                assert whole.shape == in_blocks.shape
                assert (whole - in_blocks).abs().max() <= within * whole.std()


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("name", CONVOLVED)
def test_of_a_padded_batch_in_blocks_only_real_frames_count(name: str) -> None:
    ours, _ = pair(CASES[name])
    ours = ours.double().eval()
    lengths = torch.tensor([11_000, 2_500, 7_777])
    real = torch.arange(11_000) < lengths[:, None]
    noise = torch.randn(3, 11_000, dtype=torch.float64)
    whole, in_blocks = whole_and_in_blocks(ours, noise * real, lengths)
    assert (whole - in_blocks).abs().max() <= EXACT * whole.std()
    with torch.no_grad():  # whatever is in the padding
        loud = ours(torch.where(real, noise, 100 * noise), lengths)
    assert (loud - in_blocks).abs().max() <= EXACT * whole.std()


@pytest.mark.usefixtures("short_blocks")
def test_hidden_states_in_blocks_are_those_of_the_whole() -> None:
    """Of WavLM, where each frame's bias counts: not only their mean."""
    ours, _ = pair(CASES["wavlm, few buckets"])
    ours = ours.double().eval()
    with torch.no_grad():
        ours.encoder.encoder.layers[0].attention.rel_attn_embed.weight *= 30
    whole, in_blocks = whole_and_in_blocks(ours.encoder, torch.randn(2, 10_000, dtype=torch.float64))
    assert (whole - in_blocks).abs().max() <= EXACT * whole.std()


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("offset", [0.0, 5.0, 50.0])  # times the spread
@pytest.mark.parametrize("has_lengths", [False, True])
def test_in_blocks_bf16_loses_no_more_to_an_offset_than_the_whole(offset: float, has_lengths: bool) -> None:
    """A norm over time removes an offset, after a convolution of which bf16 keeps three digits."""
    ours, _ = pair(CASES["wav2vec2, base-like"])
    convolutions = ours.eval().encoder.feature_extractor
    counts = torch.tensor([16_000, 12_345 if has_lengths else 16_000])
    lengths = counts if has_lengths else None
    waveform = (torch.randn(2, 16_000) + offset) * (torch.arange(16_000) < counts[:, None])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = whole_and_in_blocks(convolutions, waveform, lengths)
    exact, _ = whole_and_in_blocks(convolutions.double(), waveform.double(), lengths)
    is_real = torch.arange(exact.shape[2]) < convolutions.num_frames(counts)[:, None]
    whole, in_blocks = ((output - exact).mT[is_real].norm() for output in outputs)
    assert in_blocks <= 1.2 * whole  # other roundings, by chance: 0.95 to 0.99 without an offset


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_norm_over_time_is_known_before_convolving(has_bias: bool) -> None:
    """Also of a clip with an offset of a thousand times its spread: float32 holds that to 6e-5 of it."""
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(1, 16, 10, 5, bias=has_bias, dtype=torch.float64)
    norm = torch.nn.GroupNorm(16, 16, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    for offset, within in ((0.0, EXACT), (1_000.0, 1e-6)):  # squares are a million times the variance
        waveform = torch.randn(1, 200_000, dtype=torch.float64) + offset
        with torch.no_grad():
            scale, shift = norm_before_convolving(waveform, conv, norm, None)
            convolved = conv(waveform.unsqueeze(1))
            expected = norm(convolved)
        assert (convolved * scale + shift - expected).abs().max() <= within * expected.std()


class Transforms(TorchDispatchMode):
    """How many inverse Fourier transforms are computed."""

    num_inverse = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_inverse += func is torch.ops.aten._fft_c2r.default
        return func(*args, **(kwargs or {}))


def test_long_convolutions_by_parts_are_torchs() -> None:
    conv = torch.nn.Conv1d(8, 8, 64, padding=32, groups=2, dtype=torch.float64)
    for num_frames, parts in (
        (33 * BLOCKS_AT_ONCE, 2),
        (33 * BLOCKS_AT_ONCE + 1, 2),
        (80 * BLOCKS_AT_ONCE, 3),
    ):
        inputs = torch.randn(2, 8, num_frames, dtype=torch.float64)
        with torch.no_grad(), Transforms() as transforms:
            ours = overlap_save(inputs, conv.weight, conv.bias, 32, 2)
        assert transforms.num_inverse == parts
        assert (ours - conv(inputs)).abs().max() <= EXACT * ours.std()


def test_a_long_convolution_with_a_gradient_is_in_one_piece() -> None:
    """So training on long clips is to the bit what it is without blocks."""
    inputs, weight = torch.randn(1, 8, 100 * BLOCKS_AT_ONCE), torch.randn(8, 4, 64, requires_grad=True)
    with Transforms() as transforms:
        overlap_save(inputs, weight, None, 32, 2)
    assert transforms.num_inverse == 1


def test_what_is_short_or_differentiated_is_whole() -> None:
    assert blocks.LONG_FRAMES == 1_500  # 30 s: what is shorter is to the bit what it was
    assert not is_long(10**6)
    with torch.no_grad():
        assert is_long(1_501) and not is_long(1_500)


class Largest(TorchDispatchMode):
    """The values of the largest tensor that is made, views left out."""

    num_values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.num_values = max(self.num_values, made.untyped_storage().nbytes() // made.element_size())
        return made


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_no_tensor_of_long_audio_is_larger_than_its_hidden_states_or_a_block(kind: str, norm: str) -> None:
    """Two minutes: whole, the first convolution makes 64 times as many frames, a bias their square."""
    settings = (
        {"model_type": kind}
        | WAVEFORM
        | {"feat_extract_norm": norm, "num_hidden_layers": 1, "conv_dim": (64,) * 7}
    )
    ours, _ = pair(settings)
    assert isinstance(ours, SpeechClassifier)
    config, num_frames = ours.config, 5_999
    waveform = torch.randn(1, blocks.samples_of_frames(config, num_frames))
    with torch.inference_mode(), Largest() as largest:
        ours.eval()(waveform)
    first = 64 * (blocks.BLOCK_FRAMES + 1) * config.conv_dim[0]
    bias = blocks.BIAS_FRAMES * num_frames * config.num_attention_heads if kind == "wavlm" else 0
    positions = 4 * num_frames * config.hidden_size  # its transform, and what it is padded by
    assert largest.num_values <= max(first, bias, positions, 2 * waveform.numel())
    assert largest.num_values < 64 * num_frames * config.conv_dim[0] / 4
