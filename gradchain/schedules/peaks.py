"""The largest value that a schedule comes to."""

from __future__ import annotations

import math

from gradchain.schedules.base import STEP, ScheduleLike, clocks_of, length_of, value_of

_LOOKS = 4096


def highest(schedule: ScheduleLike) -> float | None:
    """The largest value at a whole step from 0 to the end; None where there is no end, or one in another clock.

    A long schedule is looked at in 4096 places, and then more closely around the highest: what is higher somewhere
    else for less than a 4096th of its length may be missed.

    Example:
        >>> import gradchain as gch
        >>> from gradchain.schedules.peaks import highest
        >>> highest(gch.schedules.warmup_cosine(0.0, 0.25, 1000, 1_000_000))
        0.25
    """
    end = length_of(schedule)
    if end is None or not math.isfinite(end) or clocks_of(schedule) != STEP:
        return None
    low, high = last = 0, math.ceil(end)
    while True:
        stride = max(1, (high - low) // _LOOKS)
        best = max([*range(low, high, stride), high], key=lambda step: value_of(schedule, step))
        if stride == 1:
            return value_of(schedule, best)
        low, high = max(last[0], best - stride), min(last[1], best + stride)
