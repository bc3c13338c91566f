"""The curves between two values. Each hits both ends exactly and keeps its relative accuracy near a small end."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

__all__ = ["between", "cosine_between", "linear_between", "mix", "through"]


def mix(start: float, end: float, rest: float, gone: float) -> float:
    """`start * rest + end * gone` where rest + gone = 1, never outside [start, end] by an ulp."""
    value = start * rest + end * gone
    return min(max(value, min(start, end)), max(start, end))


def linear_between(start: float, end: float, t: float, steps: float) -> float:
    """The straight line from start at t = 0 to end at t = steps."""
    if t >= steps or t <= 0:
        return end if t >= steps else start
    # Two weights rather than start + (end - start) * u: the difference would cancel near a tiny end. They are divided
    # by `steps` last: with whole steps that rounds least, so 3e-4 * 100 / 500 is 6e-5. But a * n / n is not always a.
    value = (start * (steps - t) + end * t) / steps
    return min(max(value, min(start, end)), max(start, end))


def cosine_between(start: float, end: float, t: float, steps: float, exponent: float = 1.0) -> float:
    """The curve end + (start - end) * ((1 + cos(pi * t / steps)) / 2) ** exponent."""
    if t >= steps:
        return end
    # (1 + cos x) / 2 = sin((pi - x) / 2)^2: the sum would cancel where x is near pi.
    root = math.sin(0.5 * math.pi * ((steps - t) / steps))
    if exponent == 1.0:
        return mix(start, end, root * root, math.sin(0.5 * math.pi * (t / steps)) ** 2)
    rest = root ** (2.0 * exponent)
    return mix(start, end, rest, 1.0 - rest)


def between(shape: str, start: float, end: float, t: float, steps: float) -> float:
    """The curve from start to end that has this name: linear, cosine or sqrt."""
    if shape == "linear":
        return linear_between(start, end, t, steps)
    if shape == "cosine":
        return cosine_between(start, end, t, steps)
    gone = math.sqrt(min(t / steps, 1.0))
    return mix(start, end, 1.0 - gone, gone)


def through(points: Sequence[tuple[float, float]], t: float, shape: str) -> float:
    """The value at t of the curve through (step, value) points; constant: the value of the last point reached."""
    index = bisect_right(points, t, key=lambda point: point[0])
    if index == 0:
        return points[0][1]
    begin, value = points[index - 1]
    if index == len(points) or shape == "constant":
        return value
    end, target = points[index]
    return between(shape, value, target, t - begin, end - begin)
