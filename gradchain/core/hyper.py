"""Numeric hyperparameters: each takes a number or a schedule, for all parameters or for each, and knows its interval.

Inside `update` it is a number, or `Scalars` where it differs from parameter to parameter.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args, overload

from torch import Tensor, nn

from gradchain.core.scalars import Scalars, on_host
from gradchain.core.spread import Spread
from gradchain.schedules import Schedule
from gradchain.selectors import PerParameter
from gradchain.words import values

if TYPE_CHECKING:
    from gradchain.core.context import Context
    from gradchain.selectors.rules import Value as Value

_MOST = sys.float_info.max
_INFINITIES = (math.inf, -math.inf)


@dataclass(frozen=True)
class Interval:
    """Where a hyperparameter must lie, in the notation of mathematics: "[0, 1)", "(0, inf]", "integer [1, inf)"."""

    text: str = "(-inf, inf)"

    def __post_init__(self) -> None:
        if self._parsed is None:
            raise ValueError(f"Interval: must read like '[0, 1)' or 'integer [1, inf)', got {self.text!r}.")

    @functools.cached_property
    def _parsed(self) -> tuple[str, float, float, str] | None:
        found = re.fullmatch(r"(?:integer )?([\[(])(\S+), (\S+)([\])])", self.text)
        return None if found is None else (found[1], float(found[2]), float(found[3]), found[4])

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside (NaN lies in no interval)."""
        assert self._parsed is not None
        left, low, high, right = self._parsed
        if not (value > low or (value == low and left == "[")):
            return False
        if not (value < high or (value == high and right == "]")):
            return False
        if not -_MOST <= value <= _MOST:
            return value in _INFINITIES  # else it is an integer that no float can be
        return not self.text.startswith("integer") or value == int(value)

    def outside(self, numbers: Tensor) -> Tensor:
        """Whether each element lies outside; a NaN does not."""
        assert self._parsed is not None
        left, low, high, right = self._parsed
        out = (numbers < low) if left == "[" else (numbers <= low)
        out |= (numbers > high) if right == "]" else (numbers >= high)
        return out | ((numbers != numbers.trunc()) & numbers.isfinite()) if self.text.startswith("integer") else out

    @property
    def has_negatives(self) -> bool:
        """Whether a number below 0 may lie inside."""
        assert self._parsed is not None
        return self._parsed[1] < 0

    @property
    def rule(self) -> str:
        """The end of the sentence "b1 must be …"."""
        if self.text == "(-inf, inf)":
            return "a finite number"
        return f"an integer in {self.text[8:]}" if self.text.startswith("integer") else f"in {self.text}"


