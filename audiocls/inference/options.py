"""The values of Classifier's arguments, checked: a wrong one is a sentence that says what is allowed."""

from numbers import Integral, Real
from typing import Any

import numpy as np

from audiocls.errors import UserError, shown
from audiocls.model.backbone import Backbone

MOST_SECONDS = 1e9  # thirty years: what infinity is taken for


def whole_number(name: str, value: Any, *, above: int | None = None, otherwise: str = "") -> int:
    """`value` as an int, which may be a whole float or a NumPy number.

    Raises UserError where it is anything else; `otherwise` ends the sentence.
    """
    is_whole = is_number(value) and (isinstance(value, Integral) or float(value).is_integer())
    if is_whole and (above is None or value > above):
        return int(value)
    limit = "" if above is None else f" above {above}"
    raise UserError(f"{name} is {shown(value)}: give a whole number{limit}{otherwise}.")


def some_seconds(name: str, value: Any, *, otherwise: str = "") -> float:
    """`value`, any real number above 0, as a float of at most MOST_SECONDS. Raises UserError likewise."""
    if is_number(value) and value > 0:
        return float(min(value, MOST_SECONDS))
    raise UserError(f"{name} is {shown(value)}: give seconds, a number above 0{otherwise}.")


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def samples_of(backbone: Backbone, max_seconds: float | None) -> int | None:
    """How many samples `max_seconds` are; None: all. Raises UserError where they are fewer than it needs."""
    if max_seconds is None:
        return None
    rate, shortest = backbone.sampling_rate, backbone.min_samples
    max_samples = round(some_seconds("max_seconds", max_seconds, otherwise=", or None for all") * rate)
    if max_samples < shortest:
        raise UserError(f"max_seconds is {max_seconds:g}: the model needs {shortest / rate:.3g} s.")
    return max_samples


def windows_of(
    backbone: Backbone, window_seconds: float | None, hop_seconds: float | None
) -> tuple[float, float] | None:
    """The length of the windows and the hop between their starts, which by default is as long, in seconds.

    None where no windows are asked for. Raises UserError for those that the model does not take.
    """
    rate, shortest, longest = backbone.sampling_rate, backbone.min_samples, backbone.max_samples
    if window_seconds is None:
        if hop_seconds is not None:
            raise UserError("A hop says how far apart windows are: give the window's seconds too.")
        return None
    seconds = some_seconds("window_seconds", window_seconds, otherwise=", or None for no windows")
    if not shortest <= round(seconds * rate) <= (longest or np.inf):
        most = f"to {longest / rate:g} s" if longest else "or more"
        raise UserError(f"The window is {seconds:g} s: the model takes {shortest / rate:.3g} s {most}.")
    if hop_seconds is None:
        return seconds, seconds
    hop_seconds = some_seconds("hop_seconds", hop_seconds, otherwise=", or None for window_seconds")
    if round(hop_seconds * rate) < 1:
        raise UserError(f"The hop is {hop_seconds:g} s: give a sample ({1 / rate:g} s) at least.")
    return seconds, hop_seconds
