"""Schedules made of schedules by arithmetic: they run in the same time and read the clocks of their parts."""

from __future__ import annotations

from collections.abc import Mapping

from gradchain.schedules._check import bad, one_number
from gradchain.schedules.base import (
    STEP,
    Schedule,
    ScheduleLike,
    clocks_of,
    evaluate,
    length_of,
    require_callable,
    source,
    value_of,
)

__all__ = ["clipped", "combined"]


def _apply(operator: str, left: float, right: float) -> float:
    if operator == "*":
        return left * right
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if right == 0.0:
        raise ZeroDivisionError(f"combined: a divisor must not be 0 at any step, got {left!r} / {right!r}.")
    return left / right


class combined(Schedule):
    """Two parts under an operator; what `a * b`, `a + b`, `a - b` and `a / b` make.

    value(t) = left(t) (operator) right(t), each part in the same time; a part that has ended holds its end value.
    Parts are schedules, numbers or any functions, and may read different clocks: read such a one by `.at(clocks)`.

    Args:
        operator: "*", "+", "-" or "/".
        left: a schedule, a function step -> value, or a number.
        right: the same; a divisor other than 0.

    Raises: ZeroDivisionError, when read, where a divisor is 0.
    At the end: the length is that of the longer part, None if one part (a number does not count) has none.

    Example:
        >>> import gradchain as gch
        >>> half = 0.5 * gch.linear(0.0, 1.0, 4) * (lambda step: step)
        >>> [half(step) for step in (0, 1, 2)]
        [0.0, 0.125, 0.5]
        >>> gch.linear(0.0, 1.0, 4) * 2.0 + gch.cosine(1.0, 0.0, 10)
        linear(0.0, 1.0, 4) * 2.0 + cosine(1.0, 0.0, 10)
    """

    operator: str
    left: float | ScheduleLike
    right: float | ScheduleLike

    def __post_init__(self) -> None:
        if self.operator not in ("*", "+", "-", "/"):
            bad("combined", "operator must be '*', '+', '-' or '/'", self.operator)
        for name in ("left", "right"):
            part = getattr(self, name)
            if callable(part):
                require_callable("combined", name, part)
            else:
                rule = "a schedule, a function step -> value or a finite number"
                object.__setattr__(self, name, float(one_number("combined", name, part, rule, lambda _: True)))
        if self.operator == "/" and self.right == 0.0:
            bad("combined", "the divisor must be a number other than 0", self.right)

    @property
    def _parts(self) -> list[ScheduleLike]:
        return [part for part in (self.left, self.right) if not isinstance(part, float)]

    @property
    def length(self) -> float | None:
        longest: float = 0
        for part in self._parts:
            length = length_of(part)
            if length is None:
                return None
            longest = max(longest, length)
        return longest

    @property
    def clocks(self) -> frozenset[str]:
        return frozenset().union(*map(clocks_of, self._parts)) or STEP

    def curve(self, t: float) -> float:
        left = self.left if isinstance(self.left, float) else value_of(self.left, t)
        right = self.right if isinstance(self.right, float) else value_of(self.right, t)
        return _apply(self.operator, left, right)

    def at(self, clocks: Mapping[str, float]) -> float:
        left = self.left if isinstance(self.left, float) else evaluate(self.left, clocks)
        right = self.right if isinstance(self.right, float) else evaluate(self.right, clocks)
        return _apply(self.operator, left, right)

    def __repr__(self) -> str:
        left, right = source(self.left), source(self.right)
        tight = self.operator in "*/"
        if tight and isinstance(self.left, combined) and self.left.operator in "+-":
            left = f"({left})"
        # Floating point is not associative: the brackets are such that the repr makes the same tree.
        if isinstance(self.right, combined) and (tight or self.right.operator in "+-"):
            right = f"({right})"
        return f"{left} {self.operator} {right}"


class clipped(Schedule):
    """A schedule kept between two bounds; what `schedule.clip(low, high)` makes.

    value(t) = min(max(schedule(t), low), high), in the same time, with the same length and the same clocks.

    Args:
        schedule: a schedule or a function step -> value.
        low: the lower bound, in the unit of the value; None: no bound.
        high: the upper bound, at least `low`; None: no bound.

    Example:
        >>> import gradchain as gch
        >>> gch.linear(1.0, 0.0, 10).clip(low=0.25)(9)
        0.25
    """

    schedule: ScheduleLike
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        require_callable("clip", "schedule", self.schedule)
        for name in ("low", "high"):
            bound = getattr(self, name)
            if bound is not None:
                number = one_number("clip", name, bound, "a finite number or None", lambda _: True)
                object.__setattr__(self, name, float(number))
        if self.low is None and self.high is None:
            bad("clip", "low or high must be given", None)
        if self.low is not None and self.high is not None and self.low > self.high:
            bad("clip", f"high must be at least low={self.low!r}", self.high)

    def _bound(self, value: float) -> float:
        if self.low is not None and value < self.low:
            return self.low
        return self.high if self.high is not None and value > self.high else value

    @property
    def length(self) -> float | None:
        return length_of(self.schedule)

    @property
    def clocks(self) -> frozenset[str]:
        return clocks_of(self.schedule)

    def curve(self, t: float) -> float:
        return self._bound(value_of(self.schedule, t))

    def at(self, clocks: Mapping[str, float]) -> float:
        return self._bound(evaluate(self.schedule, clocks))

    def __repr__(self) -> str:
        if not isinstance(self.schedule, Schedule):
            return super().__repr__()
        bounds = [f"{name}={getattr(self, name)!r}" for name in ("low", "high") if getattr(self, name) is not None]
        return f"{primary(self.schedule)}.clip({', '.join(bounds)})"


def primary(schedule: ScheduleLike) -> str:
    """The code of a schedule as something a `.method` may follow."""
    return f"({schedule!r})" if isinstance(schedule, combined) else source(schedule)
