"""What schedulers do in their windows, as schedules: from a value, and to a value that others change too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gradchain.adapters.mmengine.entries import whole
from gradchain.schedules import Schedule, chained, constant, multi_step, per_epoch, piecewise
from gradchain.schedules.overlays import Change

__all__ = ["Shape", "Span", "after", "factor", "in_clock", "last_stays", "towards"]


@dataclass(frozen=True)
class Span:
    """A window: its scheduler acts at `begin` and every `every` micro-batches after, `count` times.

    n: end - begin in steps of the scheduler, as written, which the formulas divide by; run: the steps that come before
    the end of the training; by_epoch: whether they are epochs; factor: what lengths are multiplied by, for a conversion
    to iterations.
    """

    begin: int
    every: int
    n: float
    count: int
    run: int
    by_epoch: bool = False
    factor: int = 1

    @property
    def end(self) -> int:
        """The micro-batch after the window."""
        return self.begin + self.count * self.every

    def steps(self, length: float) -> float:
        """A length of the config in steps of the scheduler."""
        return whole(length * self.factor)


@dataclass(frozen=True)
class Shape:
    """A scheduler in steps of its window, whose last value stays.

    moves: step by step, for where others change the value meanwhile, as windows of `overlay` (the end None: that of the
    window); curve: from the value it finds, where nobody does; scale: in place of a curve the factors, where it does
    nothing but multiply; reach: after how many steps it is done, 0 where no value depends on where its window ends.
    """

    moves: Sequence[Change]
    curve: Callable[[float], Schedule] = constant
    scale: Schedule | None = None
    reach: float = 0

    def alone(self, value: float, count: int) -> Schedule:
        """What becomes of a value that nobody else changes in a window of so many steps."""
        if self.scale is None:
            return last_stays(self.curve(value), count)
        return value * last_stays(self.scale, count)


def factor(scale: Schedule, reach: float = 0) -> Shape:
    """A scheduler that only multiplies."""
    return Shape([(0, None, scale, 0.0, 0)], scale=scale, reach=reach)


def towards(curve: Callable[[float, float], Schedule], floor: float, reach: float) -> Shape:
    """A scheduler along `curve(start, end)` from the value found to a floor."""
    scale = curve(1.0, 0.0)
    if floor == 0.0:
        return factor(scale, reach)
    return Shape([(0, None, scale, curve(0.0, floor), 0)], lambda value: curve(value, floor), reach=reach)


def last_stays(schedule: Schedule, count: int) -> Schedule:
    """The values at 0 to count - 1, and the last of them for good."""
    length, last = schedule.length, schedule.parts[-1] if isinstance(schedule, chained) else schedule
    if (length is not None and length <= count - 1) or isinstance(last, (constant, multi_step, piecewise)):
        return schedule
    return schedule.take(count - 1)


def after(steps: float, value: float, schedule: Schedule) -> Schedule:
    """A value for so many steps, and then a schedule."""
    return constant(value).take(steps).then(schedule) if steps else schedule


def in_clock(part: Any, every: int) -> Any:
    """A schedule in steps of so many micro-batches; what stays where it is needs no clock."""
    return part if every == 1 or isinstance(part, (float, int, constant)) else per_epoch(part, every)