class Hyper:
    """The type of a numeric hyperparameter: `b1: Hyper = Hyper(0.9, "[0, 1)")`.

    It reads as a float, is constructed from a number, a schedule (`step -> value`), a 0-d tensor that is read anew at
    every update, or a per-parameter value (`multiply`, `choose`), and is checked both when it is constructed and when
    it has its value. One without a default is written `max_norm: Annotated[Hyper, "(0, inf]"]`.
    """

    def __init__(self, default: float | None = None, interval: str = "(-inf, inf)") -> None:
        self.default = default
        self.interval = Interval(interval)
        self.name = "hyperparameter"
        self.owner = "Transform"

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.owner = name, owner.__name__

    @overload
    def __get__(self, link: None, owner: type) -> float: ...
    @overload
    def __get__(self, link: object, owner: type) -> float: ...
    def __get__(self, link: object | None, owner: type) -> float:
        if link is None:
            if self.default is None:
                raise AttributeError(f"{self.owner}.{self.name} has no default")
            return self.default
        value: float = link.__dict__[self.name]
        return value

    def __set__(self, link: object, value: Value) -> None:
        link.__dict__[self.name] = self.parse(value, self.owner)

    def is_numeric(self, value: Any) -> bool:
        """Whether what is kept here gives a number at each update: one that is a word, or asks the link, does not."""
        return not isinstance(value, str)

    def parse(self, value: Any, owner: str) -> Any:
        """What a user put here, as it is kept: checked as far as it is known before the first update."""
        if isinstance(value, Tensor):
            self.checked(on_host(value), owner)
            return value
        if varies(value) and not isinstance(value, (type, nn.Module)):
            return value
        return self.checked(on_host(value), owner)

    def accepts(self, value: float | Scalars) -> bool:
        """Whether a host number may stand here, or a column of them, without the sentence that says why not."""
        if type(value) is Scalars:
            if value.column is None or not len(value) or self.interval.text.startswith("integer"):
                return False
            return all(map(self.interval.holds, value.extremes()))  # an interval has no holes
        assert isinstance(value, (float, int))
        return value is not True and value is not False and self.interval.holds(value)

    def checked(self, value: Any, owner: str, cause: str = "") -> Any:
        """`value`, if it is a number inside the interval. `owner` begins the sentence, `cause` ends it."""
        if type(value) is Scalars:
            for name, number in value.items():
                self.checked(number, owner, f" It is that of parameter {name!r}.{cause}")
            return value
        if isinstance(value, Tensor):
            if value.ndim:
                raise ValueError(
                    f"{owner}: {self.name} must be a number or a 0-d tensor, got shape {tuple(value.shape)}."
                    f"{values.cure(value)}"
                )
            return value  # its value stays where it is: nothing here may wait for it
        if not is_number(value):
            got = type(value).__name__ if values.is_model(value) else repr(value)
            raise TypeError(
                f"{owner}: {self.name} must be a number or a schedule (step -> value), got {got}.{cause}"
                f"{values.cure(value, self.owner)}"
            )
        if not self.interval.holds(value):
            raise ValueError(f"{owner}: {self.name} must be {self.interval.rule}, got {value!r}.{cause}")
        return value

    @classmethod
    def declared(cls, annotation: Any) -> Hyper | None:
        """The descriptor for a field annotated `Hyper` or `Annotated[Hyper, "…"]`, else None."""
        kind, *notes = get_args(annotation) or (annotation,)
        if isinstance(kind, type) and issubclass(kind, cls):
            return kind(None, *[note for note in notes if isinstance(note, str)])
        return None


class HyperOr(Hyper):
    """A Hyper that may also be one of some words: `decay: Annotated[HyperOrMean, "[0, 1]"]`."""

    words: ClassVar[tuple[str, ...]] = ()

    def __set__(self, link: object, value: Value | str) -> None:
        if isinstance(value, str):
            self._worded(value)
            link.__dict__[self.name] = value
        else:
            super().__set__(link, value)

    def _worded(self, value: str) -> None:
        if value not in self.words:
            words = " or ".join(map(repr, self.words))
            raise ValueError(
                f"{self.owner}: {self.name} must be {self.interval.rule}, a schedule or {words}, got {value!r}."
            )


def is_number(value: Any) -> bool:
    """Whether `value` is a host number; True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Override:
    """What `updater.override` put in place of a hyperparameter: a value or schedule, or a factor on its own."""

    value: Any = None
    factor: float | None = None

    def source(self, own: Any) -> Any:
        """What the number in force comes from: what the code has, which a factor leaves there, or else the value."""
        return self.value if self.factor is None else own

    def applied(self, number: Any) -> Any:
        """The number in force, given that of its source."""
        return number if self.factor is None else number * self.factor


def varies(value: Any) -> bool:
    """Whether a hyperparameter given so must be evaluated: a schedule, a tensor, or a per-parameter value."""
    if type(value) is float:
        return False
    return isinstance(value, (PerParameter, Tensor)) or callable(value)


def evaluated(value: Any, ctx: Context) -> Any:
    """A number as it is, a schedule at the clocks (a plain function reads "step"), a per-parameter value as Scalars.

    A tensor, also one that a schedule returns, is the number it holds now, where the host may read that.
    """
    if isinstance(value, PerParameter):
        spread = Spread.of(value, ctx.index)
        return spread.scalars(ctx.index, [evaluated(start, ctx) for start in spread.starts])
    if isinstance(value, Tensor) or not callable(value):
        return on_host(value)
    step = ctx.step  # raises where there is none to read
    return on_host(value.at(ctx.clocks) if isinstance(value, Schedule) else value(step))
