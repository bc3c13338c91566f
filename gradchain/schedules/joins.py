"""Schedules made of schedules in time: one after the other, cut to a length, or in windows."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeAlias

from gradchain.schedules._check import bad, one_number
from gradchain.schedules.arithmetic import primary
from gradchain.schedules.base import Schedule, ScheduleLike, length_of, require_step, source, value_of

__all__ = ["Window", "chained", "join", "taken"]

Window: TypeAlias = "tuple[float, float | None, ScheduleLike]"
"""(begin, end, schedule): the half-open interval [begin, end) of steps; end None: for good."""


class chained(Schedule):
    """One schedule after another; what `first.then(second)` makes.

    value(t) = part_i(t - border_i) for border_i <= t < border_i+1, where border_i is the summed length of the parts
    before: at step == length the next part is at its own time 0. `a.then(b).then(c) == a.then(b.then(c))`.

    Args:
        parts: at least two schedules or functions; all but the last must know their length.

    At the end: length is the sum of the lengths, None if the last has none; the end value of the last part is held.
    Equals: torch.optim.lr_scheduler.SequentialLR and optax.join_schedules with these borders.

    Example:
        >>> import gradchain as gch
        >>> warm = gch.linear(0.0, 1.0, 5).then(gch.linear(1.0, 0.0, 10))
        >>> warm(4), warm(5), warm(10), warm(99), warm.length
        (0.8, 1.0, 0.5, 0.0, 15)
    """

    parts: tuple[ScheduleLike, ...]

    def __post_init__(self) -> None:
        flat: list[ScheduleLike] = []
        for part in self.parts:
            # One level is enough: a chained part was itself made here.
            flat.extend(part.parts if isinstance(part, chained) else (part,))
        object.__setattr__(self, "parts", tuple(flat))
        if len(flat) < 2:
            bad("then", "parts must be at least two schedules", self.parts)
        for part in flat:
            require_step("then", "a part", part)
        for part in flat[:-1]:
            if length_of(part) is None:
                raise ValueError(
                    f"then: the schedule before must have a known length, got {source(part)}; "
                    f"give it one with .take(steps), or use join((0, steps, f), ...)."
                )

    @property
    def length(self) -> float | None:
        total: float = 0
        for part in self.parts:
            length = length_of(part)
            if length is None:  # only the last part may have none
                return None
            total += length
        return total

    def curve(self, t: float) -> float:
        border: float = 0
        for part in self.parts:
            length = length_of(part)
            if length is None or t < border + length:
                return value_of(part, t - border)
            border += length
        # The end. Not t - border: with fractional lengths that may fall short of it by an ulp.
        return value_of(self.parts[-1], length_of(self.parts[-1]) or 0)

    def __repr__(self) -> str:
        return primary(self.parts[0]) + "".join(f".then({source(part)})" for part in self.parts[1:])


class taken(Schedule):
    """A schedule with another end; what `schedule.take(steps)` makes.

    value(t) = schedule(t) for t < steps, then schedule(steps) for good. It cuts a longer schedule off, holds a shorter
    one, and gives an end to one that has none, so that `.then` may follow.

    Args:
        schedule: a schedule or a function step -> value.
        steps: updates, at least 0; the new length.

    Example:
        >>> import gradchain as gch
        >>> flat = gch.constant(0.1).take(500).then(gch.linear(0.1, 0.0, 100))
        >>> flat(499), flat(550), flat.length
        (0.1, 0.05, 600)
    """

    schedule: ScheduleLike
    steps: float

    def __post_init__(self) -> None:
        require_step("take", "schedule", self.schedule)
        # The method's name is what the user wrote, so it is the one in the sentence.
        steps = one_number("take", "steps", self.steps, "a non-negative number", lambda x: x >= 0)
        object.__setattr__(self, "steps", steps)

    @property
    def length(self) -> float:
        return self.steps

    def curve(self, t: float) -> float:
        return value_of(self.schedule, t)

    def __repr__(self) -> str:
        if not isinstance(self.schedule, Schedule):
            return super().__repr__()
        return f"{primary(self.schedule)}.take({self.steps!r})"


class join(Schedule):
    """Schedules in windows of steps.

    value(t) = f(t - begin) for begin <= t < end, for the window (begin, end, f); with absolute=True f(t).

    In a gap and after the last end the value is that of the window before at its end, f(end - begin) (absolute:
    f(end)); so a schedule as long as its window holds its end value. It is not the value at the window's last update:
    a window that should hold that one ends in a schedule shorter by one, `linear(a, b, n - 1).take(n)`.
    Before the first begin the value is the first schedule's at its time 0 (absolute: at begin).

    Args:
        windows: tuples (begin, end, schedule): 0 <= begin < end in updates, whole or fractional, in order and without
            overlap; the end of the last may be None (or inf). A schedule is a Schedule or any function.
        absolute: False, each schedule runs in its own time from the begin of its window, and if its length is known
            it must be that of the window; True, each is given the step as it is, and no length is compared.

    At the end: length is the last end; if that is None, the end of the last schedule where it has one.

    Equals: optax.join_schedules(schedules, boundaries) and torch SequentialLR(schedulers, milestones) with windows
        from border to border; those know no gaps. torch's pieces may be longer than their window: `.take(n)` them.

    Example:
        >>> import gradchain as gch
        >>> lr = gch.join((0, 10, gch.linear(0.0, 1.0, 10)), (20, None, gch.linear(1.0, 0.0, 80)))
        >>> lr(5), lr(15), lr(60), lr(100)
        (0.5, 1.0, 0.5, 0.0)
        >>> lr
        join((0, 10, linear(0.0, 1.0, 10)), (20, None, linear(1.0, 0.0, 80)))
    """

    windows: tuple[Window, ...]
    absolute: bool = False

    # `windows` by name is for dataclasses.replace, which cannot pass a star argument.
    def __init__(self, *intervals: Window, absolute: bool = False, windows: Sequence[Window] = ()) -> None:
        object.__setattr__(self, "windows", _windows((*intervals, *windows), absolute))
        object.__setattr__(self, "absolute", absolute)

    @property
    def length(self) -> float | None:
        begin, end, schedule = self.windows[-1]
        if end is not None:
            return end
        length = length_of(schedule)
        if length is None:
            return None
        return max(begin, length) if self.absolute else begin + length

    def curve(self, t: float) -> float:
        index = bisect_right(self.windows, t, key=lambda window: window[0])
        begin, end, schedule = self.windows[max(index - 1, 0)]
        if self.absolute:
            return value_of(schedule, max(t, begin) if end is None else min(max(t, begin), end))
        length = length_of(schedule)
        if end is None and length is not None:
            end = begin + length
        if end is None or t < end:
            return value_of(schedule, max(t - begin, 0))
        # Not always end - begin: with fractional borders that difference may miss the length by an ulp.
        return value_of(schedule, end - begin if length is None else length)

    def __repr__(self) -> str:
        given = [source(window) for window in self.windows] + ["absolute=True"] * self.absolute
        return f"join({', '.join(given)})"


def _windows(windows: Sequence[Window], absolute: bool) -> tuple[Window, ...]:
    """The windows checked: in order, without overlap, each as long as its schedule."""
    if not isinstance(absolute, bool):
        bad("join", "absolute must be True or False", absolute, kind=TypeError)
    if not windows:
        bad("join", "windows must be at least one (begin, end, schedule)", windows)
    checked: list[Window] = []
    for place, window in enumerate(windows):
        begin, end, schedule = _window(window)
        if checked:
            before = checked[-1][1]
            if before is None or begin < before:
                raise ValueError(
                    f"join: windows must be in order and without overlap, got ({begin!r}, {end!r}) after "
                    f"({checked[-1][0]!r}, {before!r}); an overlap is a product or a sum: f * g."
                )
        if end is None and place < len(windows) - 1:
            raise ValueError(f"join: only the last window may have no end, got ({begin!r}, None); give it an end.")
        length = length_of(schedule)
        if not absolute and end is not None and length is not None and not math.isclose(length, end - begin):
            raise ValueError(
                f"join: a schedule must be as long as its window, {end - begin!r} from {begin!r} to {end!r}, got "
                f"{source(schedule)} of length {length!r}; cut or hold it with .take({end - begin!r})."
            )
        checked.append((begin, end, schedule))
    return tuple(checked)


def _window(window: object) -> Window:
    if not (isinstance(window, (tuple, list)) and len(window) == 3):
        bad("join", "a window must be (begin, end, schedule)", window, kind=TypeError)
    begin, end, schedule = window
    begin = one_number("join", "begin", begin, "a non-negative number", lambda x: x >= 0)
    if end is not None and end != math.inf:
        end = one_number("join", "end", end, f"a number above begin={begin!r}, or None", lambda x: x > begin)
    else:
        end = None
    require_step("join", f"the schedule from {begin!r}", schedule)
    return begin, end, schedule
