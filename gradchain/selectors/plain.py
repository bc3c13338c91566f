"""Numbers as Python has them."""

from numbers import Integral, Real
from typing import Any


def plain_number(value: Any) -> int | float | None:
    """Returns a number as an int or float, of numpy or in a tensor of one too; None if it is none.

    Args:
        value: anything. A bool is a slip here, not a number.
    """
    if not isinstance(value, Real) and hasattr(value, "ndim") and not isinstance(value, type):
        try:
            value = value.item()
        except (AttributeError, TypeError, ValueError, RuntimeError):  # no array, or one of several
            return None
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return int(value) if isinstance(value, Integral) else float(value)
