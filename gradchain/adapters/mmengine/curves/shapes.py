"""What a scheduler does in its window, as schedules: from a value, and to a value that others change too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gradchain.schedules import Schedule, chained, constant, cosine_wave, join, linear, multi_step, per_epoch

__all__ = [
    "Move", "Shape", "absolute", "climbing", "factor", "held", "interval", "quadratic", "restarts", "stairs", "towards",
]  # fmt: skip


@dataclass(frozen=True)
class Move:
    """A window of `overlay` in local time: over [begin, end) the value becomes scale * value + shift."""

    begin: int
    end: int
    scale: float | Schedule
    shift: float | Schedule = 0.0
    origin: int = 0


@dataclass(frozen=True)
class Shape:
    """A scheduler in its local time, steps 0 to count - 1, whose last value is then held.

    scale: where it does nothing but multiply, the factors; else None.
    alone: what the scheduler makes of the value it finds, where nobody else changes it meanwhile.
    moves: the same step by step, for where others do.
    """

    scale: Schedule | None
    alone: Callable[[float], Schedule]
    moves: tuple[Move, ...]


def held(schedule: Schedule, count: int) -> Schedule:
    """The values at 0 to count - 1, and the last of them for good."""
    length, last = schedule.length, schedule.parts[-1] if isinstance(schedule, chained) else schedule
    if (length is not None and length <= count - 1) or isinstance(last, (constant, multi_step)):
        return schedule
    return schedule.take(count - 1)


def factor(scale: Schedule, count: int) -> Shape:
    """A scheduler that only multiplies."""
    scale = held(scale, count)
    return Shape(scale, lambda x: x * scale, (Move(0, count, scale),))


def absolute(schedule: Schedule, count: int) -> Shape:
    """A scheduler that sets the value, whatever it was."""
    schedule = held(schedule, count)
    return Shape(None, lambda x: schedule, (Move(0, count, 0.0, schedule),))


def stairs(edges: list[int], values: list[float], count: int) -> Shape:
    """A scheduler that sets the value from its first edge on, anew at each."""
    ends = [*edges[1:], None]
    curve = [(a, b, constant(value)) for a, b, value in zip(edges, ends, values, strict=True)]
    moves = tuple(
        Move(a, count if b is None else b, 0.0, value, a) for (a, b, _), value in zip(curve, values, strict=True)
    )

    def alone(x: float) -> Schedule:
        windows = [(0, edges[0], constant(x)), *curve] if edges[0] else curve
        return held(join(*windows) if len(windows) > 1 else windows[0][2], count)

    return Shape(None, alone, moves)


def towards(curve: Callable[[float, float], Schedule], floor: float, count: int) -> Shape:
    """A scheduler along `curve(start, end)` from the value found to a floor."""
    scale = held(curve(1.0, 0.0), count)
    if floor == 0.0:
        return factor(scale, count)
    moves = (Move(0, count, scale, held(curve(0.0, floor), count)),)
    return Shape(None, lambda x: held(curve(x, floor), count), moves)


def climbing(half: float, floor: float, base: float, count: int) -> Shape:
    """Half a cosine to the floor, and where the window is longer, up to the base value and down again."""
    if count - 1 <= half or half != int(half):
        # A half wave that ends between two steps meets the floor at none, and swings on from the value found.
        return towards(lambda start, end: cosine_wave(start, end, half), floor, count)
    half = int(half)
    moves = [Move(0, half + 1, cosine_wave(1.0, 0.0, half), cosine_wave(0.0, floor, half))]
    up = cosine_wave(0.0, 1.0, half)
    for foot in range(half, count - 1, 2 * half):
        # At the floor no factor leads up: the first step adds, the others keep the ratio of their heights above it.
        moves.append(Move(foot + 1, foot + 2, 1.0, (base - floor) * up(1), foot + 1))
        if foot + 2 < count:
            end = min(foot + 2 * half + 1, count)
            moves.append(Move(foot + 2, end, up, cosine_wave(floor, 0.0, half), foot))

    def alone(x: float) -> Schedule:
        wave = cosine_wave(x, floor, half)
        return held(wave if x == base else wave.take(half).then(cosine_wave(floor, base, half)), count)

    return Shape(None, alone, tuple(moves))


def restarts(periods: list[int], weights: list[float], floor: float, base: float, count: int) -> Shape:
    """Cosines from weight * base to the floor, one after the other."""
    moves, parts, begin = [], [], 0
    for period, weight in zip(periods, weights, strict=True):
        parts.append(cosine_wave(base * weight, floor, period))
        if begin < count:
            moves.append(Move(begin, begin + 1, 0.0, base * weight, begin))
        if (end := min(begin + period, count)) > begin + 1:
            moves.append(Move(begin + 1, end, cosine_wave(1.0, 0.0, period), cosine_wave(0.0, floor, period), begin))
        begin += period
    first = [part.take(period) for part, period in zip(parts[:-1], periods, strict=False)]
    # After the last period its last value stays, which is not yet the floor.
    last = parts[-1].take(periods[-1] - 1)
    whole = held(chained((*first, last)) if first else last, min(count, begin))
    return Shape(None, lambda x: whole, tuple(moves))


def quadratic(n: float, base: float, count: int) -> Shape:
    """base * ((t + 1) / n)**2: set at first, added to after."""
    line = linear(1.0 / n, count / n, count - 1)
    curve = base * line * line
    moves = [Move(0, 1, 0.0, curve(0))] + ([Move(1, count, 1.0, curve)] if count > 1 else [])
    return Shape(None, lambda x: curve, tuple(moves))


def interval(start: float, end: float, every: float, stairs: float, count: int) -> Shape:
    """The start as a factor, then the factor itself as the value, in stairs, a step late."""
    rise = per_epoch(linear(start, end, stairs), every)
    moves = [Move(0, 1, start)] + ([Move(1, count, 0.0, held(rise, count - 1), 1)] if count > 1 else [])
    return Shape(None, lambda x: held(constant(x * start).take(1).then(rise), count), tuple(moves))
