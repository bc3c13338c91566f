"""Pictures of the pages, as SVG in the page itself: they take the page's colours, light or dark, and need no file.

A rule is drawn by the way its weights go down one valley; a schedule by its curve over the updates. Every point is
computed by the library while the site is built, and the same input gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 320
Point = tuple[float, float]

# the valley: half of the sum of curvature times coordinate squared, in axes turned by ANGLE
CURVATURES = (1.0, 12.0)
ANGLE = math.radians(28.0)
START: Point = (-2.6, 0.55)
_VIEW = (-3.4, 3.4, -1.7, 1.7)  # what is seen of the plane: from x, to x, from y, to y


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _svg(title: str, inner: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    return (
        f'<svg class="drawn" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{inner}</svg>"
    )


def _place(point: Point) -> Point:
    left, right, low, high = _VIEW
    return (point[0] - left) / (right - left) * WIDTH, (high - point[1]) / (high - low) * HEIGHT


def _line(points: Sequence[Point], kind: str) -> str:
    drawn = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
    return f'<polyline class="{kind}" points="{drawn}"/>'


def _dots(points: Sequence[Point], kind: str, radius: float) -> str:
    return "".join(f'<circle class="{kind}" cx="{_number(x)}" cy="{_number(y)}" r="{radius}"/>' for x, y in points)


def _valley() -> str:
    """Its level lines, each a turned ellipse around the minimum."""
    centre, scale = _place((0.0, 0.0)), WIDTH / (_VIEW[1] - _VIEW[0])
    rings = []
    for level in (0.02, 0.1, 0.3, 0.7, 1.4, 2.5, 4.0, 6.0, 9.0, 13.0):
        rx, ry = (scale * math.sqrt(2.0 * level / c) for c in CURVATURES)
        rings.append(
            f'<ellipse class="level" cx="{_number(centre[0])}" cy="{_number(centre[1])}" rx="{_number(rx)}" '
            f'ry="{_number(ry)}" transform="rotate({_number(-math.degrees(ANGLE))} {_number(centre[0])} '
            f'{_number(centre[1])})"/>'
        )
    x, y = centre
    cross = f'<path class="least" d="M{_number(x - 5)} {_number(y)}h10M{_number(x)} {_number(y - 5)}v10"/>'
    return "".join(rings) + cross


def trajectory(title: str, way: Sequence[Point], beside: Sequence[Point] = (), mean: Sequence[Point] = ()) -> str:
    """The way of two weights over the valley's level lines.

    Args:
        title: what a reader who does not see it is told.
        way: the weights before the first update and after each.
        beside: the way without the link, drawn thin.
        mean: the way of an average, drawn dashed.
    """
    placed = [_place(p) for p in way]
    parts = [_valley()]
    if beside:
        parts.append(_line([_place(p) for p in beside], "beside"))
    if mean:
        parts.append(_line([_place(p) for p in mean], "mean"))
    parts += [_line(placed, "way"), _dots(placed[1:], "step", 2.2), _dots(placed[:1], "start", 4.5)]
    return _svg(title, "".join(parts))


def _ticks(low: float, high: float, many: int = 4) -> list[float]:
    """Round numbers from low to high."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / many))
    step *= next(m for m in (1, 2, 5, 10) if span / (m * step) <= many + 0.5)
    first = math.ceil(low / step - 1e-9)
    return [round((first + i) * step, 12) for i in range(int((high - first * step) / step + 1e-9) + 1)]


def curve(title: str, values: Sequence[Point], unit: str) -> str:
    """A schedule's values over time.

    Args:
        title: what a reader who does not see it is told.
        values: (time, value), in order of time.
        unit: what time is counted in.
    """
    left, right, top, bottom = 70, WIDTH - 20, 18, HEIGHT - 44
    begin, end = values[0][0], values[-1][0]
    low, high = min(0.0, *(v for _, v in values)), max(v for _, v in values)
    high = high if high > low else low + 1.0

    def place(point: Point) -> Point:
        x = left + (point[0] - begin) / (end - begin) * (right - left)
        return x, bottom - (point[1] - low) / (high - low) * (bottom - top)

    parts = []
    for value in _ticks(low, high):
        y = place((begin, value))[1]
        parts.append(f'<path class="level" d="M{left} {_number(y)}H{right}"/>')
        parts.append(f'<text x="{left - 8}" y="{_number(y + 4)}" text-anchor="end">{value:.6g}</text>')
    for time in _ticks(begin, end, 6):
        x = place((time, low))[0]
        parts.append(f'<path class="level" d="M{_number(x)} {bottom}v5"/>')
        parts.append(f'<text x="{_number(x)}" y="{bottom + 20}" text-anchor="middle">{time:.6g}</text>')
    parts.append(f'<text x="{right}" y="{bottom + 38}" text-anchor="end">{escape(unit)}</text>')
    parts.append(_line([place(p) for p in values], "way"))
    return _svg(title, "".join(parts))
