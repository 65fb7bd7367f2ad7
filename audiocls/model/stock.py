"""transformers' own model, unpatched: for all that encoder.py does not compute, and on request."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from audiocls.errors import UserError
from audiocls.hub import import_transformers
from audiocls.model.kernels import OneDNNMode
from audiocls.model.settings import ARCHITECTURES

# Fields of every config that are not taken from a file: they change what forward returns, or are ours to say.
NOT_KEPT = set(
    "architectures chunk_size_feed_forward dtype id2label is_encoder_decoder label2id output_hidden_states "
    "problem_type return_dict transformers_version".split()
)

MOST_NEW_VALUES = 50_000_000  # that a model may have beside those in its files: a head of its own


def stock_config_class(name: str, model_type: Any) -> tuple[Any, set[str]]:
    """transformers' class for the config of such a model, and the fields that are read from its config.json.

    Raises UserError where `model_type` is none that classifies audio.
    """
    transformers = import_transformers()
    from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES

    if model_type not in list(MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES):
        known = ", ".join(sorted(MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES))
        raise UserError(f"{name} is a {model_type}, not one that classifies audio. These do: {known}.")
    config_class = transformers.CONFIG_MAPPING[model_type]
    return config_class, {field.name for field in dataclasses.fields(config_class)} - NOT_KEPT


def load_stock(
    name: str, config: Any, labels: Sequence[str], problem_type: Any, tensors: dict[str, Tensor]
) -> tuple[Any, list[str], list[str]]:
    """transformers' model in float32 with a head for `labels`, and two lists of names of weights.

    The first are missing in `tensors`, or of another shape there; the second are left over there. Raises
    UserError where the config describes far more weights than there are.
    """
    from transformers import AutoModelForAudioClassification

    config.id2label = dict(enumerate(labels))
    config.label2id = {label: id for id, label in enumerate(labels)}
    config.problem_type = problem_type
    model_class = AutoModelForAudioClassification._model_mapping[type(config)]
    with torch.device("meta"):
        described = sum(tensor.numel() for tensor in model_class(config).state_dict().values())
    if described > (there := sum(tensor.numel() for tensor in tensors.values())) + MOST_NEW_VALUES:
        raise UserError(f"{name}: its config describes {described:,} weights, its files hold {there:,}.")
    model, report = model_class.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # reported, and judged by our callers
        output_loading_info=True,
    )
    unfit = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if "layer_weights" in unfit:  # left by transformers as the memory was
        nn.init.constant_(model.layer_weights, 1 / len(model.layer_weights))
    return model, sorted(unfit), sorted(report["unexpected_keys"])


class StockModel(nn.Module):
    """A model of `AutoModelForAudioClassification`, called as SpeechClassifier is."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model  # a transformers PreTrainedModel
        self.recomputes = False

    def forward(
        self,
        input_values: Tensor | None = None,
        lengths: Tensor | None = None,
        masked_frames: Tensor | None = None,
        pooled: Tensor | None = None,
        **inputs: Tensor,
    ) -> Tensor:
        """Logits, float [batch, labels].

        Args:
            input_values: float32 [batch, samples], padded on the right.
            lengths: int64 [batch], the samples of each clip; None: the model is told of no padding.
            masked_frames: bool [batch, frames], True where SpecAugment hides a frame.
            pooled: float [batch, states, hidden], instead of all these what `pooled_states` made of them.
            inputs: instead of `input_values` what the model's feature extractor makes of them.
        """
        if pooled is not None:
            return self.head(pooled)
        if input_values is not None:
            inputs["input_values"] = input_values
            if lengths is not None:
                samples = torch.arange(input_values.shape[1], device=lengths.device)
                inputs["attention_mask"] = samples < lengths[:, None]
        if masked_frames is not None:
            inputs["mask_time_indices"] = masked_frames
        # What is computed again must be computed in the same way, and that happens outside of any mode.
        with contextlib.nullcontext() if self.recomputes else OneDNNMode():
            return self.model(**inputs).logits

    def recompute_activations(self) -> None:
        """Keep only what each layer takes: the rest is computed again by the backward pass."""
        self.recomputes = True
        # Its second name is that of transformers before 5.24.
        enable = getattr(self.model, "activation_checkpointing_enable", None)
        (enable or self.model.gradient_checkpointing_enable)({"use_reentrant": False})

    def head(self, pooled: Tensor) -> Tensor:
        """The logits of `pooled_states`: the sum over layers, the projector and the mean commute."""
        if not hasattr(self.model, "layer_weights"):  # AST
            return self.model.classifier(pooled[:, 0])
        pooled = (self.model.layer_weights.softmax(-1)[:, None] * pooled).sum(1)
        return self.model.classifier(self.model.projector(pooled))

    def pooled_states(self, **inputs: Tensor) -> Tensor:
        """All that the head takes of one clip, float [1, layers + 1, hidden]: see SpeechClassifier's.

        Of AST, whose head takes no sum over layers, its own pooled output, float [1, 1, hidden].
        """
        if not hasattr(self.model, "layer_weights"):
            return self.model.base_model(**inputs).pooler_output[:, None]
        with OneDNNMode():
            states = torch.stack(self.model(**inputs, output_hidden_states=True).hidden_states, 1)
        if self.model.config.model_type == "wav2vec2-bert":  # whose extractor adds a frame to an odd number
            states = states[:, :, : inputs["attention_mask"].sum()]
        return states.mean(2)

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
