"""Operators of wav2vec2-base by themselves: torch's, and other ways to the same numbers."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import Bench
from torch import Tensor
from torch.nn import functional as F

from audiocls.devices import synchronize
from audiocls.model.kernels import block_toeplitz, by_products

BF16 = torch.bfloat16


def attention(bench: Bench) -> None:
    """Which attention torch takes, whether its dropout is the one asked for, and its gradients finite."""
    device = bench.device
    for frames, masked, p in (
        (49, False, 0.1),
        (49, True, 0.1),
        (249, True, 0.1),
        (249, True, 0.0),
        (249, False, 0.0),
    ):
        batch = 32 if bench.on_gpu else 1
        qkv = [
            torch.randn(batch, frames, 12, 64, device=device, dtype=BF16).transpose(1, 2).requires_grad_()
            for _ in range(3)
        ]
        mask = None
        if masked:
            mask = (torch.arange(frames, device=device) < frames - 5).expand(batch, 1, frames, frames)

        def work(qkv: list[Tensor] = qkv, mask: Tensor | None = mask, p: float = p) -> None:
            F.scaled_dot_product_attention(*qkv, attn_mask=mask, dropout_p=p).sum().backward()

        began = time.perf_counter()
        work()
        synchronize(device)
        first = 1000 * (time.perf_counter() - began)
        words = ("flash", "fmha", "cudnn", "attention", "sdpa")
        names = [name[:60] for name in bench.kernels(work)[0] if any(word in name.lower() for word in words)]
        milliseconds = bench.milliseconds(work)
        about = {"frames": frames, "masked": masked, "dropout": p}
        bench.say("sdpa", **about, first_call_ms=first, ms=milliseconds, kernels=names[:4])
    eye = torch.eye(64, device=device, dtype=BF16).expand(8, 12, 64, 64).contiguous()
    for p in (0.05, 0.1):
        zero = torch.zeros_like(eye)
        out = F.scaled_dot_product_attention(zero, zero, eye, dropout_p=p).float()
        dropped, scale = (out == 0).float().mean().item(), out.max().item() * 64
        bench.say("sdpa dropout", asked=p, dropped=dropped, scale=scale)
    for enabled in (False, True):
        if bench.on_gpu:
            torch.backends.cuda.enable_cudnn_sdp(enabled)
        odd = {frames: gradients_not_finite(frames, device) for frames in (49, 64, 192, 249, 704)}
        bench.say("sdpa NaN in grad_q", cudnn_enabled=enabled, by_frames=odd)
    if bench.on_gpu:
        torch.backends.cuda.enable_cudnn_sdp(False)  # as audiocls has it


def gradients_not_finite(frames: int, device: torch.device) -> int:
    """Where a row's logsumexp is very low: pytorch issue 196678, of frames with a remainder of 64 by 128."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, frames, 64, device=device, dtype=BF16) * 0.1 for _ in range(3))
    query[..., 0], key[..., 0] = 1.0, -120 * math.sqrt(64)
    query.requires_grad_()
    mask = torch.ones(1, 1, frames, frames, dtype=torch.bool, device=device)
    F.scaled_dot_product_attention(query, key, value, attn_mask=mask).sum().backward()
    assert query.grad is not None
    return int((~torch.isfinite(query.grad)).sum())


