"""Speech encoders from waveform to logits, in plain torch: read it from top to bottom.

Wav2Vec2, HuBERT, UniSpeech, UniSpeech-SAT and WavLM under a classification head: one forward pass for
training and for classifying. The mathematics and the parameters' names and shapes are those of transformers'
classes (settings.ARCHITECTURES): their weights are loaded here, and they load what is saved here. Two things
are added: padding changes no result, and SpecAugment's masks and what a frozen part made are arguments.
Attributes have transformers' names, too: `encoder.encoder` is the transformer.

    input_values    float32 [batch, samples]            waveforms, zero-padded on the right
    features        float [batch, channels, frames]     what the convolutions make of them
    hidden_states   float [batch, frames, hidden]       before the first transformer layer, and after each
    logits          float [batch, labels]               of the mean over a clip's frames

`part("layer 3")` is a range of that name in a profiler's trace.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function as part
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from audiocls.model.blocks import (
    BIAS_FRAMES,
    blocks_of_samples,
    in_blocks,
    is_long,
    joined,
    norm_before_convolving,
    without_offset,
)
from audiocls.model.kernels import attention, by_products, dropout, linear, long_convolution, prefers_products
from audiocls.model.settings import (
    ACTIVATIONS,
    EncoderConfig,
    frames_after_each,
    halves,
    samples_to_halve,
)


class SpeechClassifier(nn.Module):
    """An encoder under a mean over each clip's frames and a linear head."""

    def __init__(self, config: EncoderConfig, num_labels: int) -> None:
        super().__init__()
        self.config = config
        # transformers names it after the architecture: `wav2vec2.encoder.layers.0.attention.q_proj.weight`.
        self.base_name = config.model_type.replace("-", "_")
        self.add_module(self.base_name, Encoder(config))
        if config.use_weighted_layer_sum:
            num_states = config.num_hidden_layers + 1
            self.layer_weights = nn.Parameter(torch.full((num_states,), 1 / num_states))
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, num_labels)

    @property
    def encoder(self) -> "Encoder":
        return getattr(self, self.base_name)

    def recompute_activations(self) -> None:
        """Keep only what convolutions and layers take: the rest is computed again for the backward pass."""
        self.encoder.feature_extractor.recomputes = self.encoder.encoder.recomputes = True

    def pieces(self) -> list[nn.Module]:
        """Nearly all of it, in parts that are alike in training and evaluation: what is compiled."""
        transformer = self.encoder.encoder
        convolutions, projection = self.encoder.feature_extractor, self.encoder.feature_projection
        return [convolutions, projection, transformer.pos_conv_embed, *transformer.layers]

    def forward(
        self,
        input_values: Tensor | None = None,
        lengths: Tensor | None = None,
        masked_frames: Tensor | None = None,
        masked_channels: Tensor | None = None,
        features: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> Tensor:
        """Logits, float [batch, labels], of clips whose result does not depend on what is padded beside them.

        Args:
            input_values: float32 [batch, samples], padded on the right.
            lengths: int64 [batch], the samples of each clip; None: nothing is padded.
            masked_frames: bool [batch, frames], True where SpecAugment hides a frame; None: nowhere.
            masked_channels: bool [batch, hidden], likewise; None: nowhere.
            features: float [batch, channels, frames], instead of `input_values` what the convolutions made of
                them. `lengths` counts samples all the same.
            pooled: float [batch, layers + 1, hidden], instead of all these what `pooled_states` made of them.
        """
        if pooled is not None:
            return self.head(pooled)
        states: list[Tensor] | None = [] if self.config.use_weighted_layer_sum else None
        hidden_states, is_real = self.encoder(
            input_values, lengths, masked_frames, masked_channels, features, states
        )
        with part("head"):
            if states is not None:
                weights = self.layer_weights.softmax(-1)
                hidden_states = sum(weight * state for weight, state in zip(weights, states, strict=True))
            projected = self.projector(hidden_states)  # [batch, frames, projection]
            if is_real is None:
                pooled = projected.mean(1)
            else:
                pooled = projected.masked_fill(~is_real, 0).sum(1) / is_real.sum(1)
            return self.classifier(pooled)

    def pooled_states(self, input_values: Tensor) -> Tensor:
        """All that the head takes of one clip, float [1, layers + 1, hidden]: means of its hidden states.

        They are taken over the frames, of the hidden state before the first layer and of those after each.
        """
        states: list[Tensor] = []
        self.encoder(input_values, states=states)
        return torch.stack(states, 1).mean(2)

    def head(self, pooled: Tensor) -> Tensor:
        """The logits of `pooled_states`: as in `forward`, whose steps after the encoder are all linear.

        So the mean over frames may come first.
        """
        with part("head"):
            hidden_states = (self.layer_weights.softmax(-1)[:, None] * pooled).sum(1)
            return self.classifier(self.projector(hidden_states))


def call(function: Callable[..., Tensor], *inputs: Any, recompute: bool) -> Tensor:
    """`function(*inputs)`; to `recompute` is Chen et al. 2016, https://arxiv.org/abs/1604.06174."""
    return checkpoint(function, *inputs, use_reentrant=False) if recompute else function(*inputs)


class Encoder(nn.Module):
    """Convolutions, a projection and a transformer: what is pretrained."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.feature_extractor = Convolutions(config)
        self.feature_projection = Projection(config)
        if config.has_mask_embedding:
            self.masked_spec_embed = nn.Parameter(torch.rand(config.hidden_size))
        self.encoder = Transformer(config)

    def forward(
        self,
        input_values: Tensor | None,
        lengths: Tensor | None = None,
        masked_frames: Tensor | None = None,
        masked_channels: Tensor | None = None,
        features: Tensor | None = None,
        states: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The last hidden state; and bool [batch, frames, 1], what of it is real, None if nothing is padded.

        The hidden states before the first layer and after each are added to `states`.
        """
        with part("convolutions"):
            if features is None:
                features = self.feature_extractor(input_values, lengths)
            elif features.dtype == torch.float16:  # as they are cached
                features = features.float()
        with part("projection"):
            hidden_states = self.feature_projection(features.transpose(1, 2))
            del features  # of long audio 0.1 MB a second
            is_real = None
            if masked_frames is not None:
                masked = self.masked_spec_embed.to(hidden_states.dtype)
                hidden_states = torch.where(masked_frames[..., None], masked, hidden_states)
            if masked_channels is not None:
                hidden_states = hidden_states.masked_fill(masked_channels[:, None], 0)
            if lengths is not None:
                frames = torch.arange(hidden_states.shape[1], device=lengths.device)[:, None]
                is_real = frames < self.feature_extractor.num_frames(lengths)[:, None, None]
                hidden_states = hidden_states.masked_fill(~is_real, 0)
        return self.encoder(hidden_states, is_real, states), is_real


class Convolutions(nn.Module):
    """Strided convolutions that make frames (of 20 ms in the published models) from samples."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.recomputes = False
        numbers = range(len(config.conv_dim))
        self.conv_layers: Any = nn.ModuleList(Convolution(config, number) for number in numbers)

    def forward(self, input_values: Tensor, lengths: Tensor | None = None) -> Tensor:
        """float32 [batch, samples] -> features, float [batch, channels, frames]."""
        num_samples = input_values.shape[1]
        if is_long(frames_after_each(self.config, num_samples)[-1]):
            return self.in_blocks(input_values, lengths)
        # The axis of time: channels are the other one, or frames are rows, as is better for matrix products.
        time = 1 if prefers_products(input_values) and halves(self.config) else 2
        if time == 1:  # zeros follow, so that each halves what the one before makes: not all of that is real
            input_values = F.pad(input_values, (0, samples_to_halve(self.config, num_samples) - num_samples))
            if lengths is None:
                lengths = torch.full(input_values.shape[:1], num_samples, device=input_values.device)
        hidden_states = input_values.unsqueeze(3 - time)
        frames: list[Any] = [None] * len(self.conv_layers)  # None: all are real
        if lengths is not None:
            frames = frames_after_each(self.config, lengths)
        for convolution, count in zip(self.conv_layers, frames, strict=True):
            hidden_states = call(convolution, hidden_states, count, time, recompute=self.recomputes)
        if time == 1:
            hidden_states = hidden_states[:, : frames_after_each(self.config, num_samples)[-1]].mT
        return hidden_states

    def in_blocks(self, input_values: Tensor, lengths: Tensor | None) -> Tensor:
        """The same of long audio, a block of frames after the other: each depends on a few samples alone.

        Only a norm over time depends on all of them: what it does is found out before.
        """
        first, over_time = self.conv_layers[0], None
        if isinstance(first.layer_norm, nn.GroupNorm):
            frames = None if lengths is None else frames_after_each(self.config, lengths)[0]
            # The norm removes an offset in any case; before that, bf16 would spend its few digits on it.
            input_values = without_offset(input_values, lengths)
            over_time = norm_before_convolving(input_values, first.conv, first.layer_norm, frames)

        def features_of(samples: Tensor) -> Tensor:
            hidden_states = samples.unsqueeze(1)
            for convolution in self.conv_layers:
                hidden_states = convolution(hidden_states, over_time=over_time)
            return hidden_states

        blocks = map(features_of, blocks_of_samples(input_values, self.config))
        return joined(blocks, frames_after_each(self.config, input_values.shape[1])[-1], 2)

    def num_frames(self, lengths: Tensor) -> Tensor:
        """The frames that come of so many samples, int64 [batch] of int64 [batch]."""
        return frames_after_each(self.config, lengths)[-1]


class Convolution(nn.Module):
    """A convolution, its norm, if it has one, and the activation."""

    def __init__(self, config: EncoderConfig, number: int) -> None:
        super().__init__()
        channels, width = (1, *config.conv_dim)[number], config.conv_dim[number]
        kernel, stride = config.conv_kernel[number], config.conv_stride[number]
        self.conv = nn.Conv1d(channels, width, kernel, stride, bias=config.conv_bias)
        self.activation = ACTIVATIONS[config.feat_extract_activation]
        if config.feat_extract_norm == "layer":
            self.layer_norm: nn.Module | None = nn.LayerNorm(width)
        else:
            self.layer_norm = nn.GroupNorm(width, width) if number == 0 else None

    def forward(
        self,
        hidden_states: Tensor,
        num_frames: Tensor | None = None,
        time: int = 2,
        over_time: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """float [batch, channels, time] -> the same, shorter; `num_frames`, int64 [batch], of it are real.

        With `time` 1 it is float [batch, time, channels], and a few frames more come of it. Where it is a
        block of the frames, `over_time` is what a norm over all of them multiplies by, and adds.
        """
        is_in_rows, conv = time == 1, self.conv
        if is_in_rows:
            hidden_states = by_products(hidden_states, conv.weight, conv.bias, conv.stride[0])
        else:
            hidden_states = conv(hidden_states)
        if isinstance(self.layer_norm, nn.LayerNorm):
            norm = self.layer_norm
            hidden_states = norm(hidden_states) if is_in_rows else norm(hidden_states.mT).mT
        elif isinstance(self.layer_norm, nn.GroupNorm) and over_time is not None:
            scale, shift = over_time
            hidden_states = torch.addcmul(shift, hidden_states.to(scale), scale)  # under autocast, too
        elif isinstance(self.layer_norm, nn.GroupNorm):
            hidden_states = norm_over_time(hidden_states, self.layer_norm, num_frames, time)
        return self.activation(hidden_states)


def norm_over_time(
    hidden_states: Tensor, norm: nn.GroupNorm, num_frames: Tensor | None, time: int = 2
) -> Tensor:
    """`norm`, of one channel a group, over the first `num_frames` frames of each clip.

    float [batch, channels, frames], or with `time` 1 [batch, frames, channels] -> the same; padded frames
    become the bias. Over all frames, as in transformers, zeros beside a clip would change every value of it.
    """
    if num_frames is None:
        return norm(hidden_states)
    hidden_states = hidden_states.to(norm.weight.dtype)  # under autocast, too
    count = num_frames[:, None, None]
    frames = torch.arange(hidden_states.shape[time], device=count.device)
    is_real = (frames < num_frames[:, None]).unsqueeze(3 - time)  # bool, [batch, 1, frames] or the like
    # The largest tensors there are: one more than torch's own norm makes; in place, so that it is not two.
    mean = (hidden_states * is_real).sum(time, keepdim=True) / count
    centered = (hidden_states - mean).mul_(is_real)
    variance = torch.linalg.vector_norm(centered, dim=time, keepdim=True).square() / count
    weight, bias = (values.unsqueeze(time - 1) for values in (norm.weight, norm.bias))
    return torch.addcmul(bias, centered, weight * torch.rsqrt(variance + norm.eps))


class Projection(nn.Module):
    """From the convolutions' width to the transformer's."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        channels = config.conv_dim[-1]
        if config.feat_proj_layer_norm:
            self.layer_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.projection = nn.Linear(channels, config.hidden_size)
        self.config = config

    def forward(self, features: Tensor) -> Tensor:
        """float [batch, frames, channels] -> float [batch, frames, hidden]."""
        if self.config.feat_proj_layer_norm:
            features = self.layer_norm(features)
        return dropout(linear(features, self.projection), self.config.feat_proj_dropout, self.training)


class Transformer(nn.Module):
    """Layers over frames that know their position by a convolution over their neighbours."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.recomputes = False
        self.pos_conv_embed = PositionalConvolution(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers: Any = nn.ModuleList(Layer(config, number) for number in range(config.num_hidden_layers))

    def forward(
        self, hidden_states: Tensor, is_real: Tensor | None, states: list[Tensor] | None = None
    ) -> Tensor:
        """float [batch, frames, hidden], bool [batch, frames, 1] -> the last hidden state, like the first."""
        with part("positional convolution"):
            hidden_states = hidden_states + self.pos_conv_embed(hidden_states)
            if not self.config.do_stable_layer_norm:
                hidden_states = self.layer_norm(hidden_states)
            hidden_states = dropout(hidden_states, self.config.hidden_dropout, self.training)
        # bool [batch, 1, 1, frames], True = attended to
        mask = None if is_real is None else is_real.mT[:, None]
        position_bias = None
        if self.config.is_wavlm:
            position_bias = self.layers[0].attention.position_bias(hidden_states.shape[1])
        if states is not None:
            states.append(hidden_states)
        for number, layer in enumerate(self.layers):
            with part(f"layer {number}"):
                if not self.is_dropped(number):
                    recompute = self.recomputes
                    hidden_states = call(layer, hidden_states, mask, position_bias, recompute=recompute)
            if states is not None:
                states.append(hidden_states)
        return self.layer_norm(hidden_states) if self.config.do_stable_layer_norm else hidden_states

    def is_dropped(self, number: int) -> bool:
        """LayerDrop (Fan et al. 2019, https://arxiv.org/abs/1909.11556), drawn on the CPU: nothing waits."""
        if not self.training or self.config.layerdrop == 0 or (number == 0 and self.config.is_wavlm):
            return False
        return bool(torch.rand([]) < self.config.layerdrop)


class PositionalConvolution(nn.Module):
    """A convolution of many taps over the frames: their relative position, learned."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width, taps = config.hidden_size, config.num_conv_pos_embeddings
        groups = config.num_conv_pos_embedding_groups
        self.conv = weight_norm(nn.Conv1d(width, width, taps, padding=taps // 2, groups=groups), dim=2)
        self.activation = ACTIVATIONS[config.feat_extract_activation]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """float [batch, frames, hidden] -> the same."""
        num_frames = hidden_states.shape[1]  # an even number of taps makes one more
        return self.activation(long_convolution(hidden_states, self.conv)[:, :num_frames])


class Layer(nn.Module):
    """Self-attention and feed-forward, each with its residual and its norm."""

    def __init__(self, config: EncoderConfig, number: int) -> None:
        super().__init__()
        self.config = config
        self.attention = Attention(config, number)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor, mask: Tensor | None, position_bias: Tensor | None) -> Tensor:
        """float [batch, frames, hidden] -> the same; mask and bias are those of Attention."""
        p = self.config.hidden_dropout
        if self.config.do_stable_layer_norm:
            attended = self.attention(self.layer_norm(hidden_states), mask, position_bias)
            hidden_states = hidden_states + dropout(attended, p, self.training)
            return hidden_states + in_blocks(self.feed_forward, self.final_layer_norm(hidden_states))
        attended = self.attention(hidden_states, mask, position_bias)
        hidden_states = self.layer_norm(hidden_states + dropout(attended, p, self.training))
        return self.final_layer_norm(hidden_states + in_blocks(self.feed_forward, hidden_states))


class Attention(nn.Module):
    """Self-attention of several heads; WavLM's also has a bias for how far frames are apart."""

    def __init__(self, config: EncoderConfig, number: int) -> None:
        super().__init__()
        self.config = config
        width, heads = config.hidden_size, config.num_attention_heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        if config.is_wavlm:
            self.gru_rel_pos_const = nn.Parameter(torch.ones(1, heads, 1, 1))
            self.gru_rel_pos_linear = nn.Linear(width // heads, 8)
            if number == 0:
                self.rel_attn_embed = nn.Embedding(config.num_buckets, heads)

    def forward(self, hidden_states: Tensor, mask: Tensor | None, position_bias: Tensor | None) -> Tensor:
        """float [batch, frames, hidden] -> the same, of what each frame attends to.

        `mask`, bool [batch, 1, 1, frames], is True where that may be; `position_bias`, float [heads, frames,
        frames], is WavLM's, of long audio with the last frame's row first.
        """
        heads = self.config.num_attention_heads
        query, key, value = (
            linear(hidden_states, projection).unflatten(-1, (heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # [batch, heads, frames, width of a head]
        p = self.config.attention_dropout if self.training else 0.0
        by_head = hidden_states.unflatten(-1, (heads, -1)).transpose(1, 2)
        if position_bias is not None and is_long(hidden_states.shape[1]):
            # Copied and gated for a block of frames at a time: for all it is the square of their number.
            num_frames, parts = hidden_states.shape[1], []
            for start in range(0, num_frames, BIAS_FRAMES):
                end = min(start + BIAS_FRAMES, num_frames)
                bias = position_bias[:, num_frames - end : num_frames - start].flip(1)
                bias = self.gated(bias, by_head[:, :, start:end], mask)
                parts.append(attention(query[:, :, start:end], key, value, bias, p))
            attended = torch.cat(parts, 2)
        else:
            if position_bias is not None:
                mask = self.gated(position_bias, by_head, mask)
            attended = attention(query, key, value, mask, p)
        return linear(attended.transpose(1, 2).flatten(2), self.out_proj)

    def position_bias(self, num_frames: int) -> Tensor:
        """float [heads, frames, frames]: a learned number for each bucket of distances between frames.

        The buckets are T5's (Raffel et al. 2020, https://arxiv.org/abs/1910.10683): near distances have one
        each, farther ones share them by their logarithm. Of long audio the last frame's row comes first: each
        row is then the one before it, moved on by one distance, so that all are views of one list.
        """
        device = self.rel_attn_embed.weight.device
        if is_long(num_frames):
            distance = torch.arange(1 - num_frames, num_frames, device=device)
        else:
            position = torch.arange(num_frames, device=device)
            distance = position - position[:, None]
        half = self.config.num_buckets // 2  # for each direction
        exact = half // 2
        far = torch.log(distance.abs().float() / exact) / math.log(self.config.max_bucket_distance / exact)
        far = (exact + far * (half - exact)).long().clamp(max=half - 1)
        bucket = torch.where(distance.abs() < exact, distance.abs(), far) + half * (distance > 0)
        bias = self.rel_attn_embed(bucket).movedim(-1, 0)
        return bias.contiguous().unfold(1, num_frames, 1) if is_long(num_frames) else bias

    def gated(self, position_bias: Tensor, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        """The bias times what each frame makes of it, to add to scores: float [batch, heads, frames, frames].

        `hidden_states` are split into heads, [batch, heads, frames, width of a head]. Where `mask` is False
        the result is -inf. Source: Chen et al. 2021, https://arxiv.org/abs/2110.13900, section 3.1.
        """
        gates = self.gru_rel_pos_linear(hidden_states).unflatten(-1, (2, 4)).sum(-1).sigmoid()
        update, reset = gates.chunk(2, dim=-1)
        bias = (update * (reset * self.gru_rel_pos_const - 1.0) + 2.0) * position_bias
        return bias if mask is None else bias.masked_fill(~mask, -math.inf)


class FeedForward(nn.Module):
    """Two linear layers with the activation between them."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.activation(linear(hidden_states, self.intermediate_dense))
        hidden_states = dropout(hidden_states, self.config.activation_dropout, self.training)
        hidden_states = linear(hidden_states, self.output_dense)
        return dropout(hidden_states, self.config.hidden_dropout, self.training)
