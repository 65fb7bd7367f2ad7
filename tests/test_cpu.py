"""The CPU's kernels: torch's own results, a fair dropout."""

import copy

import pytest
import torch
from torch import nn

from audiocls.model.cpu import CheapDropout, OneDNNLinear, make_fast_on_cpu


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
