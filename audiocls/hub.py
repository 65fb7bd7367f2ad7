"""What the Hugging Face libraries must not do here, and how they fail in one line."""

import contextlib
import os
import warnings
from collections.abc import Iterator

from audiocls.errors import InputOutputFailed, UserError

# Read when the libraries are imported, so set before.
# For a repository without safetensors, transformers would ask a converter service for a pull request.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def quiet_transformers() -> None:
    """No progress bars for files already here, no tables of tensors: we say what matters in a line."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextlib.contextmanager
def reaching(what: str, *, also: str = "") -> Iterator[None]:
    """Turn the many ways in which loading `what` can fail into one line that says what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise translated(error, what, also) from error


def translated(error: Exception, what: str, also: str = "") -> UserError:
    return InputOutputFailed(f"Could not load {what}: {type(error).__name__}: {error}")
