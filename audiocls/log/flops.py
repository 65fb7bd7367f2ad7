"""How many operations a clip costs, counted from the model's configuration."""

from typing import Any

from audiocls.model.settings import ARCHITECTURES, frames_after_each


def forward_flops(config: Any, num_samples: int) -> dict[str, float]:
    """Floating-point operations of a forward pass over a clip; empty where the model's parts are not known.

    By part, named as its range in a profiler's trace; all transformer layers are one, "layers".

    A multiplication and an addition are two. Convolutions, projections and attention products are counted;
    norms, activations and the head over pooled frames, below 1%, are not. 13.8e9 for a second of audio
    through wav2vec2-base. Known are encoders of waveforms that end in plain transformer layers.
    """
    if config.model_type not in ARCHITECTURES:
        return {}
    convolutions, channels, frames = 0, 1, num_samples
    after_each = frames_after_each(config, num_samples)
    for width, kernel, frames in zip(config.conv_dim, config.conv_kernel, after_each, strict=True):
        convolutions += 2 * kernel * channels * width * frames
        channels = width
    hidden, layers = config.hidden_size, config.num_hidden_layers
    positions = config.num_conv_pos_embeddings * hidden**2 // config.num_conv_pos_embedding_groups
    attention = 2 * 4 * hidden**2 * frames + 2 * 2 * hidden * frames**2
    feed_forward = 2 * 2 * hidden * config.intermediate_size * frames
    return {
        "convolutions": float(convolutions),
        "projection": float(2 * channels * hidden * frames),
        "positional convolution": float(2 * positions * frames),
        "layers": float(layers * (attention + feed_forward)),
    }


def training_flops_by_part(
    config: Any, num_samples: float, *, freeze: str = "nothing", is_cached: bool = False
) -> dict[str, float]:
    """Floating-point operations that training on a clip takes: a backward pass costs two forward passes.

    A frozen convolutional encoder has none, and one whose output is cached costs nothing. Empty where the
    model's parts are not known, or all of them are frozen.
    """
    if freeze == "encoder":
        return {}
    times = 0 if is_cached else 1 if freeze == "feature-encoder" else 3
    parts = forward_flops(config, round(num_samples))
    return {part: flops * (times if part == "convolutions" else 3) for part, flops in parts.items()}


def training_flops(
    config: Any, num_samples: float, *, freeze: str = "nothing", is_cached: bool = False
) -> float:
    """All of training_flops_by_part; 0 where there are none."""
    return sum(training_flops_by_part(config, num_samples, freeze=freeze, is_cached=is_cached).values())
