"""The same mathematics, faster on a CPU: memory that is kept, oneDNN's matrix products, cheaper dropout."""

import contextlib
import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

RANDOM_VALUES = 2**16  # of 16 bits


def make_fast_on_cpu(model: nn.Module) -> None:
    """Let linear layers and dropout of a float32 model use the kernels below. Parameters do not change."""
    keep_freed_memory()
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = CheapDropout
        if type(module) is nn.Linear and has_onednn():
            module.__class__ = OneDNNLinear


def keep_freed_memory() -> None:
    """Let the C library keep what is freed (glibc; elsewhere nothing happens).

    It would return the large tensors of every step to the system and fault them in again at the next.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


class CheapDropout(nn.Dropout):
    """Dropout whose mask takes 16 random bits a value; torch spends ten times as long on drawing a float."""

    def forward(self, input: Tensor) -> Tensor:
        """float [...] -> the same; the probability is `p` to the next of 65,536 parts."""
        if not self.training or self.p in (0, 1) or input.device.type != "cpu":
            return super().forward(input)
        words = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        values = words.view(torch.int16)[: input.numel()].view(input.shape)  # all 65,536 alike
        kept = values >= round(self.p * RANDOM_VALUES) - RANDOM_VALUES // 2
        return (input * kept).mul_(1 / (1 - self.p))


class OneDNNLinear(nn.Linear):
    """A linear layer through oneDNN; MKL, torch's choice for float32, is slower on many CPUs."""

    def forward(self, input: Tensor) -> Tensor:
        plain = input.dtype == self.weight.dtype == torch.float32 and input.device.type == "cpu"
        if not plain or input.dim() < 2 or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
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
