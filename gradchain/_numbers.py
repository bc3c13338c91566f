"""Numbers as Python has them, of whatever kind they were given: a number, one of numpy's, or one in a tensor."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def as_number(value: object) -> int | float | None:
    """`value` as a plain int or float; None if it is no real number. A bool is a slip here, not a number.

    A tensor or an array of one number is that number, read now, wherever it lies.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        # float() also turns numpy's scalars into plain ones, whose repr can be evaluated anywhere.
        return float(value)
    return _held(value)


def _held(value: Any) -> int | float | None:
    """The number that a tensor or an array of one element gives by `item`; of another kind, or more, None."""
    if isinstance(value, type) or not (callable(getattr(value, "item", None)) and hasattr(value, "ndim")):
        return None
    try:
        found = value.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None
    return as_number(found) if isinstance(found, Real) else None


def whole_number(value: object) -> int | None:
    """`value` as a plain int, of numpy or in a tensor too; None if its type is not that of whole numbers."""
    number = as_number(value)
    return number if isinstance(number, int) else None
