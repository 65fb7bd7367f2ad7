"""What is known of a model before its weights are read, and the model with them: what it hears, and how."""

from dataclasses import dataclass, field
from typing import Any

from audiocls.data.loader import Collator, FeatureCollator, SpectrogramCollator, WaveformCollator
from audiocls.model.spec_augment import SpecAugment


@dataclass(frozen=True)
class Backbone:
    """What is known of a model before its weights are read."""

    name: str
    revision: str | None
    config: Any  # a transformers PretrainedConfig
    feature_extractor: Any
    commit: str | None = None  # on the Hub, where it comes from there

    @property
    def sampling_rate(self) -> int:
        return self.feature_extractor.sampling_rate

    @property
    def takes_waveforms(self) -> bool:
        """Whether the model hears samples; if not, its feature extractor makes spectrograms of them."""
        return hasattr(self.config, "conv_kernel")

    @property
    def min_samples(self) -> int:
        """The model's receptive field: a shorter clip gives not one frame."""
        if not self.takes_waveforms:
            # Every filter bank here has windows of 25 ms, 10 ms apart; Wav2Vec2-BERT joins `stride` of them.
            windows = getattr(self.feature_extractor, "stride", 1)
            return round((0.025 + 0.010 * (windows - 1)) * self.sampling_rate)
        frames = getattr(self.config, "squeeze_factor", 1)  # SEW pools its frames
        if self.config.model_type == "wav2vec2-conformer":
            frames = 2  # its batch norm cannot train on one
        return self.samples_of_frames(frames)

    @property
    def max_samples(self) -> int | None:
        """What a model of a fixed window hears of a clip: Whisper's chunk, AST's longest spectrogram."""
        match self.config.model_type:
            case "whisper":
                return self.feature_extractor.n_samples
            case "audio-spectrogram-transformer":
                return round((0.025 + 0.010 * (self.feature_extractor.max_length - 1)) * self.sampling_rate)
        return None

    def frames_of_samples(self, samples: int) -> int:
        """Frames that the convolutional encoder makes of `samples` samples."""
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def samples_of_frames(self, frames: int) -> int:
        """Samples from which the convolutional encoder makes `frames` frames."""
        samples = frames
        for kernel, stride in zip(
            reversed(self.config.conv_kernel), reversed(self.config.conv_stride), strict=True
        ):
            samples = (samples - 1) * stride + kernel
        return samples


@dataclass(frozen=True)
class LoadedModel:
    """A model with its feature extractor, ready for use."""

    model: Any  # a transformers PreTrainedModel, float32
    backbone: Backbone
    padding_invariant: bool = False  # whether a clip's logits are the same whatever is padded beside it
    notes: list[str] = field(default_factory=list)
    hears_features: bool = False  # whether clips have been through its convolutional encoder already

    def collator(self, edges: tuple[int, ...] = ()) -> Collator:
        """What makes batches for it; waveforms are padded to the next of `edges`, in samples."""
        backbone = self.backbone
        if not backbone.takes_waveforms:
            return SpectrogramCollator(backbone.feature_extractor)
        with_mask = self.padding_invariant or backbone.feature_extractor.return_attention_mask
        if self.hears_features:
            return FeatureCollator(backbone.samples_of_frames, with_mask)
        return WaveformCollator(backbone.feature_extractor, with_mask, edges)

    def training_collator(self, seed: int, edges: tuple[int, ...] = ()) -> Collator:
        """The same with SpecAugment's masks, where the model is configured to have them."""
        config, collate = self.backbone.config, self.collator(edges)
        wants_masks = getattr(config, "apply_spec_augment", True) and getattr(config, "mask_time_prob", 0)
        if not wants_masks or config.model_type == "whisper":  # which draws its own
            return collate
        return SpecAugment(
            collate,
            # A spectrogram's mask counts frames already.
            self.backbone.frames_of_samples if self.backbone.takes_waveforms else int,
            seed,
            config.mask_time_prob,
            config.mask_time_length,
            getattr(config, "mask_time_min_masks", 0),
        )
