"""The CPU's kernels: torch's own results, a fair dropout."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from audiocls.model import cpu
from audiocls.model.cpu import CheapDropout, DroppedAttention, FourierConv1d, OneDNNLinear, make_fast_on_cpu


def model_of(dropout: float) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Dropout(dropout), nn.Linear(64, 8, bias=False))


@pytest.mark.parametrize("shape", [(48,), (3, 48), (2, 5, 48)], ids=str)
def test_linear_layers_give_torchs_values_and_gradients(shape: tuple[int, ...]) -> None:
    theirs = model_of(0.0)
    ours = copy.deepcopy(theirs)
    make_fast_on_cpu(ours)
    assert isinstance(ours[0], OneDNNLinear)
    inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in "ab"]
    outputs = [model(one) for model, one in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)  # another order of float32 sums
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-5, atol=1e-6)
    for parameter, theirs_parameter in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, theirs_parameter.grad, rtol=1e-5, atol=1e-5)


def test_parameters_and_their_names_do_not_change() -> None:
    model = model_of(0.1)
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    make_fast_on_cpu(model)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_autocast_still_decides_the_precision() -> None:
    model = model_of(0.0)
    make_fast_on_cpu(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(3, 48)).dtype == torch.bfloat16


@pytest.mark.parametrize("p", [0.0, 0.05, 0.1, 0.5, 1.0])
def test_dropout_drops_the_share_it_is_asked_to_wherever_a_value_stands(p: float) -> None:
    dropout = CheapDropout(p)
    torch.manual_seed(0)
    dropped = torch.stack([dropout(torch.ones(1_001, 7)) == 0 for _ in range(100)]).float()
    # Five standard deviations of the mean of 700,700 draws, and of each of the 4 places in a random word.
    assert dropped.mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / 700_700) ** 0.5 + 1e-5)
    for place in range(4):
        share = dropped.flatten(1)[:, place::4].mean().item()
        assert share == pytest.approx(p, abs=5 * (p * (1 - p) / 175_000) ** 0.5 + 1e-5)


def test_dropout_keeps_the_mean_and_passes_gradients_where_it_passes_values() -> None:
    dropout = CheapDropout(0.25)
    inputs = torch.ones(64, 64, requires_grad=True)
    output = dropout(inputs)
    output.sum().backward()
    assert output.detach().unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(inputs.grad, output.detach())


def test_dropout_follows_the_seed_and_stops_in_evaluation() -> None:
    dropout, inputs = CheapDropout(0.5), torch.ones(100)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(dropout(inputs))
    assert torch.equal(*results)
    assert torch.equal(dropout.eval()(inputs), inputs)


@pytest.mark.parametrize("has_weight_norm", [False, True])
@pytest.mark.parametrize(
    "taps, padding, groups, has_bias", [(64, 32, 4, True), (65, 0, 1, False), (128, 64, 16, True)], ids=str
)
def test_long_convolutions_give_torchs_values_and_gradients(
    taps: int, padding: int, groups: int, has_bias: bool, has_weight_norm: bool
) -> None:
    torch.manual_seed(0)
    theirs = nn.Conv1d(32, 32, taps, padding=padding, groups=groups, bias=has_bias)
    if has_weight_norm:
        weight_norm(theirs, dim=2)
    ours = copy.deepcopy(theirs)
    make_fast_on_cpu(nn.Sequential(ours))
    make_fast_on_cpu(nn.Sequential(ours))  # again: nothing more happens
    assert isinstance(ours, FourierConv1d)
    for frames in (taps, 130, 299, 3):  # the last are too few: torch's own way
        if frames + 2 * padding < taps:
            continue
        inputs = torch.randn(5, 32, frames)
        results = []
        for module in (ours, theirs):
            input = inputs.clone().requires_grad_()
            output = module(input)
            gradients = torch.autograd.grad(output.square().sum(), (input, *module.parameters()))
            results.append((output, *gradients))
        for one, other in zip(*results, strict=True):
            # Relative to the largest value: a transform's error is spread over all of them.
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("change", [{"stride": 2}, {"dilation": 2}, {"padding": "same"}], ids=str)
def test_other_convolutions_are_left_alone(change: dict) -> None:
    convolution = nn.Conv1d(4, 4, 128, **change)
    make_fast_on_cpu(nn.Sequential(convolution, nn.Conv1d(4, 4, 63)))
    assert type(convolution) is nn.Conv1d


@pytest.mark.parametrize("is_masked", [False, True])
def test_attention_gives_the_values_and_gradients_of_its_formula(
    is_masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    p, scale = 0.25, 0.3
    inputs = [torch.randn(3, 4, 7, 8, dtype=torch.float64, requires_grad=True) for _ in "qkv"]
    kept = torch.rand(3, 4, 7, 7) >= p
    monkeypatch.setattr(cpu, "draw_kept", lambda shape, p: kept)
    mask = (torch.arange(7) < torch.tensor([[7], [5], [1]]))[:, None, None].expand(-1, 1, 7, -1)

    def formula(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        scores = query @ key.transpose(-2, -1) * scale
        if is_masked:
            scores = scores.masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) * kept / (1 - p)) @ value

    outputs = (DroppedAttention.apply(*inputs, mask if is_masked else None, scale, p), formula(*inputs))
    torch.testing.assert_close(*outputs)
    upstream = torch.randn_like(outputs[0])
    ours, theirs = (torch.autograd.grad(output, inputs, upstream) for output in outputs)
    torch.testing.assert_close(ours, theirs)
