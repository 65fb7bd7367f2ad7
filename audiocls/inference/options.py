"""The values of Classifier's arguments, checked: a wrong one is a sentence that says what is allowed."""

from numbers import Integral, Real
from typing import Any

from audiocls.errors import UserError, shown

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
