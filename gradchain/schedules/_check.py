"""What an argument may be, and the one sentence that is raised where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NoReturn

from gradchain._numbers import as_number as as_number
from gradchain._numbers import whole_number as whole_number

__all__ = ["as_number", "bad", "choice", "finite", "non_negative", "one_number", "positive", "whole_number"]


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
