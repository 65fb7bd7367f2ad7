"""Faster ways to the same numbers on a CPU, as plain functions; whatever else they are given, torch computes.

tests/test_kernels.py holds each to torch's own result, benchmarks/kernels.py shows what each gives by itself.
KERNELFIGURES
"""

import contextlib
import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def is_plain(one: Tensor, other: Tensor) -> bool:
    """Whether both are float32 on a CPU, to be computed as such, now."""
    return (
        one.dtype == other.dtype == torch.float32
        and one.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def linear(inputs: Tensor, layer: nn.Linear) -> Tensor:
    """`layer(inputs)`, float [batch, frames, from] -> [batch, frames, to], by oneDNN.

    torch gives float32 products to MKL, which takes twice as long on this CPU.
    """
    if not is_plain(inputs, layer.weight) or not torch.backends.mkldnn.is_available():
        return layer(inputs)
    return OneDNNLinear.apply(inputs.flatten(0, -2), layer.weight, layer.bias).unflatten(0, inputs.shape[:-1])


class OneDNNLinear(torch.autograd.Function):
    """`inputs @ weight.T + bias` and its gradients: [rows, from], [to, from] and [to] -> [rows, to]."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
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


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """`left @ right.T + bias`."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


def dropout(inputs: Tensor, p: float, training: bool) -> Tensor:
    """`F.dropout`, float [...] -> the same, from 16 random bits a value.

    torch draws a float for each, which takes ten times as long.
    """
    if not training or not 0 < p < 1 or inputs.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(inputs, p, training)
    return (inputs * draw_kept(inputs.shape, p)).mul_(1 / (1 - p))


def draw_kept(shape: torch.Size, p: float) -> Tensor:
    """bool of `shape`: what dropout keeps, each value with probability 1 - p, to the next of 65,536 parts."""
    words = torch.empty((shape.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    values = words.view(torch.int16)[: shape.numel()].view(shape)  # all 65,536 alike
    return values >= round(p * 2**16) - 2**15


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float) -> Tensor:
    """`F.scaled_dot_product_attention` with dropout `p` of its weights, by the dropout above.

    float [batch, heads, frames, width] each; mask bool, True = attended to, or float, added to the scores.
    """
    if not 0 < p < 1 or not is_plain(query, key):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=p)
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    if mask is not None:
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return dropout(scores.softmax(-1), p, True) @ value


def long_convolution(inputs: Tensor, conv: nn.Conv1d) -> Tensor:
    """`conv(inputs)` of many taps and stride 1, by Fourier transforms of overlapping blocks (overlap-save).

    float [batch, channels, time] -> float [batch, channels, time + 2 * padding - taps + 1].
    """
    taps, padding, weight = conv.kernel_size[0], int(conv.padding[0]), conv.weight
    num_out = inputs.shape[-1] + 2 * padding - taps + 1
    # The weight's transform costs the same for any input: of a short one it is the most.
    if taps < 64 or inputs.shape[0] * num_out < 2 * taps or not is_plain(inputs, weight):
        return conv(inputs)
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


def keep_freed_memory() -> None:
    """Let the C library keep what is freed (glibc; elsewhere nothing happens).

    It would return the large tensors of every step to the system and fault them in again at the next.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        for size in (2**25, 2**30):  # older ones refuse more than the first
            libc.mallopt(m_mmap_threshold, size)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
