"""The same results, sooner: nothing in a model waits for the device, and a CPU has kernels of its own.

transformers' models ask the device which frames are masked and whether an attention mask masks anything at
all, and copy a 1 there to mark where clips end: each time the host waits for a GPU, ahead of which it could
run. What is here changes no parameter and no saved file.
"""

from typing import Any

import torch
from torch import Tensor

from audiocls.model.cpu import DroppedAttention, is_plain, make_fast_on_cpu

ATTENTION = "audiocls"  # our name among transformers' attention functions


def make_fast(model: Any, device: torch.device) -> None:
    """Prepare a model for training or classifying on `device`."""
    if getattr(getattr(model, "config", None), "_attn_implementation", None) == "sdpa":
        use_own_attention(model)
    for module in model.modules():
        if hasattr(module, "_mask_hidden_states"):
            select_masked_frames(module)
        if hasattr(module, "_get_feature_vector_attention_mask"):
            compare_lengths(module)
    if device.type == "cpu":
        make_fast_on_cpu(model)


def compile_parts(model: Any) -> None:
    """torch.compile each convolution and each transformer layer by itself.

    Layers share what is compiled, and LayerDrop, which would break a graph of all of them, stays outside: the
    whole model takes several times as long to compile.
    """
    from torch._dynamo import config
    from transformers.modeling_layers import GradientCheckpointingLayer

    # For each length, with and without a mask, training and evaluating; beyond 8, torch would give up.
    config.recompile_limit = 64
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()


def use_own_attention(model: Any) -> None:
    """Give a transformers model, which asks for attention and its mask by name, ours."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        """torch's, but for a CPU's in float32 with dropout."""
        dropout, scaling = options.get("dropout", 0.0), options.get("scaling")
        is_ours = (
            0 < dropout < 1
            and is_plain(query, key)
            and query.shape[1] == key.shape[1]
            and not getattr(module, "is_causal", True)
            and (attention_mask is None or attention_mask.dtype == torch.bool)
            and options.get("position_bias") is None
        )
        if not is_ours:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        attended = DroppedAttention.apply(query, key, value, attention_mask, scale, dropout)
        return attended.transpose(1, 2).contiguous(), None

    def mask(*sizes: int, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
        """Of a batch with padding, without asking whether it has any."""
        if attention_mask is not None:
            options["allow_is_bidirectional_skip"] = False
        return sdpa_mask(*sizes, attention_mask=attention_mask, **options)

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, mask)
    model.set_attn_implementation(ATTENTION)


def select_masked_frames(encoder: Any) -> None:
    """Let SpecAugment's masks, where the batch brings them, be a selection instead of an index assignment."""
    mask_by_index = encoder._mask_hidden_states

    def mask_hidden_states(
        hidden_states: Tensor, mask_time_indices: Tensor | None = None, **options: Any
    ) -> Tensor:
        if mask_time_indices is None or encoder.config.mask_feature_prob > 0:
            return mask_by_index(hidden_states, mask_time_indices=mask_time_indices, **options)
        masked = encoder.masked_spec_embed.to(hidden_states.dtype)
        return torch.where(mask_time_indices[..., None], masked, hidden_states)

    encoder._mask_hidden_states = mask_hidden_states


def compare_lengths(model: Any) -> None:
    """Let the attention mask of frames be a comparison with each clip's length, not an index assignment."""
    frames_of = model._get_feat_extract_output_lengths

    def frames_mask(num_frames: int, attention_mask: Tensor, **options: Any) -> Tensor:
        lengths = frames_of(attention_mask.sum(-1), **options)
        return torch.arange(num_frames, device=attention_mask.device) < lengths[:, None]

    model._get_feature_vector_attention_mask = frames_mask
