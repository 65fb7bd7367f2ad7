"""Faster ways to the same numbers in float32 on a CPU; anything else is passed on to torch.

tests/test_kernels.py holds each to torch's own result. What each gives by itself stands beside it, as
benchmarks/kernels.py measures it: how many times as long a training step of wav2vec2-base takes without it,
on 16 clips of 1 s and on 6 clips of 6 s, with two threads of an AMD EPYC with AVX-512 (median of 3 rounds).
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def is_eager_float32_on_cpu(one: Tensor, other: Tensor) -> bool:
    """Whether both are float32 on a CPU, and computed as such: not under autocast, compiled or exported."""
    return (
        one.dtype == other.dtype == torch.float32
        and one.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def linear(inputs: Tensor, layer: nn.Linear) -> Tensor:
    """`layer(inputs)`, float [batch, frames, from] -> [batch, frames, to], by oneDNN: 1.48 and 1.37 times.

    torch gives float32 products to MKL, which takes twice as long on AMD's CPUs with AVX-512.
    """
    return onednn_linear(inputs, layer.weight, layer.bias)


def onednn_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear(inputs, weight, bias)`."""
    if inputs.ndim < 2 or not is_eager_float32_on_cpu(inputs, weight) or not has_onednn():
        return F.linear(inputs, weight, bias)
    return OneDNNLinear.apply(inputs.flatten(0, -2), weight, bias).unflatten(0, inputs.shape[:-1])


class OneDNNMode(TorchFunctionMode):
    """Within it `F.linear` is `onednn_linear`, also in code that is not ours: 1.78 times.

    That is of Whisper tiny's encoder, on 16 clips of 1 s and one thread.
    """

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if function is F.linear and len(args) == 3:
            return onednn_linear(*args)
        return function(*args, **(kwargs or {}))


class OneDNNLinear(torch.autograd.Function):
    """`inputs @ weight.T + bias` and its gradients: [rows, from], [to, from] and [to] -> [rows, to]."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return product(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if needs_inputs else None,
            product(grad.t(), inputs.t()) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


@cache
def has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """`left @ right.T + bias`."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


def dropout(inputs: Tensor, p: float, training: bool) -> Tensor:
    """`F.dropout`, float [...] -> the same, from 16 random bits a value: 1.04 and 1.01 times.

    torch draws a float for each, which takes ten times as long.
    """
    if not training or not 0 < p < 1 or inputs.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(inputs, p, training)
    return (inputs * draw_kept(inputs.shape, p)).mul_(1 / (1 - p))


def draw_kept(shape: torch.Size, p: float) -> Tensor:
    """bool of `shape`: what dropout keeps, each value with probability 1 - p, to the nearest 1/65,536."""
    words = torch.empty((shape.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    values = words.view(torch.int16)[: shape.numel()].view(shape)  # of all 65,536 equally likely
    return values >= min(round(p * 2**16), 2**16 - 1) - 2**15


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float) -> Tensor:
    """`F.scaled_dot_product_attention` with dropout `p` of its weights, by such bits: 1.02 and 1.05 times.

    float [batch, heads, frames, width] each; mask bool, True = attended to, or float, added to the scores.
    """
    if not 0 < p < 1 or not is_eager_float32_on_cpu(query, key):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=p)
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    if mask is not None:
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return DroppedProduct.apply(scores.softmax(-1), value, p)


class DroppedProduct(torch.autograd.Function):
    """`dropout(weights, p, True) @ value`, which keeps the weights and what was dropped, not their product.

    The weights are the largest tensors of a transformer: of eight clips of 10 s nearly 100 MB a layer.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, value: Tensor, p: float) -> Tensor:
        kept = draw_kept(weights.shape, p)
        ctx.save_for_backward(weights, value, kept)
        ctx.scale = 1 / (1 - p)
        return (weights * kept) @ (value * ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, value, kept = ctx.saved_tensors
        grad = grad * ctx.scale
        dropped = weights * kept
        grad_value = dropped.mT @ grad
        return torch.mul(grad @ value.mT, kept, out=dropped), grad_value, None


def long_convolution(inputs: Tensor, conv: nn.Conv1d) -> Tensor:
    """`conv(inputs)` of many taps and stride 1, by Fourier transforms: 1.04 and 1.05 times.

    float [batch, channels, time] -> float [batch, channels, time + 2 * padding - taps + 1], in blocks that
    overlap by what wraps around (overlap-save).
    """
    weight = conv.weight  # where it has a weight norm, each look computes it
    taps, padding = conv.kernel_size[0], int(conv.padding[0])
    num_out = inputs.shape[-1] + 2 * padding - taps + 1
    # The weight's transform costs the same for any input: of a short one it is the most.
    if not is_eager_float32_on_cpu(inputs, weight) or taps < 64 or inputs.shape[0] * num_out < 2 * taps:
        return F.conv1d(inputs, weight, conv.bias, padding=padding, groups=conv.groups)
    length = taps + taps // 2  # of a block, of which the first `hop` results hold no wrapped-around tap
    hop = length - taps + 1
    num_blocks = -(-num_out // hop)
    blocks = F.pad(inputs, (padding, num_blocks * hop + taps - 1 - padding - inputs.shape[-1]))
    blocks = torch.fft.rfft(blocks.unfold(-1, length, hop)).unflatten(1, (conv.groups, -1))
    weight = torch.fft.rfft(weight, length).unflatten(0, (conv.groups, -1))
    # Axes: batch, group, channel in or out, block, frequency. Conjugated, for Conv1d's cross-correlation.
    spectrum = torch.einsum("bgitf,goif->bgotf", blocks.conj(), weight).conj()
    output = torch.fft.irfft(spectrum, length)[..., :hop].flatten(1, 2).flatten(2)[..., :num_out]
    return output if conv.bias is None else output + conv.bias[:, None]
