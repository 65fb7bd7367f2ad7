"""Long audio in blocks of frames where no gradient is needed: the numbers of the whole, in far less memory.

What is short, differentiated, compiled or exported is computed whole.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocls.model.settings import EncoderConfig, frames_after_each, samples_of_frames

# Of 20 ms in the published models, so audio of more than 30 s is long, and a block is 10 s. Wav2Vec2's first
# convolution makes 64 MB of a block, and 3.9 GB of ten minutes: wav2vec2-base took 1.8 GB for these, whole
# 10.6 GB. Blocks of 30 s took at least three times the memory; in time no length of block was clearly better.
LONG_FRAMES = 1_500
BLOCK_FRAMES = 500
BIAS_FRAMES = 50  # WavLM's bias of its heads, for such frames and each of ten minutes, is 72 MB
WINDOWS = 2**15  # of a few samples, in float64: 3 MB


def is_long(num_frames: int) -> bool:
    """Whether so many frames are computed in blocks."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    return num_frames > LONG_FRAMES


def in_blocks(function: Callable[[Tensor], Tensor], hidden_states: Tensor) -> Tensor:
    """`function(hidden_states)`, which makes each frame of that frame alone: float [batch, frames, width]."""
    if not is_long(hidden_states.shape[1]):
        return function(hidden_states)
    blocks = (function(block) for block in hidden_states.split(BLOCK_FRAMES, 1))
    return joined(blocks, hidden_states.shape[1], 1)


def joined(parts: Iterable[Tensor], size: int, dim: int) -> Tensor:
    """What torch.cat makes of the parts, `size` long along `dim`; they are made and copied one by one.

    So they take no memory beside the whole.
    """
    whole, start = torch.empty(0), 0
    for part in parts:
        if start == 0:
            whole = part.new_empty([*part.shape[:dim], size, *part.shape[dim + 1 :]])
        whole.narrow(dim, start, part.shape[dim]).copy_(part)
        start += part.shape[dim]
    return whole


def blocks_of_samples(input_values: Tensor, config: EncoderConfig) -> list[Tensor]:
    """float [batch, samples] -> views, of each of which the convolutions make the next BLOCK_FRAMES frames.

    They overlap by what the frames on both sides of an edge depend on.
    """
    num_frames = frames_after_each(config, input_values.shape[1])[-1]
    hop = samples_of_frames(config, 2) - samples_of_frames(config, 1)
    blocks = []
    for start in range(0, num_frames, BLOCK_FRAMES):
        num_samples = samples_of_frames(config, min(BLOCK_FRAMES, num_frames - start))
        blocks.append(input_values[:, start * hop : start * hop + num_samples])
    return blocks


def without_offset(input_values: Tensor, lengths: Tensor | None) -> Tensor:
    """float [batch, samples] less each clip's mean over its `lengths`, int64 [batch]; None: over all."""
    if lengths is None:
        return input_values - input_values.mean(1, keepdim=True)
    is_real = torch.arange(input_values.shape[1], device=lengths.device) < lengths[:, None]
    return input_values - (input_values * is_real).sum(1, keepdim=True) / lengths[:, None]


def norm_before_convolving(
    input_values: Tensor, conv: nn.Conv1d, norm: nn.GroupNorm, num_frames: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What `norm`, of one channel a group, multiplies by and then adds to all that `conv` makes.

    float [batch, channels, 1] each, of input_values, float [batch, samples]. The norm is over the first
    `num_frames` frames, int64 [batch]; None: over all. A value of a frame is a filter w times a window x of
    samples. So its mean over time is w mean(x), and its variance w covariance(x) w, of as few numbers as the
    filter has taps, squared. float64, because a variance is a small difference of sums.
    """
    if input_values.device.type == "mps":  # has no float64
        input_values = input_values.cpu()
    windows = input_values.unfold(1, conv.kernel_size[0], conv.stride[0])  # a view: [batch, frames, taps]
    batch, num_windows, taps = windows.shape
    if num_frames is None:
        num_frames = torch.full((batch,), num_windows)
    numbers = torch.arange(num_windows, device=windows.device)
    is_real = (numbers < num_frames.to(windows.device)[:, None])[..., None]  # bool [batch, frames, 1]
    total = windows.new_zeros(batch, taps, dtype=torch.float64)
    products = windows.new_zeros(batch, taps, taps, dtype=torch.float64)
    for block, real in zip(windows.split(WINDOWS, 1), is_real.split(WINDOWS, 1), strict=True):
        block = block.double() * real
        total += block.sum(1)
        products += block.mT @ block
    count = is_real.sum(1)  # [batch, 1]
    mean = total / count
    covariance = products / count[..., None] - mean[:, :, None] * mean[:, None]
    filters = conv.weight[:, 0].to(mean)  # [channels, taps]
    means = F.linear(mean, filters, None if conv.bias is None else conv.bias.to(mean))
    variances = ((filters @ covariance) * filters).sum(-1).clamp(min=0)
    scale = norm.weight.to(mean) * torch.rsqrt(variances + norm.eps)
    shift = norm.bias.to(mean) - means * scale
    return scale.to(norm.weight)[..., None], shift.to(norm.weight)[..., None]
