"""The two JSON files of a model: known fields, transformers' defaults; and how samples become frames."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeVar

from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
ARCHITECTURES = {
    "wav2vec2": "Wav2Vec2ForSequenceClassification",
    "hubert": "HubertForSequenceClassification",
    "unispeech": "UniSpeechForSequenceClassification",
    "unispeech-sat": "UniSpeechSatForSequenceClassification",
    "wavlm": "WavLMForSequenceClassification",
}
# Fields that only one architecture's config has.
ONLY_IN = {
    "feat_proj_layer_norm": "hubert",
    "conv_pos_batch_norm": "hubert",
    "num_buckets": "wavlm",
    "max_bucket_distance": "wavlm",
}


@dataclass(frozen=True)
class EncoderConfig:
    """What a config.json says of the model."""

    model_type: str = "wav2vec2"
    # the convolutions
    feat_extract_norm: str = "group"  # over time, after the first; "layer": over channels, after each
    feat_extract_activation: str = "gelu"
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    # between them and the transformer
    feat_proj_layer_norm: bool = True
    feat_proj_dropout: float = 0.0
    num_conv_pos_embeddings: int = 128  # taps
    num_conv_pos_embedding_groups: int = 16
    # the transformer
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    do_stable_layer_norm: bool = False  # norms before attention and feed-forward, instead of after
    layer_norm_eps: float = 1e-5
    num_buckets: int = 320  # WavLM's: of distances between frames
    max_bucket_distance: int = 800
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    layerdrop: float = 0.1
    # SpecAugment, which data/collators.py does
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    # the head
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256
    initializer_range: float = 0.02  # the spread of a new head's weights
    # variants that are not computed here
    conv_pos_batch_norm: bool = False
    add_adapter: bool = False
    adapter_attn_dim: int | None = None

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self | None:
        """The config in the fields of a config.json; None where encoder.py does not compute such a model."""
        kept = {name: values[name] for name in cls.names(values.get("model_type")) if name in values}
        kept |= {name: tuple(value) for name, value in kept.items() if isinstance(value, list)}
        if not kept or not all(is_like(value, getattr(cls, name)) for name, value in kept.items()):
            return None
        config = cls(**kept)
        is_computed = (
            config.feat_extract_norm in ("group", "layer")
            and {config.feat_extract_activation, config.hidden_act} <= ACTIVATIONS.keys()
            and len(config.conv_dim) == len(config.conv_kernel) == len(config.conv_stride) > 0
            and min(*config.conv_dim, *config.conv_kernel, *config.conv_stride) > 0
            and config.num_attention_heads > 0
            and config.hidden_size % config.num_attention_heads == 0
            and not (config.conv_pos_batch_norm or config.add_adapter)
            and config.adapter_attn_dim is None
        )
        return config if is_computed else None

    @classmethod
    def names(cls, model_type: Any) -> list[str]:
        """The fields that a config.json of such a model has; none where encoder.py knows no such model."""
        if model_type not in list(ARCHITECTURES):
            return []
        return [name for name in cls.__dataclass_fields__ if ONLY_IN.get(name, model_type) == model_type]

    def to_json(self) -> dict[str, Any]:
        """For a config.json."""
        return {name: getattr(self, name) for name in self.names(self.model_type)}

    @property
    def architecture(self) -> str:
        """transformers' class for it."""
        return ARCHITECTURES[self.model_type]

    @property
    def has_mask_embedding(self) -> bool:
        """Whether it has the vector that stands for a masked frame; UniSpeech-SAT has it in any case."""
        return self.mask_time_prob > 0 or self.mask_feature_prob > 0 or self.model_type == "unispeech-sat"

    @property
    def is_wavlm(self) -> bool:
        return self.model_type == "wavlm"


@dataclass(frozen=True)
class WaveformExtractor:
    """What a Wav2Vec2FeatureExtractor's preprocessor_config.json says; WaveformCollator does it."""

    feature_size: int = 1
    sampling_rate: int = 16_000  # Hz
    padding_value: float = 0.0
    do_normalize: bool = True
    return_attention_mask: bool = False

    def to_json(self) -> dict[str, Any]:
        """For a preprocessor_config.json."""
        return asdict(self) | {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "padding_side": "right"}


def is_like(value: Any, default: Any) -> bool:
    """Whether a setting is of its default's type; anything is where that is None, and an int for a float."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(type(item) is int for item in value)
    kinds = (int, float) if type(default) is float else (type(default),)
    return default is None or type(value) in kinds


Lengths = TypeVar("Lengths", int, Tensor)


def frames_after_each(config: Any, length: Lengths) -> list[Lengths]:
    """How many frames each convolution makes of a clip of so many samples: an int, or int64 [batch]."""
    lengths = []
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        length = (length - kernel) // stride + 1
        lengths.append(length)
    return lengths


def samples_of_frames(config: Any, frames: int) -> int:
    """The fewest samples of which the convolutions make so many frames; of one, its receptive field."""
    samples = frames
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        samples = (samples - 1) * stride + kernel
    return samples


@dataclass(frozen=True)
class FrameCounts:
    """How many samples make how many frames, without the rest of a model: so a worker can be told."""

    conv_kernel: tuple[int, ...]
    conv_stride: tuple[int, ...]

    def frames_of_samples(self, samples: int) -> int:
        """Frames that are made of `samples` samples."""
        return frames_after_each(self, samples)[-1]

    def samples_of_frames(self, frames: int) -> int:
        """Samples of which `frames` frames are made."""
        return samples_of_frames(self, frames)


def halves(config: Any) -> bool:
    """Whether each convolution but the first has stride 2 and 2 or 3 taps, as in the published models."""
    return set(config.conv_stride[1:]) <= {2} and set(config.conv_kernel[1:]) <= {2, 3}


def samples_to_halve(config: Any, samples: int) -> int:
    """Samples, at least so many, of which the first convolution makes frames that the others halve evenly.

    Here it makes one for each of its strides, from zeros beyond the end as well.
    """
    hop = config.conv_stride[0] * 2 ** (len(config.conv_stride) - 1)
    return -(-samples // hop) * hop


# `--model tiny`: a Wav2Vec2 that learns from random weights within minutes on a CPU. Three wide convolutions
# instead of seven make frames of 10 ms; one transformer layer; rectifiers, whose backward pass is cheaper
# than GELU's. 0.44M parameters; plain config fields, so it loads in transformers.
TINY: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "conv_dim": (128, 128, 128),
    "conv_kernel": (64, 8, 4),
    "conv_stride": (16, 5, 2),
    "feat_extract_activation": "relu",
    "hidden_act": "relu",
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
    "classifier_proj_size": 128,
}
