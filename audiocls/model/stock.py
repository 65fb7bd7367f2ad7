"""transformers' own model, unpatched: for all that encoder.py does not compute, and on request."""

from typing import Any

import torch
from torch import Tensor, nn

from audiocls.model.settings import ARCHITECTURES


class StockModel(nn.Module):
    """A model of `AutoModelForAudioClassification`, called as SpeechClassifier is."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model  # a transformers PreTrainedModel

    def forward(
        self,
        input_values: Tensor | None = None,
        lengths: Tensor | None = None,
        masked_frames: Tensor | None = None,
        **inputs: Tensor,
    ) -> Tensor:
        """Logits, float [batch, labels].

        Args:
            input_values: float32 [batch, samples], padded on the right.
            lengths: int64 [batch], the samples of each clip; None: the model is told of no padding.
            masked_frames: bool [batch, frames], True where SpecAugment hides a frame.
            inputs: instead of `input_values` what the model's feature extractor makes of them.
        """
        if input_values is not None:
            inputs["input_values"] = input_values
            if lengths is not None:
                samples = torch.arange(input_values.shape[1], device=lengths.device)
                inputs["attention_mask"] = samples < lengths[:, None]
        if masked_frames is not None:
            inputs["mask_time_indices"] = masked_frames
        return self.model(**inputs).logits

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Under transformers' own names, as they are saved: without a prefix."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.load_state_dict(*args, **kwargs)


def padding_changes_nothing(config: Any, feature_extractor: Any) -> bool:
    """Whether a clip's logits by transformers' model are the same whatever is padded beside it.

    They are where the feature extractor brings every clip to one length, or the model masks the padding well
    and is told of it. Else padding reaches real frames: through a norm over time (Wav2Vec2 and its kin with
    `feat_extract_norm` "group"), the positional convolutions (Data2Vec-Audio), the convolution modules
    (Wav2Vec2-Conformer) or the pooling of frames (SEW, SEW-D).
    """
    if config.model_type in ("audio-spectrogram-transformer", "whisper", "wav2vec2-bert"):
        return True
    is_masked = feature_extractor.return_attention_mask and not getattr(config, "conv_pos_batch_norm", False)
    return config.model_type in ARCHITECTURES and config.feat_extract_norm == "layer" and is_masked