def positional(bench: Bench) -> None:
    """The grouped convolution of 128 taps: x [batch, frames, width], w [width, width of a group, taps]."""
    width, groups, taps = (768, 16, 128) if bench.on_gpu else (32, 2, 16)
    inner = width // groups

    def conv(x: Tensor, w: Tensor) -> Tensor:
        out = F.conv1d(x.transpose(1, 2), w, None, padding=taps // 2, groups=groups)
        return out[..., :-1].transpose(1, 2)

    def conv_last(x: Tensor, w: Tensor) -> Tensor:
        image = x[:, None].permute(0, 3, 1, 2)  # channels last already
        weight = w[:, :, None].contiguous(memory_format=torch.channels_last)
        out = F.conv2d(image, weight, None, padding=(0, taps // 2), groups=groups)
        return out[..., :-1].permute(0, 2, 3, 1)[:, 0]

    def columns(x: Tensor, w: Tensor) -> Tensor:
        batch, frames, _ = x.shape
        padded = F.pad(x, (0, 0, taps // 2, taps // 2 - 1))
        columns = padded.view(batch, frames + taps - 1, groups, inner).unfold(1, taps, 1)
        columns = columns.permute(2, 0, 1, 4, 3).reshape(groups, batch * frames, taps * inner)
        weight = w.view(groups, inner, inner, taps).permute(0, 3, 2, 1).reshape(groups, taps * inner, inner)
        out = torch.bmm(columns, weight).view(groups, batch, frames, inner)
        return out.permute(1, 2, 0, 3).reshape(batch, frames, width)

    def toeplitz(x: Tensor, w: Tensor) -> Tensor:
        return block_toeplitz(x, w, None, taps // 2, groups)[:, :-1]

    def fourier(x: Tensor, w: Tensor) -> Tensor:
        batch, frames, _ = x.shape
        length = frames + taps
        spectrum = torch.fft.rfft(F.pad(x, (0, 0, taps // 2, taps // 2)).float(), n=length, dim=1)
        weight = torch.fft.rfft(w.float(), n=length, dim=2).conj().view(groups, inner, inner, -1)
        out = torch.einsum("bfgi,goif->bfgo", spectrum.view(batch, -1, groups, inner), weight)
        return torch.fft.irfft(out.reshape(batch, -1, width), n=length, dim=1)[:, :frames].to(x.dtype)

    ways = {
        "conv1d": conv,
        "conv2d channels last": conv_last,
        "columns": columns,
        "toeplitz": toeplitz,
        "fourier": fourier,
    }
    for clips, frames in ((32, 49), (128, 49), (32, 249)) if bench.on_gpu else ((2, 24),):
        x = torch.randn(clips, frames, width, device=bench.device, dtype=BF16)
        w = torch.randn(width, inner, taps, device=bench.device, dtype=BF16) * 0.02
        compare(bench, "positional", ways, (x, w), clips=clips, frames=frames)
        if bench.on_gpu:
            torch.backends.cudnn.benchmark = True
            milliseconds = bench.both_ways(conv, x, w)
            torch.backends.cudnn.benchmark = False
            about = {"clips": clips, "frames": frames}
            bench.say("positional", **about, way="conv1d, cudnn.benchmark", ms=milliseconds)
            half = bench.both_ways(conv, x.half(), w.half())
            bench.say("positional", **about, way="conv1d fp16", ms=half)


def strided(bench: Bench) -> None:
    """Convolutions 2 to 7: cuDNN's, channels last, and as matrix products over views."""
    width, kernels = 512 if bench.on_gpu else 16, (3, 3, 3, 3, 2, 2)

    def conv(x: Tensor, *ws: Tensor) -> Tensor:
        for w in ws:
            x = F.gelu(F.conv1d(x, w, stride=2))
        return x

    def conv_last(x: Tensor, *ws: Tensor) -> Tensor:
        x = x[:, :, None].contiguous(memory_format=torch.channels_last)
        for w in ws:
            weight = w[:, :, None].contiguous(memory_format=torch.channels_last)
            x = F.gelu(F.conv2d(x, weight, stride=(1, 2)))
        return x[:, :, 0]

    def products(x: Tensor, *ws: Tensor) -> Tensor:
        """Of a length that is a multiple of 64; the last frames are none."""
        x = x.mT.contiguous()
        for w in ws:
            x = F.gelu(by_products(x, w, None, 2))
        return x.mT

    def in_place(x: Tensor, *ws: Tensor) -> Tensor:
        x = x.mT.contiguous()
        for w in ws:
            x = F.gelu(Halving.apply(x, w))
        return x.mT

    for clips, length in ((32, 3200), (128, 3200), (32, 16000)) if bench.on_gpu else ((1, 128),):
        weights = [
            torch.randn(width, width, kernel, device=bench.device, dtype=BF16) / math.sqrt(width * kernel)
            for kernel in kernels
        ]
        x = torch.randn(clips, width, length, device=bench.device, dtype=BF16)
        flops, time_steps = 0, length
        for kernel in kernels:
            time_steps = (time_steps - kernel) // 2 + 1
            flops += 3 * 2 * kernel * width * width * time_steps * clips
        num_frames = time_steps
        ways: dict[str, Callable[..., Tensor]] = {
            "conv1d": conv,
            "conv2d channels last": conv_last,
            "products": lambda *inputs, frames=num_frames: products(*inputs)[..., :frames],
        }
        ways["products in place"] = lambda *inputs, frames=num_frames: in_place(*inputs)[..., :frames]
        compare(bench, "conv stack", ways, (x, *weights), flops=flops, clips=clips)


class Halving(torch.autograd.Function):
    """`by_products` of stride 2, each product added to the last one's result in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        """[batch, time, channels] and [width, channels, taps] -> [batch, time / 2, width]."""
        pairs = x.reshape(-1, 2 * x.shape[2])
        out = pairs @ w[..., :2].permute(2, 1, 0).flatten(0, 1)
        if w.shape[2] == 3:
            out[:-1].addmm_(pairs[1:, : x.shape[2]], w[..., 2].t())
        ctx.save_for_backward(x, w)
        return out.view(x.shape[0], x.shape[1] // 2, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        channels = x.shape[2]
        pairs, grad = x.reshape(-1, 2 * channels), grad.reshape(-1, grad.shape[2])
        grad_x = grad @ w[..., :2].permute(0, 2, 1).flatten(1)
        grad_w = [(grad.t() @ pairs).unflatten(1, (2, channels)).permute(0, 2, 1)]
        if w.shape[2] == 3:
            grad_x[1:, :channels].addmm_(grad[:-1], w[..., 2])
            grad_w.append((grad[:-1].t() @ pairs[1:, :channels])[..., None])
        return grad_x.view_as(x), torch.cat(grad_w, 2)


def compare(
    bench: Bench,
    section: str,
    ways: dict[str, Callable[..., Tensor]],
    inputs: tuple[Tensor, ...],
    flops: int = 0,
    **about: Any,
) -> None:
    """Each way's milliseconds forward and backward, and how far it is from the first in float32."""
    expected = next(iter(ways.values()))(*(x.float() for x in inputs))
    for name, way in ways.items():
        with bench.failing(section, **about, way=name):
            error = ((way(*inputs).float() - expected).norm() / expected.norm()).item()
            both = bench.both_ways(way, *inputs)
            with torch.no_grad():
                forward = bench.milliseconds(lambda way=way: way(*inputs))
            rate = {"tflops": flops / both / 1e9} if flops else {}
            bench.say(section, **about, way=name, ms=both, forward_ms=forward, error=error, **rate)
