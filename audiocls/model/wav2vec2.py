"""Wav2Vec2's forward pass for classifying, in plain torch.

It reads what `transformers.Wav2Vec2ForSequenceClassification` writes and gives its logits, within rounding.
`infer.py` uses it for a saved model, because importing transformers' own takes longer than all else that one
file needs. Training, and every other architecture, has the model of transformers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocls.errors import UserError
from audiocls.model.trust import known_fields, labels_in, read_json, read_tensors

EXTRACTOR_SETTINGS = ("sampling_rate", "do_normalize", "padding_value", "return_attention_mask")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True)
class Output:
    logits: Tensor  # [batch, labels]


class Wav2Vec2(nn.Module):
    """The encoder under a mean over time and a linear head; dropout, masking and adapters are left out.

    Its parameters have the names and shapes of transformers' model.
    """

    main_input_name = "input_values"

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.wav2vec2 = Encoder(config)
        if config.use_weighted_layer_sum:
            self.layer_weights = nn.Parameter(torch.empty(config.num_hidden_layers + 1))
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, len(config.id2label))

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Output:
        """float32 [batch, samples] and, where some are padding, a mask [batch, samples] -> logits."""
        is_real = None if attention_mask is None else self.real_frames(attention_mask)
        layers = self.wav2vec2(input_values, is_real)
        hidden_states = layers[-1]
        if self.config.use_weighted_layer_sum:
            hidden_states = torch.tensordot(self.layer_weights.softmax(-1), torch.stack(layers), dims=1)
        elif self.config.do_stable_layer_norm:
            hidden_states = self.wav2vec2.encoder["layer_norm"](hidden_states)
        hidden_states = self.projector(hidden_states)  # [batch, frames, projection]
        if is_real is None:
            pooled = hidden_states.mean(1)
        else:
            pooled = (hidden_states * is_real[..., None]).sum(1) / is_real.sum(1, keepdim=True)
        return Output(self.classifier(pooled))

    def real_frames(self, attention_mask: Tensor) -> Tensor:
        """[batch, samples], bool or 0 and 1, -> bool [batch, frames]."""
        num_frames, longest = attention_mask.sum(-1), attention_mask.shape[1]
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            num_frames, longest = (num_frames - kernel) // stride + 1, (longest - kernel) // stride + 1
        return torch.arange(longest, device=num_frames.device) < num_frames[:, None]


class Encoder(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.feature_extractor: Any = nn.ModuleDict(
            {"conv_layers": nn.ModuleList(Convolution(config, i) for i in range(len(config.conv_dim)))}
        )
        channels, width = config.conv_dim[-1], config.hidden_size
        self.feature_projection: Any = nn.ModuleDict(
            {
                "layer_norm": nn.LayerNorm(channels, eps=config.layer_norm_eps),
                "projection": nn.Linear(channels, width),
            }
        )
        kernel, groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
        position = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        self.encoder: Any = nn.ModuleDict(
            {
                "pos_conv_embed": nn.ModuleDict({"conv": position}),
                "layer_norm": nn.LayerNorm(width, eps=config.layer_norm_eps),
                "layers": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers)),
            }
        )

    def forward(self, input_values: Tensor, is_real: Tensor | None) -> list[Tensor]:
        """[batch, samples], bool [batch, frames] -> [batch, frames, hidden] before and after each layer."""
        hidden_states = input_values[:, None]
        for convolution in self.feature_extractor["conv_layers"]:
            hidden_states = convolution(hidden_states)
        hidden_states = self.feature_projection["layer_norm"](hidden_states.transpose(1, 2))
        hidden_states = self.feature_projection["projection"](hidden_states)
        mask = None
        if is_real is not None:
            hidden_states = hidden_states * is_real[..., None]
            mask = is_real[:, None, None]
        num_frames = hidden_states.shape[1]
        position = self.encoder["pos_conv_embed"]["conv"](hidden_states.transpose(1, 2))[..., :num_frames]
        activation = ACTIVATIONS[self.config.feat_extract_activation]
        hidden_states = hidden_states + activation(position).transpose(1, 2)
        if not self.config.do_stable_layer_norm:
            hidden_states = self.encoder["layer_norm"](hidden_states)
        layers = [hidden_states]
        for layer in self.encoder["layers"]:
            layers.append(layer(layers[-1], mask))
        return layers


class Convolution(nn.Module):
    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        channels, width = (1, *config.conv_dim)[index], config.conv_dim[index]
        kernel, stride = config.conv_kernel[index], config.conv_stride[index]
        self.conv = nn.Conv1d(channels, width, kernel, stride, bias=config.conv_bias)
        self.norms_channels = config.feat_extract_norm == "layer"
        if self.norms_channels:
            self.layer_norm: Any = nn.LayerNorm(width)
        else:  # the first only, over time
            self.layer_norm = nn.GroupNorm(width, width) if index == 0 else None
        self.activation = ACTIVATIONS[config.feat_extract_activation]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[batch, channels, time] -> the same, shorter."""
        hidden_states = self.conv(hidden_states)
        if self.norms_channels:
            hidden_states = self.layer_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        elif self.layer_norm is not None:
            hidden_states = self.layer_norm(hidden_states)
        return self.activation(hidden_states)


