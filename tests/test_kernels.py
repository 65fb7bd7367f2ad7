"""The kernels: torch's own results, a fair dropout."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from audiocls.model.kernels import (
    OneDNNMode,
    attention,
    block_toeplitz,
    by_products,
    draw_kept,
    dropout,
    linear,
    long_convolution,
)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 48), (2, 5, 48)], ids=str)
def test_linear_layers_give_torchs_values_and_gradients(shape: tuple[int, ...], has_bias: bool) -> None:
    layer = nn.Linear(48, 64, bias=has_bias)
    inputs = torch.randn(shape, requires_grad=True)
    ours, theirs = linear(inputs, layer), layer(inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # another order of float32 sums
    grads = [torch.autograd.grad(out.square().sum(), (inputs, *layer.parameters())) for out in (ours, theirs)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_linear_layer_gives_only_the_gradients_that_are_asked_for() -> None:
    layer, inputs = nn.Linear(4, 5).requires_grad_(False), torch.randn(3, 4, requires_grad=True)
    linear(inputs, layer).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is None
    torch.testing.assert_close(inputs.grad, layer.weight.sum(0).expand(3, 4))


def test_autocast_still_decides_the_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(3, 48), nn.Linear(48, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize("p", [0.0, 0.05, 0.1, 0.5, 1.0])
def test_dropout_drops_the_share_it_is_asked_to_wherever_a_value_stands(p: float) -> None:
    torch.manual_seed(0)
    dropped = torch.stack([dropout(torch.ones(1_001, 7), p, True) == 0 for _ in range(100)]).float()
    # Five standard deviations of the mean of 700,700 draws, and of each of the 4 places in a random word.
    assert dropped.mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / 700_700) ** 0.5 + 1e-5)
    for place in range(4):
        share = dropped.flatten(1)[:, place::4].mean().item()
        assert share == pytest.approx(p, abs=5 * (p * (1 - p) / 175_000) ** 0.5 + 1e-5)


def test_dropout_keeps_the_mean_and_passes_gradients_where_it_passes_values() -> None:
    inputs = torch.ones(64, 64, requires_grad=True)
    output = dropout(inputs, 0.25, True)
    output.sum().backward()
    assert output.detach().unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(inputs.grad, output.detach())


def test_dropout_follows_the_seed_and_stops_in_evaluation() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(dropout(torch.ones(100), 0.5, True))
    assert torch.equal(*results)
    assert torch.equal(dropout(torch.ones(100), 0.5, False), torch.ones(100))


@pytest.mark.parametrize("kind", ["no mask", "keys that are padding", "a bias"])
def test_attention_gives_the_values_and_gradients_of_its_formula(kind: str) -> None:
    torch.manual_seed(0)
    p = 0.25
    inputs = [torch.randn(3, 4, 7, 8, requires_grad=True) for _ in "qkv"]
    mask = (torch.arange(7) < torch.tensor([[7], [5], [1]]))[:, None, None]
    bias = torch.randn(3, 4, 7, 7, requires_grad=True).masked_fill(~mask, -torch.inf)
    given = {"no mask": None, "keys that are padding": mask, "a bias": bias}[kind]

    def formula(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.mT / 8**0.5
        if given is not None:
            scores = scores + bias if given is bias else scores.masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) * draw_kept(torch.Size((3, 4, 7, 7)), p) / (1 - p)) @ value

    outputs = []
    for way in (lambda *qkv: attention(*qkv, given, p), formula):
        torch.manual_seed(1)  # so that both draw what is kept alike
        outputs.append(way(*inputs))
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    upstream = torch.randn_like(outputs[0])
    ours, theirs = (torch.autograd.grad(out, inputs, upstream, retain_graph=True) for out in outputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    without = attention(*inputs, given, 0.0)
    torch.testing.assert_close(without, F.scaled_dot_product_attention(*inputs, attn_mask=given))


@pytest.mark.parametrize("has_weight_norm", [False, True])
@pytest.mark.parametrize(
    "taps, padding, groups, has_bias", [(64, 32, 4, True), (65, 0, 1, False), (128, 64, 16, True)], ids=str
)
def test_long_convolutions_give_torchs_values_and_gradients(
    taps: int, padding: int, groups: int, has_bias: bool, has_weight_norm: bool
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d(32, 32, taps, padding=padding, groups=groups, bias=has_bias)
    if has_weight_norm:
        weight_norm(conv, dim=2)
    for frames in (taps, 130, 299, 3):  # the last are too few: torch's own way
        if frames + 2 * padding < taps:
            continue
        inputs = torch.randn(5, frames, 32, requires_grad=True)
        results = []
        for output in (long_convolution(inputs, conv), conv(inputs.mT).mT):
            gradients = torch.autograd.grad(output.square().sum(), (inputs, *conv.parameters()))
            results.append((output, *gradients))
        for one, other in zip(*results, strict=True):
            # Relative to the largest value: a transform's error is spread over all of them.
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * other.abs().max().item())


def assert_same_gradients(outputs: tuple[Tensor, Tensor], inputs: list[Tensor]) -> None:
    """Of two ways to the same numbers, with the same upstream gradient, in float64."""
    upstream = torch.randn_like(outputs[0])
    ours, theirs = (torch.autograd.grad(output, inputs, upstream) for output in outputs)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("frames", [1, 3, 16, 17, 49, 100])
@pytest.mark.parametrize(
    "taps, padding, groups, has_bias", [(8, 4, 2, True), (15, 7, 1, False), (16, 0, 4, True)], ids=str
)
def test_block_toeplitz_products_are_the_convolution(
    frames: int, taps: int, padding: int, groups: int, has_bias: bool
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d(16, 24, taps, padding=padding, groups=groups, bias=has_bias, dtype=torch.float64)
    inputs = torch.randn(3, frames + taps, 16, dtype=torch.float64, requires_grad=True)
    ours = block_toeplitz(inputs, conv.weight, conv.bias, padding, groups)
    assert_same_gradients((ours, conv(inputs.mT).mT), [inputs, *conv.parameters()])


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    "channels, taps, stride, time",
    [(1, 10, 5, 640), (1, 5, 5, 60), (8, 3, 2, 64), (8, 2, 2, 64), (8, 3, 2, 2)],
)
def test_products_are_the_strided_convolution(
    channels: int, taps: int, stride: int, time: int, has_bias: bool
) -> None:
    """But for the last frames, for which the convolution has too few inputs."""
    torch.manual_seed(0)
    conv = nn.Conv1d(channels, 6, taps, stride, bias=has_bias, dtype=torch.float64)
    inputs = torch.randn(3, time, channels, dtype=torch.float64, requires_grad=True)
    ours = by_products(inputs, conv.weight, conv.bias, stride)
    assert ours.shape == (3, time // stride, 6)
    if time >= taps:
        theirs = conv(inputs.mT).mT
        assert_same_gradients((ours[:, : theirs.shape[1]], theirs), [inputs, *conv.parameters()])


def test_under_autocast_products_are_in_its_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert by_products(torch.randn(1, 64, 8), torch.randn(6, 8, 3), None, 2).dtype == torch.bfloat16
        weight = nn.Conv1d(8, 8, 16).weight
        assert block_toeplitz(torch.randn(1, 64, 8), weight, None, 8, 1).dtype == torch.bfloat16


def test_within_the_mode_linear_layers_of_any_code_give_torchs_numbers_and_gradients() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 4, bias=False))
    inputs = torch.randn(2, 7, 48, requires_grad=True)

    def run() -> list[torch.Tensor]:
        outputs = layers(inputs)
        return [outputs, *torch.autograd.grad(outputs.square().sum(), [inputs, *layers.parameters()])]

    theirs = run()
    with OneDNNMode():
        ours = run()
        assert "OneDNNLinear" in type(layers(inputs).grad_fn.next_functions[0][0]).__name__
        assert nn.Linear(3, 4)(torch.randn(3)).shape == (4,)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
