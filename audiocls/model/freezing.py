"""What of a model is not trained: nothing, its convolutional encoder, or all that lies below its head."""

import dataclasses

from audiocls.errors import UserError
from audiocls.model.backbone import Backbone, LoadedModel
from audiocls.model.loading import LEARNED_HERE


def check_can_freeze(backbone: Backbone, what: str, *, cache_features: bool = False) -> None:
    """Raises UserError where the model has no convolutional encoder, or none whose output can be cached."""
    name, kind = backbone.name, backbone.config.model_type
    if what == "feature-encoder" and not backbone.takes_waveforms:
        raise UserError(
            f"{name} has no convolutional encoder of waveforms: leave out --freeze feature-encoder."
        )
    if what == "feature-encoder" and cache_features and backbone.is_stock:
        raise UserError(
            f"--cache-features needs audiocls's forward pass; transformers' own {kind} runs: leave it out."
        )


def with_layer_sum(backbone: Backbone) -> Backbone:
    """The backbone under a head that takes a weighted sum over all layers' output, where it can have one.

    Lower layers hold more about voice and prosody than the last. AST's head takes no such sum.
    """
    if not hasattr(backbone.config, "use_weighted_layer_sum"):
        return backbone
    config = dataclasses.replace(backbone.config, use_weighted_layer_sum=True)
    return dataclasses.replace(backbone, config=config)


def freeze(loaded: LoadedModel, what: str) -> None:
    """Leave the "feature-encoder" or the "encoder" out of training, or "nothing"."""
    model = loaded.model.model if loaded.backbone.is_stock else loaded.model
    if what == "encoder":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(LEARNED_HERE))
    elif what == "feature-encoder" and loaded.backbone.is_stock:
        model.freeze_feature_encoder()
    elif what == "feature-encoder":
        model.encoder.feature_extractor.requires_grad_(False)
