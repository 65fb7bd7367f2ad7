"""The two JSON files of a model that encoder.py computes: known fields, transformers' defaults."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self

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
    # SpecAugment, see data/spec_augment.py
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
        config = read_fields(cls, values)
        if config is None:
            return None
        is_known = (
            config.model_type in ARCHITECTURES
            and config.feat_extract_norm in ("group", "layer")
            and {config.feat_extract_activation, config.hidden_act} <= ACTIVATIONS.keys()
            and len(config.conv_dim) == len(config.conv_kernel) == len(config.conv_stride) > 0
            and min(*config.conv_dim, *config.conv_kernel, *config.conv_stride) > 0
            and config.num_attention_heads > 0
            and config.hidden_size % config.num_attention_heads == 0
            and not (config.conv_pos_batch_norm or config.add_adapter)
            and config.adapter_attn_dim is None
        )
        return config if is_known else None

    def to_json(self) -> dict[str, Any]:
        """For a config.json: all fields but those of another architecture alone."""
        kind = self.model_type
        return {name: value for name, value in asdict(self).items() if ONLY_IN.get(name, kind) == kind}

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

    feature_extractor_type: str = "Wav2Vec2FeatureExtractor"
    feature_size: int = 1
    sampling_rate: int = 16_000  # Hz
    padding_side: str = "right"
    padding_value: float = 0.0
    do_normalize: bool = True
    return_attention_mask: bool = False

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self | None:
        """The settings in these fields; None where they are another extractor's."""
        extractor = read_fields(cls, values)
        if extractor is None or "feature_extractor_type" not in values:
            return None
        fixed = ("feature_extractor_type", "feature_size", "padding_side")
        return extractor if all(getattr(extractor, name) == getattr(cls, name) for name in fixed) else None


def read_fields(kind: Any, values: dict[str, Any]) -> Any:
    """A `kind` of those `values` that are its fields; None where one is not of its default's type."""
    kept = {}
    for name, field in kind.__dataclass_fields__.items():
        if name not in values:
            continue
        value = tuple(values[name]) if isinstance(values[name], list) else values[name]
        default = field.default
        if isinstance(default, tuple):
            is_alike = isinstance(value, tuple) and all(type(item) is int for item in value)
        else:
            kinds = (int, float) if type(default) is float else (type(default),)
            is_alike = default is None or type(value) in kinds
        if not is_alike:
            return None
        kept[name] = value
    return kind(**kept)
