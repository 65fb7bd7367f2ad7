"""The same mathematics, faster on a CPU.

Memory that is kept, oneDNN's matrix products, cheap random numbers for dropout, an attention that keeps less
for its backward pass, and Fourier transforms for long convolutions. What is not float32, or is compiled or
exported, goes torch's own way.
"""

import contextlib
import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

RANDOM_VALUES = 2**16  # of 16 bits
LONG_KERNEL = 64  # from which on a convolution is cheaper by Fourier transform


def make_fast_on_cpu(model: nn.Module) -> None:
    """Let a model use the kernels below. Its parameters do not change."""
    keep_freed_memory()
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = CheapDropout
        if type(module) is nn.Linear and has_onednn():
            module.__class__ = OneDNNLinear
        if isinstance(module, nn.Conv1d) and is_long(module):
            # Its class may be one of its own: a weight norm's.
            module.__class__ = type("FourierConv1d", (FourierConv1d, type(module)), {})


def is_plain(one: Tensor, other: Tensor) -> bool:
    """Whether both are float32 on a CPU, to be computed as such, now."""
    return (
        one.dtype == other.dtype == torch.float32
        and one.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


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


class CheapDropout(nn.Dropout):
    """Dropout whose mask takes 16 random bits a value; torch spends ten times as long on drawing a float."""

    def forward(self, input: Tensor) -> Tensor:
        """float [...] -> the same; the probability is `p` to the next of 65,536 parts."""
        if not self.training or self.p in (0, 1) or input.device.type != "cpu":
            return super().forward(input)
        return (input * draw_kept(input.shape, self.p)).mul_(1 / (1 - self.p))


def draw_kept(shape: torch.Size, p: float) -> Tensor:
    """bool of `shape`: what dropout keeps, each value with probability 1 - p."""
    words = torch.empty((shape.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    values = words.view(torch.int16)[: shape.numel()].view(shape)  # all 65,536 alike
    return values >= round(p * RANDOM_VALUES) - RANDOM_VALUES // 2


class OneDNNLinear(nn.Linear):
    """A linear layer through oneDNN; MKL, torch's choice for float32, is slower on many CPUs."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or not is_plain(input, self.weight):
            return super().forward(input)
        rows = OneDNNProduct.apply(input.flatten(0, -2), self.weight, self.bias)
        return rows.unflatten(0, input.shape[:-1])


class OneDNNProduct(torch.autograd.Function):
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
            grad.t() @ inputs if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


def product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


def has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class DroppedAttention(torch.autograd.Function):
    """Attention with dropout of its weights; torch's is in separate steps, of which each result is kept.

    float [batch, heads, queries, width], keys and values alike, mask bool [batch, 1, queries, keys] (True =
    heard) or None, the scores' scale, dropout's p -> float [batch, heads, queries, width].
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, p: float
    ) -> Tensor:
        scores = (query @ key.mT).mul_(scale)
        if mask is not None:
            scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        kept = draw_kept(weights.shape, p)
        attended = (weights * kept).mul_(1 / (1 - p)) @ value
        ctx.save_for_backward(query, key, value, weights, kept, attended)
        ctx.scale, ctx.p = scale, p
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, kept, attended = ctx.saved_tensors
        dropped = (weights * kept).mul_(1 / (1 - ctx.p))
        grad_value = dropped.mT @ grad
        grad_weights = torch.mul(grad @ value.mT, kept, out=dropped).mul_(1 / (1 - ctx.p))
        # Softmax's own gradient; the sum over keys of gradient times weight is that of grad times output.
        grad_scores = grad_weights.sub_((grad * attended).sum(-1, keepdim=True)).mul_(weights).mul_(ctx.scale)
        return grad_scores @ key, grad_scores.mT @ query, grad_value, None, None, None


class FourierConv1d(nn.Conv1d):
    """A convolution of many taps and stride 1, by Fourier transforms of overlapping blocks (overlap-save)."""

    def forward(self, input: Tensor) -> Tensor:
        """float [batch, channels, time] -> float [batch, channels, time + 2 * padding - taps + 1]."""
        taps, padding = self.kernel_size[0], int(self.padding[0])
        num_out = input.shape[-1] + 2 * padding - taps + 1
        # The weight's transform costs the same for any input: of a short one it is the most.
        if input.shape[0] * num_out < 2 * taps or not is_plain(input, self.weight):
            return super().forward(input)
        length = taps + taps // 2  # of a block, of which the first `hop` results hold no wrapped-around tap
        hop = length - taps + 1
        num_blocks = -(-num_out // hop)
        blocks = F.pad(input, (padding, num_blocks * hop + taps - 1 - padding - input.shape[-1]))
        blocks = torch.fft.rfft(blocks.unfold(-1, length, hop)).unflatten(1, (self.groups, -1))
        weight = torch.fft.rfft(self.weight, length).unflatten(0, (self.groups, -1))
        # Axes: batch, group, channel in or out, block, frequency. Conjugated, for Conv1d's cross-correlation.
        spectrum = torch.einsum("bgitf,goif->bgotf", blocks.conj(), weight).conj()
        output = torch.fft.irfft(spectrum, length)[..., :hop].flatten(1, 2).flatten(2)[..., :num_out]
        return output if self.bias is None else output + self.bias[:, None]


def is_long(module: nn.Conv1d) -> bool:
    return (
        not isinstance(module, FourierConv1d)
        and module.kernel_size[0] >= LONG_KERNEL
        and module.stride == module.dilation == (1,)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )
