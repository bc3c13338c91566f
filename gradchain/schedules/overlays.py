"""Windows that overlap: each changes the value it finds."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import TypeAlias

from gradchain.schedules._check import as_number, bad, one_number
from gradchain.schedules.base import Schedule, ScheduleLike, require_step, source, value_of

__all__ = ["Change", "overlay"]

Change: TypeAlias = "tuple[float, float | None, float | ScheduleLike, float | ScheduleLike, float]"
"""(begin, end, scale, shift, origin): over [begin, end) the value v becomes scale * v + shift, in time from origin."""

# Where windows with shifts overlap, the value is stored at every so many steps, and walked to from there.
STRIDE = 256


class overlay(Schedule):
    """Windows of steps that may overlap; each changes the value that it finds, a times it plus b.

    v(-1) = start; at each step i, for every window (begin, end, scale, shift) with begin <= i < end, in their order,
    v <- a * v + b, where with t = i - begin
    a = scale(t) / scale(t - 1), b = shift(t) - a * shift(t - 1), and scale(-1) = 1, shift(-1) = 0

    So a window by itself gives scale(t) * v + shift(t) of the value v it found: scale 0 sets, scale 1 adds, a scale
    alone multiplies, and `cosine(1.0, 0.0, n)` with shift `cosine(0.0, floor, n)` is a cosine from wherever it begins
    to the floor. Several at once are the "chainable form" of torch's schedulers, step by step. Where no window shifts,
    a product of schedules says the same and reads better; where none overlap, `join` does.
    A window changes the value only where it moves: while its scale and shift stay, the value is left alone.

    A value is found in constant time, except where windows overlap of which one shifts: there the values at every
    256th step are kept, and the first reading of a step walks to it once.

    Args:
        start: the value before the first window; any finite number.
        windows: tuples (begin, end, scale), (begin, end, scale, shift) or (begin, end, scale, shift, origin) in the
            order of their turns at one step: 0 <= begin < end in whole updates, end None: for good; scale and shift
            a schedule, a function of the step or a number (shift: 0). With `origin`, a whole number not above begin,
            t = i - origin: a window cut out of a longer one, which goes on with the ratio to the step before.

    At the end: the value of each window at its last step, end - 1, is held. Between whole steps the value stays.
    The length is the last end, None if one has no end.

    Raises: ValueError where a scale rises from 0 while its window is not alone from its begin.
    Equals: torch's chainable schedulers, stepped together: LinearLR and CosineAnnealingLR at once are
        `overlay(lr, (0, None, linear(a, 1.0, w)), (0, None, cosine(1.0, 0.0, T), cosine(0.0, eta_min, T)))`, as torch
        steps them in that order, which counts only where one shifts.

    Example:
        >>> import gradchain as gch
        >>> lr = gch.schedules.overlay(8.0, (0, 4, gch.linear(0.25, 1.0, 3)), (2, 6, 0.5), (3, None, 1.0, 0.5))
        >>> [lr(step) for step in range(5)]
        [2.0, 4.0, 3.0, 4.5, 4.5]
    """

    start: float
    windows: tuple[Change, ...]

    # `windows` by name is for dataclasses.replace, which cannot pass a star argument.
    def __init__(
        self,
        start: float,
        *changes: Sequence[float | ScheduleLike | None],
        windows: Sequence[Sequence[float | ScheduleLike | None]] = (),
    ) -> None:
        value = one_number("overlay", "start", start, "a finite number", lambda _: True)
        object.__setattr__(self, "start", float(value))
        object.__setattr__(self, "windows", tuple(map(_window, (*changes, *windows))))
        if not self.windows:
            bad("overlay", "windows must be at least one (begin, end, scale)", self.windows)

    @property
    def length(self) -> float | None:
        ends = [end for _, end, *_ in self.windows if end is not None]
        return max(ends) if len(ends) == len(self.windows) else None

    @cached_property
    def _borders(self) -> list[float]:
        """The steps at which a window begins or ends: between two of them the same windows act."""
        ends = {end for _, end, *_ in self.windows if end is not None}
        return sorted({begin for begin, *_ in self.windows} | ends)

    @cached_property
    def _border_values(self) -> dict[tuple[int, int], float]:
        """Values by (segment, number of strides into it), each that before the step; (k, 0) is what segment k finds."""
        return {}

    def curve(self, t: float) -> float:
        step = t if math.isinf(t) else math.floor(t)
        segment = bisect_right(self._borders, step) - 1
        return self.start if segment < 0 else self._value(segment, step)

    def _found(self, segment: int) -> float:
        """The value that a segment finds: that of the last step before it."""
        kept = self._border_values
        known = segment
        while known > 0 and (known, 0) not in kept:
            known -= 1
        kept.setdefault((known, 0), self.start)
        for k in range(known, segment):
            kept[k + 1, 0] = self._value(k, self._borders[k + 1] - 1)
        return kept[segment, 0]

    def _value(self, segment: int, step: float) -> float:
        first = self._borders[segment]
        acting = [w for w in self.windows if w[0] <= first and (w[1] is None or first < w[1])]
        value = self._found(segment)
        if (len(acting) > 1 and any(w[3] != 0.0 for w in acting)) or any(_set_before(w, first) for w in acting):
            return self._walk(segment, acting, step)
        for window in acting:
            a, b = _change(window, first - 1, step)
            value = a * value + b
        return value

    def _walk(self, segment: int, acting: Sequence[Change], step: float) -> float:
        first, kept = self._borders[segment], self._border_values
        stride = int((step - first) // STRIDE)
        known = stride
        while (segment, known) not in kept:
            known -= 1
        value = kept[segment, known]
        for i in range(int(first) + known * STRIDE, int(step) + 1):
            past, beyond = divmod(i - int(first), STRIDE)
            if not beyond:
                kept[segment, past] = value
            for window in acting:
                a, b = _change(window, i - 1, i)
                value = a * value + b
        return value

    def __repr__(self) -> str:
        given = [repr(self.start)]
        for begin, end, scale, shift, origin in self.windows:
            cut = (begin, end, scale, shift, origin)
            given.append(source(cut if origin != begin else cut[:4] if shift != 0.0 else cut[:3]))
        return f"overlay({', '.join(given)})"


def _at(part: float | ScheduleLike, t: float) -> float:
    return value_of(part, t) if callable(part) else part


def _set_before(window: Change, first: float) -> bool:
    """Whether a window's scale is 0 before this step already: from then on it sets, at each step that it moves."""
    return window[4] < first and _at(window[2], first - 1 - window[4]) == 0.0


def _change(window: Change, before: float, now: float) -> tuple[float, float]:
    """What a window makes of the value from one step to another: times a, plus b."""
    _, _, scale, shift, origin = window
    a1, b1 = _at(scale, now - origin), _at(shift, now - origin)
    if before < origin:
        return a1, b1
    a0, b0 = _at(scale, before - origin), _at(shift, before - origin)
    if (a0, b0) == (a1, b1):
        return 1.0, 0.0
    if a0 == 0.0 and a1 != 0.0:
        raise ValueError(
            f"overlay: a scale must not rise from 0 where its window meets another, got {source(scale)} from "
            f"{a0!r} to {a1!r} at step {now!r}; end one window where the other begins."
        )
    ratio = a1 / a0 if a0 else 0.0
    return ratio, b1 - ratio * b0


def _window(window: object) -> Change:
    if not (isinstance(window, (tuple, list)) and 3 <= len(window) <= 5):
        bad("overlay", "a window must be (begin, end, scale) or (begin, end, scale, shift)", window, kind=TypeError)
    begin, end, scale, shift, origin = (*window, *(0.0, None)[len(window) - 3 :]) if len(window) < 5 else window
    begin = _whole("begin", begin, "a whole non-negative number", 0)
    end = None if end is None else _whole("end", end, f"a whole number above begin={begin!r}, or None", begin + 1)
    origin = begin if origin is None else _whole("origin", origin, f"a whole number up to begin={begin!r}", 0, begin)
    return begin, end, _part("scale", scale), _part("shift", shift), origin


def _whole(name: str, value: object, rule: str, low: float, high: float = math.inf) -> int:
    return int(one_number("overlay", name, value, rule, lambda x: low <= x <= high and x == int(x)))


def _part(name: str, value: object) -> float | ScheduleLike:
    if as_number(value) is None:
        require_step("overlay", name, value)  # type: ignore[arg-type]
        return value  # type: ignore[return-value]
    return float(one_number("overlay", name, value, "a schedule or a finite number", lambda _: True))
