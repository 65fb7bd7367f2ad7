"""Padding that changes no result.

`facebook/wav2vec2-base` and its kin normalise the output of their first convolution over time (group norm
with one channel a group) and are used without an attention mask: zeros on the right then change every logit.
Here that norm is computed over the real frames only, and the attention mask does the rest: a clip in a padded
batch gives what it gives alone. Nothing is added to the weights, so the model loads, and scores clip by clip,
anywhere.
"""

from typing import Any

import torch
from torch import Tensor, nn

# Architectures in which, but for the group norm, the attention mask keeps padding out of every result.
MASKED_WELL = {"wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "wav2vec2-bert"}
# Those whose feature extractor brings every clip to one length.
OF_ONE_LENGTH = {"audio-spectrogram-transformer", "whisper"}
# In the others padding reaches real frames: through the positional convolutions (Data2Vec-Audio), the
# convolution modules (Wav2Vec2-Conformer), the pooling of frames (SEW, SEW-D).


class MaskedGroupNorm(nn.GroupNorm):
    """Group norm of one channel a group, over the first `num_frames` frames of each clip."""

    num_frames: Tensor | None = None  # int64 [batch]; None: nothing is padded

    def forward(self, hidden_states: Tensor) -> Tensor:
        """float [batch, channels, frames] -> the same; padded frames become the bias."""
        if self.num_frames is None:
            return super().forward(hidden_states)
        hidden_states = hidden_states.float()
        frames = torch.arange(hidden_states.shape[-1], device=hidden_states.device)
        is_real = (frames < self.num_frames[:, None])[:, None]  # bool [batch, 1, frames]
        count = self.num_frames[:, None, None]
        # These are the largest tensors there are: one more is made than torch's own norm would, none is kept.
        mean = (hidden_states * is_real).sum(-1, keepdim=True) / count
        centered = (hidden_states - mean).mul_(is_real)
        variance = torch.linalg.vector_norm(centered, dim=-1, keepdim=True).square() / count
        scale = self.weight[:, None] * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias[:, None], centered, scale)


def make_padding_invariant(model: Any) -> bool:
    """Let a clip's logits not depend on the padding beside it, wherever an `attention_mask` is passed.

    Returns whether they now do not; the architectures that cannot be helped are left as they are. The model's
    parameters and their names do not change.
    """
    config = model.config
    if config.model_type in MASKED_WELL and getattr(config, "feat_extract_norm", None) == "group":
        norm: Any = next(module for module in model.modules() if isinstance(module, nn.GroupNorm))
        norm.__class__ = MaskedGroupNorm
        kernel, stride = config.conv_kernel[0], config.conv_stride[0]

        def count_frames(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            mask = kwargs.get("attention_mask")
            norm.num_frames = None if mask is None else (mask.sum(-1) - kernel) // stride + 1

        model.register_forward_pre_hook(count_frames, with_kwargs=True)
    return config.model_type in MASKED_WELL | OF_ONE_LENGTH
