"""Values that jump at given steps: equal stairs, milestones, and points that may be joined by curves."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from gradchain.schedules._check import bad, choice, finite, non_negative, one_number, positive
from gradchain.schedules._curves import through
from gradchain.schedules.base import Schedule, source

__all__ = ["multi_step", "piecewise", "step_decay"]


class step_decay(Schedule):
    """A factor every `step_size` updates.

    value(t) = start * gamma ** floor(t / step_size)

    Args:
        start: value at step 0; any finite number.
        step_size: updates of one stair, above 0.
        gamma: factor per stair, at least 0.

    At the end: there is none. `.clip(low=...)` sets a floor, `.take(n)` an end.

    Equals: torch StepLR(step_size, gamma) at the rate lr is `step_decay(lr, step_size, gamma)`;
        optax.exponential_decay(..., staircase=True).

    Example:
        >>> import gradchain as gch
        >>> lr = gch.schedules.step_decay(1.0, 30, gamma=0.5)
        >>> lr(29), lr(30), lr(60)
        (1.0, 0.5, 0.25)
    """

    start: float
    step_size: float
    gamma: float = 0.1

    def __post_init__(self) -> None:
        finite(self, "start")
        positive(self, "step_size")
        non_negative(self, "gamma")

    def curve(self, t: float) -> float:
        return self.start * math.pow(self.gamma, t // self.step_size)


class multi_step(Schedule):
    """A factor at each milestone.

    value(t) = start * gamma ** (number of milestones m <= t)

    Args:
        start: value before the first milestone; any finite number.
        milestones: updates, at least 0, in order; one that is written twice counts twice.
        gamma: factor at each, at least 0.

    At the end: there is none, the last stair goes on. `.take(n)` sets an end.

    Equals: torch MultiStepLR(milestones, gamma) at the rate lr is `multi_step(lr, milestones, gamma)`;
        optax.piecewise_constant_schedule(start, {milestone: gamma, ...}).

    Example:
        >>> import gradchain as gch
        >>> lr = gch.schedules.multi_step(1.0, (60, 80), gamma=0.5)
        >>> lr(59), lr(60), lr(80)
        (1.0, 0.5, 0.25)
    """

    start: float
    milestones: tuple[float, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        finite(self, "start")
        non_negative(self, "gamma")
        if not isinstance(self.milestones, (tuple, list, range)):
            bad("multi_step", "milestones must be a tuple of steps such as (60, 80)", self.milestones, kind=TypeError)
        steps = tuple(
            one_number("multi_step", "a milestone", step, "a non-negative number", lambda x: x >= 0)
            for step in self.milestones
        )
        if any(a > b for a, b in pairwise(steps)):
            bad("multi_step", "milestones must be in order", self.milestones)
        object.__setattr__(self, "milestones", steps)

    def curve(self, t: float) -> float:
        return self.start * self.gamma ** bisect_right(self.milestones, t)


class piecewise(Schedule):
    """Values at given steps, each held until the next, or joined by lines or cosines.

    value(t) = the value of the last point (step, value) with step <= t; with shape "linear" or "cosine" the curve of
    that shape from it to the next point; before the first point its value

    Args:
        points: tuples (step, value): steps at least 0 and increasing, values finite.
        shape: "constant", "linear" or "cosine", the curve between two points.

    At the end: the last value is held. With "constant" there is no end (the last piece goes on); else the length is
    the step of the last point.

    Equals: numpy.interp with shape="linear". optax.piecewise_constant_schedule and piecewise_interpolate_schedule
        take factors, each times all before it: init 1.0, {10: 0.5, 20: 0.1} is the points (0, 1.0), (10, 0.5),
        (20, 0.05).

    Example:
        >>> import gradchain as gch
        >>> lr = gch.schedules.piecewise((0, 1.0), (30, 0.5), (60, 0.25))
        >>> lr(29), lr(30), lr(90)
        (1.0, 0.5, 0.25)
        >>> gch.schedules.piecewise((0, 0.0), (10, 1.0), (30, 0.0), shape="linear")(20)
        0.5
    """

    points: tuple[tuple[float, float], ...]
    shape: Literal["constant", "linear", "cosine"] = "constant"

    # `points` by name is for dataclasses.replace, which cannot pass a star argument.
    def __init__(
        self,
        *pairs: tuple[float, float],
        shape: Literal["constant", "linear", "cosine"] = "constant",
        points: Sequence[tuple[float, float]] = (),
    ) -> None:
        object.__setattr__(self, "points", _points((*pairs, *points)))
        object.__setattr__(self, "shape", shape)
        choice(self, "shape", ("constant", "linear", "cosine"))

    @property
    def length(self) -> float | None:
        return None if self.shape == "constant" else self.points[-1][0]

    def curve(self, t: float) -> float:
        return through(self.points, t, self.shape)

    def __repr__(self) -> str:
        given = [source(point) for point in self.points]
        if self.shape != "constant":
            given.append(f"shape={self.shape!r}")
        return f"piecewise({', '.join(given)})"


def _points(points: Sequence[object]) -> tuple[tuple[float, float], ...]:
    if not points:
        bad("piecewise", "points must be at least one (step, value)", points)
    checked: list[tuple[float, float]] = []
    for point in points:
        if not (isinstance(point, (tuple, list)) and len(point) == 2):
            bad("piecewise", "a point must be (step, value)", point, kind=TypeError)
        step = one_number("piecewise", "a step", point[0], "a non-negative number", lambda x: x >= 0)
        value = float(one_number("piecewise", "a value", point[1], "a finite number", lambda _: True))
        if checked and step <= checked[-1][0]:
            bad("piecewise", f"a step must be above the one before, {checked[-1][0]!r}", step)
        checked.append((step, value))
    return tuple(checked)
