"""Fine-tune speech encoders to classify audio, with a training loop you can read, change and profile."""

from typing import TYPE_CHECKING, Any

from audiocls.version import __version__

if TYPE_CHECKING:
    from audiocls.config import InferConfig, TrainConfig
    from audiocls.inference.classifier import Classifier

__all__ = ["Classifier", "InferConfig", "TrainConfig", "__version__"]

_HOMES = {
    "Classifier": "audiocls.inference.classifier",
    "InferConfig": "audiocls.config",
    "TrainConfig": "audiocls.config",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that `--help` loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'audiocls' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
