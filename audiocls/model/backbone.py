"""What is known of a model before its weights are read, and the model with them: what it takes, and how."""

import math
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from audiocls.data.collators import (
    Collator,
    FeatureCollator,
    Spans,
    SpecAugment,
    SpectrogramCollator,
    WaveformCollator,
    collate_pooled,
)
from audiocls.model.settings import EncoderConfig, FrameCounts
from audiocls.model.stock import padding_changes_nothing


@dataclass(frozen=True)
class Backbone:
    """What is known of a model before its weights are read."""

    name: str
    revision: str | None
    config: Any  # an EncoderConfig, or where transformers' own model runs its PretrainedConfig
    feature_extractor: Any  # a WaveformExtractor, or transformers' own for a spectrogram
    commit: str | None = None  # on the Hub, where it comes from there
    labels: tuple[str, ...] = ()  # in the order of the outputs: those it was trained with, or is to be
    problem_type: str | None = None  # transformers' name for how logits become scores

    @property
    def is_stock(self) -> bool:
        """Whether transformers' own model runs, not encoder.py's."""
        return not isinstance(self.config, EncoderConfig)

    @property
    def is_alike_each_time(self) -> bool:
        """Whether a forward pass asks for the same kernels each time: with LayerDrop it does not.

        transformers' own models may also wait for the GPU.
        """
        return not self.is_stock and self.config.layerdrop == 0

    @property
    def forward_pass(self) -> str:
        """Whose code computes the logits: "audiocls" or "transformers"."""
        return "transformers" if self.is_stock else "audiocls"

    @property
    def sampling_rate(self) -> int:
        return self.feature_extractor.sampling_rate

    @property
    def takes_waveforms(self) -> bool:
        """Whether the model takes samples; if not, its feature extractor makes spectrograms of them."""
        return hasattr(self.config, "conv_kernel")

    @property
    def min_samples(self) -> int:
        """The model's receptive field: a shorter clip gives not one frame."""
        if not self.takes_waveforms:
            # Wav2Vec2-BERT joins `stride` windows of its filter bank.
            windows = getattr(self.feature_extractor, "stride", 1)
            return samples_of_filter_windows(windows, self.sampling_rate)
        frames = getattr(self.config, "squeeze_factor", 1)  # SEW pools its frames
        if self.config.model_type == "wav2vec2-conformer":
            frames = 2  # its batch norm cannot train on one
        return self.samples_of_frames(frames)

    @property
    def max_samples(self) -> int | None:
        """What a model of a fixed window uses of a clip: Whisper's chunk, AST's longest spectrogram."""
        match self.config.model_type:
            case "whisper":
                return self.feature_extractor.n_samples
            case "audio-spectrogram-transformer":
                return samples_of_filter_windows(self.feature_extractor.max_length, self.sampling_rate)
        return None

    @property
    def max_seconds(self) -> float:
        """What of a clip is used; inf: all."""
        return math.inf if self.max_samples is None else self.max_samples / self.sampling_rate

    def frames_of_samples(self, samples: int) -> int:
        """Frames that the convolutional encoder makes of `samples` samples."""
        return self.frame_counts.frames_of_samples(samples)

    def samples_of_frames(self, frames: int) -> int:
        """Samples from which the convolutional encoder makes `frames` frames."""
        return self.frame_counts.samples_of_frames(frames)

    @property
    def frame_counts(self) -> FrameCounts:
        return FrameCounts(tuple(self.config.conv_kernel), tuple(self.config.conv_stride))


def samples_of_filter_windows(windows: int, sampling_rate: int) -> int:
    """Samples that the windows of a filter bank span: in every one here they are of 25 ms, 10 ms apart."""
    return round((0.025 + 0.010 * (windows - 1)) * sampling_rate)


@dataclass(frozen=True)
class LoadedModel:
    """A model with its feature extractor, ready for use."""

    model: Any  # a SpeechClassifier or a StockModel, float32
    backbone: Backbone
    notes: list[str] = field(default_factory=list)
    # What its forward pass is given of a clip: "audio", or what a frozen part of it has made of that, the
    # "features" of its convolutions or the "pooled" states of its encoder (training/features.py).
    takes: str = "audio"

    @property
    def padding_invariant(self) -> bool:
        """Whether a clip's logits are the same whatever is padded beside it."""
        config, extractor = self.backbone.config, self.backbone.feature_extractor
        return not self.backbone.is_stock or padding_changes_nothing(config, extractor)

    def compile(self) -> None:
        """torch.compile the model in a few pieces: each in one graph, for each shape that it meets.

        Layers share what is compiled, and LayerDrop, which no graph of all of them could hold, stays outside.
        The whole model in one piece takes several times as long to compile.
        """
        from torch._dynamo import config

        # Beyond its limits torch would give up: a length, padded or not, of a full batch and of an epoch's
        # last, training and evaluating, is a shape each.
        config.recompile_limit, config.accumulated_recompile_limit = 256, 4096
        if not self.backbone.is_stock:
            for piece in self.model.pieces():
                piece.compile(fullgraph=True, dynamic=False)
            return
        for layers in self.model.modules():
            for layer in layers if type(layers) is nn.ModuleList else ():
                layer.compile()

    def collator(self, edges: tuple[int, ...] = ()) -> Collator:
        """What makes batches for it; waveforms are padded to the next of `edges`, in samples."""
        backbone = self.backbone
        if self.takes == "pooled":
            return collate_pooled
        if self.takes == "features":
            frame_edges = tuple(map(backbone.frames_of_samples, edges))
            return FeatureCollator(backbone.frame_counts.samples_of_frames, frame_edges)
        if not backbone.takes_waveforms:
            return SpectrogramCollator(backbone.feature_extractor)
        with_lengths = not backbone.is_stock or backbone.feature_extractor.return_attention_mask
        return WaveformCollator(backbone.feature_extractor, with_lengths, edges)

    def training_collator(self, seed: int, edges: tuple[int, ...] = ()) -> Collator:
        """The same with SpecAugment's masks, where the model is configured to have them."""
        config, collate = self.backbone.config, self.collator(edges)
        if self.takes == "pooled" or not getattr(config, "apply_spec_augment", True):
            return collate
        if config.model_type == "whisper":  # draws its own
            return collate
        frames, channels = (
            Spans(
                getattr(config, f"mask_{axis}_prob", 0),
                getattr(config, f"mask_{axis}_length", 1),
                getattr(config, f"mask_{axis}_min_masks", 0),
            )
            for axis in ("time", "feature")
        )
        masks_channels = channels.prob and not self.backbone.is_stock  # which draws them itself
        if not frames.prob and not masks_channels:
            return collate
        # A spectrogram's mask counts frames already.
        frames_of = self.backbone.frame_counts.frames_of_samples if self.backbone.takes_waveforms else int
        hidden_size = getattr(config, "hidden_size", 0)
        return SpecAugment(
            collate, frames_of, seed, frames, channels if masks_channels else None, hidden_size
        )
