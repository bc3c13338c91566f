"""Where schedules have borders, in their own time: windows that begin and end, stairs, and the end of all of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gradchain.schedules import (
    Schedule,
    by,
    chained,
    clipped,
    combined,
    constant,
    cosine_restarts,
    inverse_sqrt,
    join,
    multi_step,
    one_cycle,
    overlay,
    per_epoch,
    piecewise,
    repeated,
    step_decay,
    taken,
    warmup_cosine,
    warmup_stable_decay,
)
from gradchain.schedules.base import length_of
from gradchain.see.lines import Clocks, Line

__all__ = ["MOST", "borders", "ends_of", "marks_of"]

MOST = 10**9
"""Nobody looks further, in updates."""

MOST_REPEATS = 1000
"""Stairs and repetitions beyond these are no borders that anybody could see."""


def marks_of(line: Line, clocks: Clocks, most: int = MOST) -> tuple[set[int], int | None]:
    """The updates at which something of a line begins or ends, and the one from which on nothing moves."""
    own = line.clock or "step"
    found = set()
    for clock, place in borders(line.start, own):
        update = clocks.update_at(clock, math.ceil(place), most)
        if update is not None and update > 0:
            found.add(update)
    ends = [
        None if place is None else clocks.update_at(clock, math.ceil(place), most)
        for clock, place in ends_of(line.start, own)
    ]
    known = [end for end in ends if end is not None]
    return found, max(known) if known and len(known) == len(ends) else None


def _parts(schedule: Any, clock: str) -> Iterator[tuple[str, Any]]:
    """Clock and schedule of each part that reads one clock alone, through sums, products and bounds."""
    if isinstance(schedule, by):
        yield from _parts(schedule.schedule, schedule.clock)
    elif isinstance(schedule, combined):
        for part in (schedule.left, schedule.right):
            yield from _parts(part, clock)
    elif isinstance(schedule, clipped):
        yield from _parts(schedule.schedule, clock)
    else:
        yield clock, schedule


def ends_of(schedule: Any, clock: str = "step") -> Iterator[tuple[str, float | None]]:
    """Clock and reading of the end of each part of a schedule; None where a part has none, or nobody knows."""
    yield from ((own, _end(part)) for own, part in _parts(schedule, clock) if callable(part))


def _end(schedule: Any) -> float | None:
    """From when on a schedule that reads the step alone stays as it is: its length, or the last of its stairs."""
    length = length_of(schedule)
    if length is not None or not isinstance(schedule, Schedule):
        return length
    if isinstance(schedule, constant):
        return 0
    if isinstance(schedule, (multi_step, piecewise)):
        return max(_places(schedule), default=0)
    if isinstance(schedule, per_epoch):
        end = _end(schedule.schedule)
        return None if end is None else end * schedule.n
    if isinstance(schedule, chained):
        end = _end(schedule.parts[-1])
        return None if end is None else end + sum(length_of(part) or 0 for part in schedule.parts[:-1])
    if isinstance(schedule, join):
        begin, _, last = schedule.windows[-1]
        end = _end(last)
        return None if end is None else end if schedule.absolute else begin + end
    return None


def borders(schedule: Any, clock: str = "step") -> Iterator[tuple[str, float]]:
    """Clock and reading of each border of a schedule, its end too; a number and a plain function have none."""
    yield from ((own, place) for own, part in _parts(schedule, clock) for place in _places(part))


def _places(schedule: Any) -> Iterator[float]:
    """The borders of a schedule, or of what may be none, that reads the step alone."""
    if not isinstance(schedule, Schedule):
        return
    inner = _INSIDE.get(type(schedule))
    length = schedule.length
    if inner is not None:
        yield from (place for place in inner(schedule) if 0 < place and (length is None or place < length))
    if length:
        yield length


def _shifted(schedule: Any, begin: float, end: float | None = None) -> Iterator[float]:
    """The borders of a part that begins later, up to where it is cut off."""
    yield from (begin + place for place in _places(schedule) if end is None or begin + place < end)


def _chained(schedule: chained) -> Iterator[float]:
    begin: float = 0
    for part in schedule.parts:
        yield begin
        yield from _shifted(part, begin)
        begin += length_of(part) or 0


def _joined(schedule: join) -> Iterator[float]:
    for begin, end, part in schedule.windows:
        yield from (begin, *(() if end is None else (end,)))
        inside = _places(part) if schedule.absolute else _shifted(part, begin, end)
        yield from (place for place in inside if begin < place and (end is None or place < end))


def _overlaid(schedule: overlay) -> Iterator[float]:
    for begin, end, scale, shift, origin in schedule.windows:
        yield from (begin, *(() if end is None else (end,)))
        for part in (scale, shift):
            yield from (place for place in _shifted(part, origin, end) if place > begin)


def _times(period: float, times: float | None) -> Iterator[float]:
    """Whole periods, but for very many."""
    most = MOST_REPEATS if times is None else min(times, MOST_REPEATS)
    yield from (i * period for i in range(1, int(most) + 1))


def _repeated(schedule: repeated) -> Iterator[float]:
    period = length_of(schedule.schedule) or 0
    inside = [place for place in _places(schedule.schedule) if place < period]
    for begin in (0, *_times(period, schedule.times)):
        yield from (begin, *(begin + place for place in inside))


def _restarts(schedule: cosine_restarts) -> Iterator[float]:
    begin: float = 0
    period = schedule.period
    for _ in range(min(schedule.cycles or MOST_REPEATS, MOST_REPEATS)):
        begin += period
        period *= schedule.period_multiplier
        if begin > MOST:
            return
        yield begin


def _one_cycle(schedule: one_cycle) -> Iterable[float]:
    up, back = schedule.warmup_steps, schedule.return_steps
    return (up,) if back is None else (up, back)


_INSIDE: dict[type, Callable[[Any], Iterable[float]]] = {
    chained: _chained,
    cosine_restarts: _restarts,
    inverse_sqrt: lambda s: (s.warmup_steps,),
    join: _joined,
    multi_step: lambda s: s.milestones,
    one_cycle: _one_cycle,
    overlay: _overlaid,
    per_epoch: lambda s: (place * s.n for place in _places(s.schedule)),
    piecewise: lambda s: (place for place, _ in s.points),
    repeated: _repeated,
    step_decay: lambda s: _times(s.step_size, None),
    taken: lambda s: _places(s.schedule),
    warmup_cosine: lambda s: (s.warmup_steps,),
    warmup_stable_decay: lambda s: (s.warmup_steps, s.steps - s.decay_steps),
}
"""What a schedule is made of, by its class; of any other its end is known alone."""