class Layer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        self.attention: Any = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
        self.layer_norm = nn.LayerNorm(width, eps=eps)
        self.feed_forward: Any = nn.ModuleDict(
            {
                "intermediate_dense": nn.Linear(width, config.intermediate_size),
                "output_dense": nn.Linear(config.intermediate_size, width),
            }
        )
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.num_heads = config.num_attention_heads
        self.norms_first = config.do_stable_layer_norm

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        """[batch, frames, hidden], mask bool [batch, 1, 1, frames] or None -> [batch, frames, hidden]."""
        if self.norms_first:
            hidden_states = hidden_states + self.attend(self.layer_norm(hidden_states), mask)
            return hidden_states + self.feed(self.final_layer_norm(hidden_states))
        hidden_states = self.layer_norm(hidden_states + self.attend(hidden_states, mask))
        return self.final_layer_norm(hidden_states + self.feed(hidden_states))

    def attend(self, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (
            self.attention[name](hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.attention["out_proj"](attended.transpose(1, 2).flatten(2))

    def feed(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.feed_forward["intermediate_dense"](hidden_states)
        return self.feed_forward["output_dense"](self.activation(hidden_states))


def read_saved(folder: Path) -> tuple[Wav2Vec2, SimpleNamespace] | None:
    """The model in `folder`, and its feature extractor's settings; None where anything is not as it is here.

    Whoever asks then loads it as any other model, which says what is wrong.
    """
    try:
        path, weights = folder / "config.json", folder / "model.safetensors"
        values = read_json(path)
        config = SimpleNamespace(**known_fields(values, values.keys() - {"id2label", "label2id"}, path))
        settings = read_json(folder / "preprocessor_config.json")
        settings = known_fields(settings, settings, folder / "preprocessor_config.json")
        if (
            config.model_type != "wav2vec2"
            or config.architectures != ["Wav2Vec2ForSequenceClassification"]
            or settings["feature_extractor_type"] != "Wav2Vec2FeatureExtractor"
            or {type(settings[name]) for name in ("do_normalize", "return_attention_mask")} != {bool}
            or type(settings["sampling_rate"]) is not int
            or any(isinstance(values[name], str) for name in values if name.endswith(("dropout", "prob")))
            or getattr(config, "add_adapter", False)
            or getattr(config, "adapter_attn_dim", None) is not None
        ):
            return None
        config.id2label = dict(enumerate(labels_in(values, path)))
        config.problem_type = getattr(config, "problem_type", None)
        feature_extractor = SimpleNamespace(**{name: settings[name] for name in EXTRACTOR_SETTINGS})
        with torch.device("meta"):
            model = Wav2Vec2(config)
        model.load_state_dict(with_plain_weights(read_tensors([weights])), assign=True)
    except (UserError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None
    return model.eval().requires_grad_(False), feature_extractor


def with_plain_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in float32, the positional convolution's weight multiplied out of its norm and direction."""
    tensors = {name: tensor.float() for name, tensor in tensors.items() if "masked_spec_embed" not in name}
    prefix = "wav2vec2.encoder.pos_conv_embed.conv."
    direction = tensors.pop(f"{prefix}parametrizations.weight.original1")
    norm = tensors.pop(f"{prefix}parametrizations.weight.original0")
    tensors[f"{prefix}weight"] = torch._weight_norm(direction, norm, dim=2)
    return tensors
