"""What an argument may be, and the one sentence that is raised where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, NoReturn

__all__ = ["as_number", "bad", "choice", "finite", "non_negative", "one_number", "positive", "whole_number"]


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
    except (TypeError, ValueError, RuntimeError):
        return None
    return as_number(found) if isinstance(found, Real) else None


def whole_number(value: object) -> int | None:
    """`value` as a plain int, of numpy or in a tensor too; None if its type is not that of whole numbers."""
    number = as_number(value)
    return number if isinstance(number, int) else None


def bad(owner: str, rule: str, value: object, cure: str = "", kind: type[Exception] = ValueError) -> NoReturn:
    """Raise the sentence: owner, rule, value, and the cure if there is one."""
    raise kind(f"{owner}: {rule}, got {value!r}{'; ' + cure if cure else ''}.")


def one_number(owner: str, name: str, value: object, rule: str, test: Callable[[float], bool]) -> int | float:
    """`value` as a finite number that passes `test`, or the sentence `owner: name must be rule`."""
    number = as_number(value)
    if number is None:
        bad(owner, f"{name} must be {rule}", value, kind=TypeError)
    try:
        real = float(number)
    except OverflowError:  # an int beyond the range of floats
        real = math.inf
    if not (math.isfinite(real) and test(real)):
        bad(owner, f"{name} must be {rule}", value)
    return number


def _store(schedule: object, names: Sequence[str], rule: str, test: Callable[[float], bool], real: bool) -> None:
    owner = type(schedule).__name__
    for name in names:
        number = one_number(owner, name, getattr(schedule, name), rule, test)
        # The dataclass is frozen: this is its constructor, the one place that may write.
        object.__setattr__(schedule, name, float(number) if real else number)


def finite(schedule: object, *names: str) -> None:
    """These fields are values: finite numbers, stored as floats."""
    _store(schedule, names, "a finite number", lambda _: True, real=True)


def positive(schedule: object, *names: str) -> None:
    """These fields are times or factors above 0; an int stays an int, so that whole steps are exact."""
    _store(schedule, names, "a positive number", lambda x: x > 0, real=False)


def non_negative(schedule: object, *names: str) -> None:
    """These fields are times or factors of at least 0; an int stays an int."""
    _store(schedule, names, "a non-negative number", lambda x: x >= 0, real=False)


def choice(schedule: object, name: str, options: Sequence[str]) -> None:
    """This field is one of a few words."""
    value = getattr(schedule, name)
    if not (isinstance(value, str) and value in options):
        words = ", ".join(map(repr, options[:-1])) + f" or {options[-1]!r}"
        bad(type(schedule).__name__, f"{name} must be {words}", value)
