"""Faster ways to the same numbers, in float32 on a CPU and in any precision on a CUDA GPU.

Anything else is passed on to torch, and tests/test_kernels.py holds each to torch's own result. What each
gives by itself stands beside it. On a CPU, as benchmarks/kernels.py measures it: how many times as long a
training step of wav2vec2-base takes without it, on 16 clips of 1 s and on 6 clips of 6 s, with two threads of
an AMD EPYC with AVX-512 (median of 3 rounds). On a GPU, as benchmarks/gpu/bench.py does: on an H200 in bf16,
the milliseconds of all kernels of a step on 128 clips of 1 s.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from audiocls.model.blocks import joined

ROWS_A_BLOCK = 16  # at most, of a block-Toeplitz matrix: more make it larger, fewer its input

# Of `overlap_save` without a gradient: 42 s of 20 ms frames under 128 taps. Ten minutes at once take 1.4 GB.
BLOCKS_AT_ONCE = 8


def is_eager_float32_on_cpu(one: Tensor, other: Tensor) -> bool:
    """Whether both are float32 on a CPU, and computed as such: not under autocast, compiled or exported."""
    return (
        one.dtype == other.dtype == torch.float32
        and one.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def is_on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def prefers_products(tensor: Tensor) -> bool:
    """Whether strided convolutions are better as matrix products: where a compiler fuses what is beside."""
    return is_on_gpu(tensor) and torch.compiler.is_compiling()


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
    """`conv` of many taps and stride 1, float [batch, time, channels] -> the same.

    The result has `time + 2 * padding - taps + 1` frames.
    """
    weight = conv.weight  # where it has a weight norm, each look computes it
    taps, padding = conv.kernel_size[0], int(conv.padding[0])
    num_out = inputs.shape[1] + 2 * padding - taps + 1
    if is_on_gpu(inputs):
        return block_toeplitz(inputs, weight, conv.bias, padding, conv.groups)
    # The weight's transform costs the same for any input: of a short one it is the most.
    if is_eager_float32_on_cpu(inputs, weight) and taps >= 64 and inputs.shape[0] * num_out >= 2 * taps:
        return overlap_save(inputs.mT, weight, conv.bias, padding, conv.groups).mT
    return F.conv1d(inputs.mT, weight, conv.bias, padding=padding, groups=conv.groups).mT


def overlap_save(inputs: Tensor, weight: Tensor, bias: Tensor | None, padding: int, groups: int) -> Tensor:
    """`F.conv1d` by Fourier transforms of blocks, which overlap by what wraps around: 1.04 and 1.05 times."""
    taps = weight.shape[-1]
    num_out = inputs.shape[-1] + 2 * padding - taps + 1
    length = taps + taps // 2  # of a block, of which the first `hop` results hold no wrapped-around tap
    hop = length - taps + 1
    num_blocks = -(-num_out // hop)
    blocks = F.pad(inputs, (padding, num_blocks * hop + taps - 1 - padding - inputs.shape[-1]))
    weight = torch.fft.rfft(weight, length).unflatten(0, (groups, -1))

    def convolved(some: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(some).unflatten(1, (groups, -1))
        # Axes: batch, group, channel in or out, block, frequency. Conjugated, for Conv1d's cross-correlation.
        spectrum = torch.einsum("bgitf,goif->bgotf", spectrum.conj(), weight).conj()
        output = torch.fft.irfft(spectrum, length)[..., :hop].flatten(1, 2).flatten(2)
        return output if bias is None else output + bias[:, None]

    blocks = blocks.unfold(-1, length, hop)
    if torch.is_grad_enabled() or num_blocks <= BLOCKS_AT_ONCE:
        return convolved(blocks)[..., :num_out]
    return joined(map(convolved, blocks.split(BLOCKS_AT_ONCE, 2)), num_blocks * hop, 2)[..., :num_out]


def block_toeplitz(inputs: Tensor, weight: Tensor, bias: Tensor | None, padding: int, groups: int) -> Tensor:
    """`F.conv1d` of [batch, time, channels] as one matrix product a group: 59.1 -> 33.9 ms.

    cuDNN has no fast kernel for few channels and many taps. Here each column holds all that a block of frames
    needs, and the matrix the kernel once for each of these, a row further down each time, as for three taps
    and two frames in [[w0, 0], [w1, w0], [w2, w1], [0, w2]]. So a column of `rows + taps - 1` frames makes
    `rows`: little more work than the convolution's, in a ninth of the memory of a column for each frame.
    """
    (batch, time, _), (width, inner, taps) = inputs.shape, weight.shape
    num_out = time + 2 * padding - taps + 1
    blocks = -(-num_out // ROWS_A_BLOCK)
    rows = -(-num_out // blocks)
    span = rows + taps - 1
    inputs, weight = in_autocast(inputs), in_autocast(weight)
    columns = F.pad(inputs, (0, 0, padding, blocks * rows + taps - 1 - time - padding))
    # Axes: batch, block, group, channel, frame of the block's input; then group, block, what is multiplied.
    columns = columns.unflatten(2, (groups, inner)).unfold(1, span, rows)
    columns = columns.permute(2, 0, 1, 3, 4).reshape(groups, batch * blocks, inner * span)
    # A row of zeros after the kernel, and the next one begins a place further to the right: in memory that is
    # the kernel and `rows` zeros, over and over, read `span` at a time.
    shifted = F.pad(weight.unsqueeze(2).expand(-1, -1, rows, -1), (0, rows)).flatten(2)[..., : rows * span]
    shifted = shifted.unflatten(2, (rows, span)).unflatten(0, (groups, -1))
    # From group, channel out, channel in, frame out, frame in.
    matrix = shifted.permute(0, 2, 4, 3, 1).reshape(groups, inner * span, -1)
    output = torch.bmm(columns, matrix).view(groups, batch, blocks, rows, -1)
    output = output.permute(1, 2, 3, 0, 4).reshape(batch, blocks * rows, width)[:, :num_out]
    return output if bias is None else output + in_autocast(bias)


def in_autocast(tensor: Tensor) -> Tensor:
    """As autocast would give it to a matrix product: what is copied before that is then half as large."""
    kind = tensor.device.type
    is_cast = kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
    return tensor.to(torch.get_autocast_dtype(kind)) if is_cast else tensor


def by_products(inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """`F.conv1d` with a stride, as matrix products over views of frames as rows, of which none is transposed.

    float [batch, time, channels] -> [batch, time / stride, width]: the last frames, for which a convolution
    has too few inputs, hold anything. There is one input channel, or the stride is 2, there are 2 or 3 taps
    and `time` is even. cuDNN would turn what it takes and what it gives: compiled with this and
    `block_toeplitz` 52.8 -> 20.9 ms. Where nothing fuses the sums it is slower than cuDNN.
    """
    inputs, weight, taps = in_autocast(inputs), in_autocast(weight), weight.shape[-1]
    channels = inputs.shape[2]
    if channels == 1:
        spare = (0, -taps % 8)  # tensor cores take multiples of 8
        columns = F.pad(F.pad(inputs[..., 0], (0, taps - stride)).unfold(1, taps, stride), spare)
        output = columns @ F.pad(weight[:, 0], spare).t()
    else:
        pairs = inputs.unflatten(1, (-1, 2)).flatten(2)  # [batch, time / 2, 2 * channels]
        rows = pairs.flatten(0, 1)
        output = rows @ weight[..., :2].permute(2, 1, 0).flatten(0, 1)
        if taps == 3:  # the third is the first of the next pair
            third = rows[:, :channels] @ weight[..., 2].t()
            output = output + F.pad(third[1:], (0, 0, 0, 1))
        output = output.unflatten(0, pairs.shape[:2])
    return output if bias is None else output + in_autocast(bias)
